"""A party's share of every model: on disk for a restart, the last two in memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import structlog
import torch
from pydantic import Field

from ditto.engine.channel import Channel, compare_transcripts
from ditto.engine.program import Wire
from ditto.engine.sharing import seeded_share
from ditto.engine.weights import PartyWeights
from ditto.errors import ClusterError, DamagedFile, LimitExceeded, NotAllowed, ReuseError, StorageError, UnknownModel
from ditto.files import make_directory
from ditto.models.compiled import generates, weights_of
from ditto.models.description import digest_of
from ditto.names import ID, PARTIES, check_id, check_name
from ditto.net.config import Limits
from ditto.net.transport import short
from ditto.ring import carrier
from ditto.ring.malloc import give_back
from ditto.service.assembly import hashed, receive
from ditto.service.limits import admit_model
from ditto.service.share_ids import ShareIds
from ditto.service.storage import START
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

log = structlog.get_logger()
KEPT = 2
SHARE_IDS = "share_ids"
OPENED = "opened.safetensors"  # F of a sharing
UNFINISHED = 4  # sharings of one name that were put and not activated: more are a client's that fails again and again
GRANTS = 1000  # of a model


def expand(seed: bytes, wires: dict[str, Wire]) -> Iterator[tuple[str, torch.Tensor]]:
    """The shares that a 16-byte seed stands for."""
    for name, wire in wires.items():
        yield name, seeded_share(name, wire, seed)


def of_kind(wires: dict[str, Wire], masked: bool) -> dict[str, Wire]:
    """Those under a fixed mask, or the others."""
    return {name: wire for name, wire in wires.items() if (wire.held != "share") == masked}


class Entry(StoredEntry):
    """What a party knows of one sharing of one model besides its share. Identities are texts, as `client/alice`."""

    model: str
    share_id: str = Field(pattern=ID)
    description: str
    active: bool
    owner: str = Field(min_length=1)  # who put it, by the TLS peer's certificate
    granted: list[str] = Field(default_factory=list)  # who else may ask it
    share_digest: str = ""  # of this party's share, SHA-256
    order: int = 0  # in which the sharings of a name were put

    def may_ask(self, client: str) -> bool:
        return client == self.owner or client in self.granted

    def check_asks(self, client: str) -> None:
        """Raises NotAllowed unless this identity may run jobs."""
        if not self.may_ask(client):
            raise NotAllowed(f"the model {self.model} belongs to {self.owner}, who has not granted it to {client}")

    def check_description(self, digest: bytes, role: str) -> None:
        """Raises DamagedFile unless the coordinator has this party's copy of the description."""
        if digest != digest_of(self.description):
            raise DamagedFile(
                f"the coordinator's description of {self.model} is not the one that {role} has with its share; "
                "share the model again", peer=role,
            )  # fmt: skip


def _share_hash(entry: Entry, kind: str) -> Any:
    """SHA-256, begun with what tells this share from any other's."""
    return hashlib.sha256(json.dumps([entry.share_id, entry.model, entry.description, kind]).encode())


