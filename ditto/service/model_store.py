"""A party's share of every model: on disk for a restart, the last two in memory."""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field

from ditto.engine.channel import Channel
from ditto.engine.program import Wire
from ditto.engine.sharing import seeded_share
from ditto.engine.weights import PartyWeights
from ditto.errors import BadShare, ClusterError, UnknownModel
from ditto.files import make_directory
from ditto.models.compiled import generates, weights_of
from ditto.names import ID, PARTIES, check_id, check_name
from ditto.net.config import Limits
from ditto.ring import carrier, unpack
from ditto.service.limits import admit_model
from ditto.service.stored import (
    Owner,
    StoredEntry,
    load_seed,
    load_tensors,
    readable_entries,
    save_entry,
    save_seed,
    save_tensors,
)
from ditto.wire import party_pb2

KEPT = 2


class Assembly:
    """One packed tensor share arriving in chunks; checks ring, shape and length against the program."""

    def __init__(self, name: str, wire: Wire | None, ring: int, shape: tuple[int, ...]) -> None:
        if wire is None:
            raise BadShare(f"{name!r} is no tensor of this program")
        if ring != wire.ring or shape != tuple(wire.shape):
            raise BadShare(
                f"{name}: a share of shape {shape} over {ring} bits; expected {tuple(wire.shape)} over {wire.ring}"
            )
        self.name, self.wire = name, wire
        self.total = wire.nbytes
        self._data = bytearray(self.total)
        self._filled = 0

    def add(self, offset: int, data: bytes) -> None:
        if offset != self._filled or offset + len(data) > self.total:
            raise BadShare(f"{self.name}: {offset + len(data)} bytes where {self.total} are expected")
        self._data[offset : offset + len(data)] = data
        self._filled += len(data)

    @property
    def full(self) -> bool:
        return self._filled == self.total

    def tensor(self) -> torch.Tensor:
        if self._filled != self.total:
            raise BadShare(f"{self.name}: {self._filled} of {self.total} bytes received")
        return unpack(self._data, self.wire.ring, tuple(self.wire.shape))


def expand(seed: bytes, wires: dict[str, Wire]) -> Iterator[tuple[str, torch.Tensor]]:
    """The shares that a 16-byte seed stands for."""
    for name, wire in wires.items():
        yield name, seeded_share(name, wire, seed)


def _of_kind(wires: dict[str, Wire], masked: bool) -> dict[str, Wire]:
    return {name: wire for name, wire in wires.items() if (wire.held != "share") == masked}


class Entry(StoredEntry):
    """What is public of one sharing of one model."""

    model: str
    share_id: str = Field(pattern=ID)
    description: str
    active: bool


