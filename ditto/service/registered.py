"""The coordinator's list of models: which sharing serves a name, and its public description."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from pydantic import Field

from ditto import files
from ditto.errors import BadDescription, JobMismatch, LimitExceeded, NotAllowed, UnknownModel, VersionMismatch
from ditto.models.description import digest_of, parse
from ditto.names import ID, NAME, check_name
from ditto.service.stored import Owner, StoredEntry, readable_entries, save_entry

log = structlog.get_logger()


class Registered(StoredEntry):
    """One model, in a file of its own."""

    model: str = Field(pattern=NAME)
    share_id: str = Field(pattern=ID)
    description: str
    owner: str = Field(min_length=1)  # an identity, as client/alice; the parties have their own word on it
    public: str = Field(default="", pattern=r"^([0-9a-f]{32})?$")  # the file of its public part, if it has one

    def check_meant(self, owner: str, digest: bytes) -> None:
        """Raises JobMismatch where a client took this model for another's, or read another description of it."""
        if owner != self.owner:
            raise JobMismatch(f"the model {self.model} belongs to {self.owner}, not to {owner}", peer="coordinator")
        if digest != digest_of(self.description):
            raise JobMismatch(
                f"the model {self.model} was shared again with another description; ask again", peer="coordinator"
            )


class RegisteredModels:
    """All models by name; any thread may ask."""

    def __init__(self, root: Path) -> None:
        """Takes up what is stored in `root`. What cannot be read, or describes no model of this version, is left out
        and logged: the rest serves."""
        self._root, self._lock = root, threading.Lock()
        files.make_directory(root, 0o700)
        self._models: dict[str, Registered] = {}
        self._opened, self._opening = threading.Condition(self._lock), Counter[tuple[str, str]]()
        self.published: list[str] = []  # public parts that are named here, of what is left out, too
        for entry in readable_entries(sorted(root.glob("*.json")), Registered, lambda path: _owner(path.stem)):
            self.published.append(entry.public)
            try:
                parse(entry.description)
            except (BadDescription, VersionMismatch) as error:
                log.error("model left out", model=entry.model, reason=str(error))
                continue
            self._models[entry.model] = entry

    def __len__(self) -> int:
        return len(self._models)

    def get(self, name: str, client: str) -> Registered:
        """Raises UnknownModel, which names the client's own models and nobody else's."""
        with self._lock:
            entry = self._models.get(name)
        if entry is None:
            known = ", ".join(model.model for model in self.of(client)[:20]) or "none"
            raise UnknownModel(f"no model {name[:100]!r} is shared; yours: {known}", peer="coordinator")
        return entry

    @contextmanager
    def opening(self, name: str, client: str) -> Iterator[Registered]:
        """The same, while the parties open a job on it: see `settle`."""
        self.get(name, client)
        with self._lock:
            entry = self._models.get(name)
            if entry is not None:
                self._opening[name, entry.share_id] += 1
        if entry is None:  # removed in between
            raise UnknownModel(f"no model {name[:100]!r} is shared", peer="coordinator")
        try:
            yield entry
        finally:
            with self._opened:
                self._opening[name, entry.share_id] -= 1
                self._opening += Counter()  # without what is at 0
                self._opened.notify_all()

    def settle(self, entry: Registered, timeout: float) -> None:
        """Wait until no job is being opened on another sharing of this model: none begins to be, once this one serves.
        After `timeout` seconds they are left to themselves: they end, if the other sharing is removed."""
        with self._opened:
            self._opened.wait_for(
                lambda: all(name != entry.model or share == entry.share_id for name, share in self._opening), timeout
            )

    def find(self, name: str) -> Registered | None:
        with self._lock:
            return self._models.get(name)

    def all(self) -> list[Registered]:
        with self._lock:
            return [entry for _, entry in sorted(self._models.items())]

    def of(self, client: str) -> list[Registered]:
        return [entry for entry in self.all() if entry.owner == client]

    def put(self, entry: Registered) -> Registered | None:
        """Let a sharing serve its name; what served it before. Raises NotAllowed if the name is another's."""
        with self._lock:
            self._check(entry.model, entry.owner)
            save_entry(self._root / f"{entry.model}.json", entry, _owner(entry.model))
            before = self._models.get(entry.model)
            self._models[entry.model] = entry
        return before

    def check_owner(self, name: str, client: str, most: int) -> None:
        """May a client share a model of this name? Raises NotAllowed if the name is another's, LimitExceeded if it has
        so many others."""
        with self._lock:
            self._check(name, client)
        others = sum(entry.model != name for entry in self.of(client))
        if others >= most:
            raise LimitExceeded(
                f"coordinator: {client} has {others:,} models; it takes at most {most:,} of one client (max_models)",
                peer="coordinator",
            )

    def _check(self, name: str, client: str) -> None:
        entry = self._models.get(name)
        if entry is not None and entry.owner != client:
            raise NotAllowed(f"the model {name} belongs to {entry.owner}, not to {client}", peer="coordinator")

    def remove(self, name: str, client: str) -> Registered | None:
        """What was there, if anything. Raises NotAllowed if it is another's."""
        with self._lock:
            self._check(name, client)
            (self._root / f"{check_name(name)}.json").unlink(missing_ok=True)
            return self._models.pop(name, None)


def _owner(name: str) -> Owner:
    return Owner("coordinator", name)