class ModelStore:
    def __init__(self, root: Path, party: int, limits: Limits | None = None) -> None:
        self._root, self._party, self._limits = root / "models", party, limits or Limits()
        make_directory(self._root, 0o700)
        self._ids = ShareIds(root / SHARE_IDS, PARTIES[party], self._limits.max_sharings)
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, PartyWeights] = OrderedDict()
        self._in_use = WeakValueDictionary[str, PartyWeights]()  # by a job: another one shares them
        self._entries: dict[str, Entry] = {}
        self._arriving: dict[str, Entry] = {}  # being put: they claim their names, too
        self._activating: set[str] = set()
        for share_id in self._ids.untold():  # dropped when the process ended
            shutil.rmtree(self._root / share_id, ignore_errors=True)
        paths = sorted(self._root.glob("*/model.json"))
        for entry in readable_entries(paths, Entry, lambda path: self._owner(path.parent.name)):
            if entry.active:
                self._entries[entry.share_id] = entry
                self._forget_share(entry.share_id)  # the process may have ended before it did
                continue
            try:  # shared, never activated: of no use after a restart
                self.drop(entry.share_id)
            except StorageError as error:  # a full disk stops no server; the identifier is used up already
                log.error("sharing not dropped", share=short(entry.share_id), reason=str(error))

    @property
    def role(self) -> str:
        return PARTIES[self._party]

    def home(self, share_id: str) -> tuple[Path, Owner]:
        """Where a sharing's files are, and whose they are."""
        return self._root / check_id(share_id), self._owner(share_id)

    def _owner(self, share_id: str) -> Owner:
        return Owner(self.role, share_id)

    def entries(self) -> list[Entry]:
        with self._lock:
            return list(self._entries.values())

    def entry(self, share_id: str) -> Entry:
        with self._lock:
            return self._entry(share_id)

    def _entry(self, share_id: str) -> Entry:
        """The caller holds the lock."""
        entry = self._entries.get(share_id)
        if entry is None:
            raise UnknownModel(f"{self.role} has no share of this model", peer=self.role)
        return entry

    def put(self, requests: Iterator[party_pb2.PutModelRequest], owner: str) -> Entry:
        """Receive one sharing from the client `owner` and write it down; it becomes active later.

        1. A name belongs to who has a sharing of it. Raises NotAllowed for anybody else.
        2. Of what was put under the name and never activated, the oldest goes where there is much of it.
        3. The identifier is used up, whatever becomes of the sharing. Raises ReuseError if it was before, LimitExceeded
           for an owner who has used up too many.
        4. The share is written down as it comes, and its digest taken: of the tensors, or of the seed that they are
           expanded from, with the description that says how.
        """
        header = next(requests, party_pb2.PutModelRequest()).header
        name, share_id = check_name(header.model), check_id(header.share_id)
        wires = admit_model(header.description, self._limits, PARTIES[self._party])
        entry = Entry(model=name, share_id=share_id, description=header.description, active=False, owner=owner)
        home = self._root / entry.share_id
        with self._claiming(entry):
            try:
                # 4
                if header.seed:
                    found = _share_hash(entry, "seed")
                    found.update(header.seed)
                    save_seed(home / "seed", header.seed, self._owner(share_id))
                else:
                    found = _share_hash(entry, "tensors")
                    received = hashed(receive(requests, wires), wires, found)
                    save_tensors(home / "shares.safetensors", wires, received, self._owner(share_id))
                with self._lock:
                    others = self._of_name(name)
                    fields = {
                        "share_digest": found.hexdigest(),
                        "granted": sorted({client for other in others for client in other.granted}),
                        "order": 1 + max((other.order for other in others), default=0),
                    }
                    entry = entry.model_copy(update=fields)
                    self._write(entry)
            except BaseException:
                shutil.rmtree(home, ignore_errors=True)
                raise
        return entry

    @contextlib.contextmanager
    def _claiming(self, entry: Entry) -> Iterator[None]:
        with self._lock:
            # 1
            self._check_owner(entry.model, entry.owner)
            self._check_quota(entry)
            # 2
            unfinished = [e for e in self._of_name(entry.model) if not e.active and e.share_id not in self._activating]
            for old in sorted(unfinished, key=lambda e: e.order)[: 1 - UNFINISHED]:
                self._drop(old.share_id)
            # 3
            home = self._root / entry.share_id
            if home.exists():  # an older version's, or damaged
                raise ReuseError("the identifier of this sharing was used before; share the model again", self.role)
            self._ids.take(entry.share_id, entry.owner)
            make_directory(home, 0o700)
            self._arriving[entry.share_id] = entry
        try:
            yield
        finally:
            with self._lock:
                self._arriving.pop(entry.share_id)

    def _of_name(self, name: str) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.model == name]

    def _check_owner(self, name: str, client: str) -> None:
        """Raises NotAllowed if the name is another's. The caller holds the lock."""
        for entry in (*self._of_name(name), *self._arriving.values()):
            if entry.model == name and entry.owner != client:
                raise NotAllowed(f"the model {name} belongs to {entry.owner}, not to {client}", self.role)

    def _check_quota(self, entry: Entry) -> None:
        """Raises LimitExceeded for one name too many. The caller holds the lock."""
        entries = (*self._entries.values(), *self._arriving.values())
        names = {e.model for e in entries if e.owner == entry.owner} | {entry.model}
        if len(names) > self._limits.max_models:
            most = f"it takes at most {self._limits.max_models:,} of one client (max_models)"
            raise LimitExceeded(f"{self.role}: {entry.owner} has {len(names) - 1:,} models; {most}", peer=self.role)

    def grant(self, name: str, owner: str, client: str, revoke: bool) -> None:
        """Let another identity ask a model, or no longer. A later sharing of the name keeps what is granted.

        Raises UnknownModel, NotAllowed unless `owner` is the model's, LimitExceeded for a grant too many.
        """
        with self._lock:
            self._check_owner(name, owner)
            entries = self._of_name(name)
            if not entries:
                raise UnknownModel(f"{self.role} has no model {name}", peer=self.role)
            for entry in entries:
                granted = {*entry.granted} - {client} if revoke else {*entry.granted, client}
                if len(granted) > GRANTS:
                    raise LimitExceeded(f"{name} is granted to {GRANTS:,} clients, which is the most", peer=self.role)
                self._write(entry.model_copy(update={"granted": sorted(granted)}))

    def remove(self, name: str, owner: str, chosen: Callable[[Entry], bool]) -> list[str]:
        """Drop the chosen sharings of a name; their identifiers. Raises NotAllowed unless `owner` is the model's."""
        with self._lock:
            self._check_owner(name, owner)
            ids = [entry.share_id for entry in self._of_name(name) if chosen(entry)]
        for share_id in ids:
            self.drop(share_id)
        return ids

    def untold(self) -> list[str]:
        """Dropped sharings whose masks the dealer may still hold."""
        return self._ids.untold()

    def told(self, share_id: str) -> None:
        self._ids.told(share_id)

    def _write(self, entry: Entry) -> None:
        """The caller holds the lock."""
        save_entry(self._root / entry.share_id / "model.json", entry, self._owner(entry.share_id))
        self._entries[entry.share_id] = entry

    @contextlib.contextmanager
    def activating(self, share_id: str) -> Iterator[Entry]:
        """One activation of a sharing at a time, and none where a sharing that was put later serves already: an owner
        who shares twice at once gets the later one, at both parties. Raises ClusterError, UnknownModel."""
        with self._lock:
            entry = self._entry(share_id)
            if entry.active:
                raise ClusterError("this sharing is active already", peer=self.role)
            if share_id in self._activating:
                raise ClusterError("this sharing is being activated", peer=self.role)
            if any(other.active and other.order > entry.order for other in self._of_name(entry.model)):
                raise ClusterError(f"a later sharing of {entry.model} serves already", peer=self.role)
            self._activating.add(share_id)
        try:
            yield entry
        finally:
            with self._lock:
                self._activating.discard(share_id)

    def activate(self, entry: Entry, mask_seed: bytes, channel: Channel) -> None:
        """Open F with the peer, once for this sharing, tensor by tensor, and keep it if the peer activates the same
        one and every message arrived as it was sent (IntegrityError).

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
        save_tensors(home / OPENED, of_kind(wires, True), opened(), owner)
        compare_transcripts(channel, self._party, f"the activation of {entry.share_id}")
        plain = of_kind(wires, False)
        save_tensors(home / "kept.safetensors", plain, (kept[name] for name in plain), owner)
        with self._lock:
            current = self._entries.get(entry.share_id)  # granted meanwhile?
            if current is None:
                raise UnknownModel("the sharing was removed while it was activated", peer=self.role)
            self._write(current.model_copy(update={"active": True}))
        self._forget_share(entry.share_id)
        kept.clear()
        give_back()
        self.weights(entry.share_id)

    def _forget_share(self, share_id: str) -> None:
        """Of a sharing that is active: what was put is not needed any more."""
        for name in ("seed", "shares.safetensors"):
            (self._root / share_id / name).unlink(missing_ok=True)

    def _shares(self, entry: Entry, wires: dict[str, Wire]) -> Iterator[tuple[str, torch.Tensor]]:
        home, owner = self._root / entry.share_id, self._owner(entry.share_id)
        seed = home / "seed"
        if seed.exists():
            return expand(load_seed(seed, owner), wires)
        return load_tensors(home / "shares.safetensors", wires, owner)

    def marks(self, share_id: str) -> dict[str, str]:
        """Of an active sharing's files, see `marks`."""
        return marks(self._root / check_id(share_id))

    def _remember(self, share_id: str, weights: PartyWeights) -> None:
        while len(self._loaded) >= KEPT:
            self._loaded.popitem(last=False)
        self._loaded[share_id] = self._in_use[share_id] = weights

    def weights(self, share_id: str) -> PartyWeights:
        """The weights of an active sharing, from memory or from disk. Who has them keeps them when it is dropped."""
        with self._lock:
            entry = self._entry(share_id)
            if not entry.active:
                raise ClusterError(f"the sharing of {entry.model} was never activated; share the model again")
            weights = self._loaded.get(share_id)
            if weights is None:
                weights = self._in_use.get(share_id) or warm_weights(self._root / share_id, entry, self._party)
                self._remember(share_id, weights)
            self._loaded.move_to_end(share_id)
            return weights

    def drop(self, share_id: str) -> None:
        """Forget a sharing. Its identifier stays used up; on the disk before anything goes."""
        with self._lock:
            self._drop(share_id)

    def _drop(self, share_id: str) -> None:
        """The caller holds the lock."""
        self._ids.drop(share_id)
        self._loaded.pop(share_id, None)
        self._in_use.pop(share_id, None)
        self._entries.pop(share_id, None)
        shutil.rmtree(self._root / check_id(share_id), ignore_errors=True)  # also one that was set aside


