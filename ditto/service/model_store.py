"""A party's share of every model: on disk for a restart, the last two in memory."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ditto.channel import Channel
from ditto.errors import BadShare, ClusterError, UnknownModel
from ditto.prg import SEED_BYTES, Prg, derive
from ditto.program import Wire
from ditto.ring import unpack, wire_bytes
from ditto.runtime import PartyWeights
from ditto.service.files import load_tensors, save_tensors, write_secret
from ditto.service.programs import check_id, check_name, weights_of
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
        self.total = wire_bytes(wire.ring, math.prod(wire.shape))
        self._data = bytearray(self.total)
        self._filled = 0

    def add(self, offset: int, data: bytes) -> None:
        if offset != self._filled or offset + len(data) > self.total:
            raise BadShare(f"{self.name}: {offset + len(data)} bytes where {self.total} are expected")
        self._data[offset : offset + len(data)] = data
        self._filled += len(data)

    def tensor(self) -> torch.Tensor:
        if self._filled != self.total:
            raise BadShare(f"{self.name}: {self._filled} of {self.total} bytes received")
        return unpack(self._data, self.wire.ring, tuple(self.wire.shape))


def expand(seed: bytes, wires: dict[str, Wire]) -> dict[str, torch.Tensor]:
    """The shares that a 16-byte seed stands for."""
    return {name: Prg(derive(seed, name)).ring(tuple(w.shape), w.ring) for name, w in wires.items()}


@dataclass(frozen=True)
class Entry:
    """What is public of one sharing of one model."""

    model: str
    share_id: str
    spec: str
    active: bool


class ModelStore:
    def __init__(self, root: Path, party: int) -> None:
        self._root, self._party = root / "models", party
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, PartyWeights] = OrderedDict()
        self._entries: dict[str, Entry] = {}
        for path in sorted(self._root.glob("*/model.json")):
            entry = Entry(**json.loads(path.read_text()))
            if entry.active:
                self._entries[entry.share_id] = entry
            else:  # shared, never activated: of no use after a restart
                shutil.rmtree(path.parent, ignore_errors=True)

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
        entry = Entry(check_name(header.model), check_id(header.share_id), header.spec_json, False)
        wires = weights_of(entry.spec)
        home = self._root / entry.share_id
        with self._lock:
            if entry.share_id in self._entries or home.exists():
                raise ClusterError("this sharing was put before; share the model again")
            home.mkdir(mode=0o700)
        try:
            if header.seed:
                if len(header.seed) != SEED_BYTES:
                    raise BadShare(f"a seed of {len(header.seed)} bytes")
                write_secret(home / "seed", header.seed)
            else:
                save_tensors(home / "shares.safetensors", _receive(requests, wires))
            self._write(entry)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        return entry

    def _write(self, entry: Entry) -> None:
        write_secret(self._root / entry.share_id / "model.json", json.dumps(vars(entry)).encode())
        with self._lock:
            self._entries[entry.share_id] = entry

    def activate(self, entry: Entry, mask_seed: bytes, channel: Channel) -> None:
        """Open F with the peer, once for this sharing, and keep it."""
        home = self._root / entry.share_id
        write_secret(home / "mask_seed", mask_seed)
        weights = PartyWeights(weights_of(entry.spec), self._party, mask_seed, self._shares(entry))
        weights.open_masked(channel)
        save_tensors(home / "masked.safetensors", weights.masked())
        self._write(Entry(entry.model, entry.share_id, entry.spec, True))
        with self._lock:
            self._remember(entry.share_id, weights)

    def _shares(self, entry: Entry) -> dict[str, torch.Tensor]:
        home = self._root / entry.share_id
        seed = home / "seed"
        if seed.exists():
            return expand(seed.read_bytes(), weights_of(entry.spec))
        return load_tensors(home / "shares.safetensors")

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
                home = self._root / share_id
                seed = (home / "mask_seed").read_bytes()
                weights = PartyWeights(weights_of(entry.spec), self._party, seed, self._shares(entry))
                weights.restore(load_tensors(home / "masked.safetensors"))
                self._remember(share_id, weights)
            self._loaded.move_to_end(share_id)
            return weights

    def drop(self, share_id: str) -> None:
        with self._lock:
            self._loaded.pop(share_id, None)
            if self._entries.pop(check_id(share_id), None) is not None:
                shutil.rmtree(self._root / share_id, ignore_errors=True)


def _receive(requests: Iterator[party_pb2.PutModelRequest], wires: dict[str, Wire]) -> dict[str, torch.Tensor]:
    shares: dict[str, torch.Tensor] = {}
    now: Assembly | None = None
    for request in requests:
        chunk = request.chunk
        if now is None or chunk.name != now.name:
            if now is not None:
                shares[now.name] = now.tensor()
            if chunk.name in shares:
                raise BadShare(f"{chunk.name} was sent twice")
            now = Assembly(chunk.name, wires.get(chunk.name), chunk.ring, tuple(chunk.shape))
        now.add(chunk.offset, chunk.data)
    if now is not None:
        shares[now.name] = now.tensor()
    missing = sorted(wires.keys() - shares.keys())
    if missing:
        raise BadShare(f"no share of {missing[0]} was sent")
    return shares