class ModelStore:
    def __init__(self, root: Path, party: int, limits: Limits | None = None) -> None:
        self._root, self._party, self._limits = root / "models", party, limits or Limits()
        make_directory(self._root, 0o700)
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, PartyWeights] = OrderedDict()
        self._entries: dict[str, Entry] = {}
        paths = sorted(self._root.glob("*/model.json"))
        for entry in readable_entries(paths, Entry, lambda path: self._owner(path.parent.name)):
            if entry.active:
                self._entries[entry.share_id] = entry
            else:  # shared, never activated: of no use after a restart
                shutil.rmtree(self._root / entry.share_id, ignore_errors=True)

    def _owner(self, share_id: str) -> Owner:
        return Owner(PARTIES[self._party], share_id)

    def entries(self) -> list[Entry]:
        with self._lock:
            return list(self._entries.values())

    def entry(self, share_id: str) -> Entry:
        with self._lock:
            entry = self._entries.get(share_id)
        if entry is None:
            raise UnknownModel(f"party{self._party} has no share of this model", peer=f"party{self._party}")
        return entry

    def put(self, requests: Iterator[party_pb2.PutModelRequest]) -> Entry:
        """Receive one sharing from the client and write it down; it becomes active later."""
        header = next(requests, party_pb2.PutModelRequest()).header
        name, share_id = check_name(header.model), check_id(header.share_id)
        entry = Entry(model=name, share_id=share_id, description=header.description, active=False)
        wires = admit_model(entry.description, self._limits, PARTIES[self._party])
        home = self._root / entry.share_id
        with self._lock:
            if entry.share_id in self._entries or home.exists():
                raise ClusterError("this sharing was put before; share the model again")
            make_directory(home, 0o700)
        try:
            if header.seed:
                save_seed(home / "seed", header.seed, self._owner(share_id))
            else:
                received = _receive(requests, wires)
                save_tensors(home / "shares.safetensors", wires, received, self._owner(share_id))
            self._write(entry)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        return entry

    def _write(self, entry: Entry) -> None:
        save_entry(self._root / entry.share_id / "model.json", entry, self._owner(entry.share_id))
        with self._lock:
            self._entries[entry.share_id] = entry

    def activate(self, entry: Entry, mask_seed: bytes, channel: Channel) -> None:
        """Open F with the peer, once for this sharing, tensor by tensor, and keep it.

        Afterwards only the shares of weights without a mask are needed; the others go.
        """
        home, wires = self._root / entry.share_id, weights_of(entry.description)
        owner = self._owner(entry.share_id)
        kept: dict[str, torch.Tensor] = {}

        def opened() -> Iterator[torch.Tensor]:
            for name, share in self._shares(entry, wires):
                if wires[name].held == "share":
                    kept[name] = share
                    continue
                one = PartyWeights({name: wires[name]}, self._party, mask_seed, {name: share})
                one.open_masked(channel)
                yield one.masked()[name]

        save_seed(home / "mask_seed", mask_seed, owner)
        save_tensors(home / "masked.safetensors", _of_kind(wires, True), opened(), owner)
        plain = _of_kind(wires, False)
        save_tensors(home / "kept.safetensors", plain, (kept[name] for name in plain), owner)
        self._write(entry.model_copy(update={"active": True}))
        for name in ("seed", "shares.safetensors"):
            (home / name).unlink(missing_ok=True)
        self.weights(entry.share_id)

    def _shares(self, entry: Entry, wires: dict[str, Wire]) -> Iterator[tuple[str, torch.Tensor]]:
        home, owner = self._root / entry.share_id, self._owner(entry.share_id)
        seed = home / "seed"
        if seed.exists():
            return expand(load_seed(seed, owner), wires)
        return load_tensors(home / "shares.safetensors", wires, owner)

    def _load(self, entry: Entry) -> PartyWeights:
        home, wires = self._root / entry.share_id, weights_of(entry.description)
        owner = self._owner(entry.share_id)
        masked = _of_kind(wires, True)
        # A weight under a mask is F and the mask from here on: an empty stand-in takes the place of its share.
        shares = {name: torch.zeros((), dtype=carrier(w.ring)).expand(w.shape) for name, w in masked.items()}
        shares |= dict(load_tensors(home / "kept.safetensors", _of_kind(wires, False), owner))
        weights = PartyWeights(wires, self._party, load_seed(home / "mask_seed", owner), shares)
        weights.restore(dict(load_tensors(home / "masked.safetensors", masked, owner)))
        weights.warm(few=generates(entry.description))
        return weights

    def _remember(self, share_id: str, weights: PartyWeights) -> None:
        while len(self._loaded) >= KEPT:
            self._loaded.popitem(last=False)
        self._loaded[share_id] = weights

    def weights(self, share_id: str) -> PartyWeights:
        """The weights of an active sharing, from memory or from disk."""
        entry = self.entry(share_id)
        if not entry.active:
            raise ClusterError(f"the sharing of {entry.model} was never activated; share the model again")
        with self._lock:
            weights = self._loaded.get(share_id)
            if weights is None:
                weights = self._load(entry)
                self._remember(share_id, weights)
            self._loaded.move_to_end(share_id)
            return weights

    def drop(self, share_id: str) -> None:
        with self._lock:
            self._loaded.pop(share_id, None)
            self._entries.pop(share_id, None)
            shutil.rmtree(self._root / check_id(share_id), ignore_errors=True)  # also one that was set aside


def _receive(requests: Iterator[party_pb2.PutModelRequest], wires: dict[str, Wire]) -> Iterator[torch.Tensor]:
    """The shares as they arrive, in the order of the program's weights."""
    chunks = (request.chunk for request in requests)
    for name in wires:
        chunk = next(chunks, None)
        if chunk is None or chunk.name != name:
            raise BadShare(f"the share of {name} is missing")
        part = Assembly(name, wires[name], chunk.ring, tuple(chunk.shape))
        part.add(chunk.offset, chunk.data)
        while not part.full:
            chunk = next(chunks, None)
            if chunk is None or chunk.name != name:
                break
            part.add(chunk.offset, chunk.data)
        yield part.tensor()
    if next(chunks, None) is not None:
        raise BadShare("a share that the program does not know")