def warm_weights(home: Path, entry: Entry, party: int) -> PartyWeights:
    """The same as `load_weights`, ready for jobs."""
    weights = load_weights(home, entry, party)
    weights.warm()
    give_back()  # each matrix was several while it was prepared
    return weights


def load_weights(home: Path, entry: Entry, party: int) -> PartyWeights:
    """What a party keeps of an active sharing, from its directory. Raises DamagedFile."""
    owner, wires = Owner(PARTIES[party], entry.share_id), weights_of(entry.description)
    masked = of_kind(wires, True)
    # A weight under a mask is F and the mask from here on: an empty stand-in takes the place of its share.
    shares = {name: torch.zeros((), dtype=carrier(w.ring)).expand(w.shape) for name, w in masked.items()}
    shares |= dict(load_tensors(home / "kept.safetensors", of_kind(wires, False), owner))
    twice = generates(entry.description)
    weights = PartyWeights(wires, party, load_seed(home / "mask_seed", owner), shares, twice)
    weights.restore(load_tensors(home / OPENED, masked, owner))
    return weights


def marks(home: Path) -> dict[str, str]:
    """By which each file of an active sharing is known again: its start. No other file of a server's has the same, and
    what comes after it is bound to it; so the same mark means the same content, or the file is found to be damaged."""
    found = {}
    for name in ("mask_seed", "kept.safetensors", OPENED):
        with contextlib.suppress(OSError), (home / name).open("rb") as file:
            found[name] = file.read(START).hex()
    return found
