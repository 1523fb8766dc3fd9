"""A local cluster under watch: what its servers take, what they leave on their disks, which keys they expanded."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from benchmarks.traced_server import RECORD
from ditto.client.local_cluster import Cluster
from ditto.errors import DittoError
from ditto.models.compiled import weights_of
from ditto.names import PARTIES, ROLES, SERVERS
from ditto.net.certs import Authority
from ditto.net.config import ClientConfig, CoordinatorConfig, DealerConfig, PartyConfig, ServerConfig, load_config
from ditto.net.identity import Identity
from ditto.service import dealer_service, model_store
from ditto.service.registered import Registered
from ditto.service.share_ids import ShareIds
from ditto.service.storage import storage_of
from ditto.service.stored import Owner, load_entry, load_seed, load_tensors, use

KINDS: dict[str, Any] = {"dealer": DealerConfig, "coordinator": CoordinatorConfig} | dict.fromkeys(PARTIES, PartyConfig)
ACTIVE = {"model.json", "mask_seed", "opened.safetensors", "kept.safetensors"}  # what a party keeps of a sharing
ONCE = {"step", "output", "guard"}  # keys that one server expands at most once


class Usage(NamedTuple):
    """What one process takes at a moment."""

    megabytes: float
    threads: int
    files: int


def usage_of(pid: int) -> Usage:
    process = psutil.Process(pid)
    with process.oneshot():
        return Usage(round(process.memory_info().rss / 2**20, 1), process.num_threads(), process.num_fds())


class Watched(Cluster):
    """Its servers run as traced_server.py starts them; `moved` says by how many seconds each one's clock is off."""

    def prepare(self, changes: dict[str, dict[str, Any]]) -> None:
        """Directories for keys and clocks; `changes` go into the configurations by role."""
        for name in ("recorded", "clocks"):
            (self.root / name).mkdir()
        for role in SERVERS:
            self.move_clock(role, 0)
        for role in ROLES:
            path = self.config_path(role)
            path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes.get(role, {})))

    def move_clock(self, role: str, seconds: float) -> None:
        path = self.root / "clocks" / role
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(struct.pack("<d", seconds))

    def _command(self, role: str) -> list[str]:
        python, *rest = super()._command(role)
        return [python, str(Path(__file__).with_name("traced_server.py")), *rest]

    def _start(self, role: str) -> psutil.Process:
        os.environ |= {"SOAK_KEYS": str(self.root / "recorded"), "SOAK_CLOCK": str(self.root / "clocks" / role)}
        return super()._start(role)

    def pid(self, role: str) -> int:
        return self._pids()[role]

    def add_client(self, name: str) -> Path:
        """Another identity; the configuration of its programs."""
        stem = self.certs / f"client-{name}"
        Authority(self.certs).issue(Identity("client", name), [], stem)
        config = yaml.safe_load(self.config_path("client").read_text())
        config["tls"] |= {"cert": f"{stem}.pem", "key": f"{stem}.key"}
        path = self.configs / f"client-{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def usage(self) -> dict[str, Usage]:
        return {role: usage_of(self.pid(role)) for role in SERVERS}

    def server_config(self, role: str) -> ServerConfig:
        found: ServerConfig = load_config(self.config_path(role), KINDS[role])
        return found


def client_config(path: Path) -> ClientConfig:
    return load_config(path, ClientConfig)


# Keys ---------------------------------------------------------------------------------------------


def used_twice(recorded: Path) -> tuple[int, list[str]]:
    """How many keys were expanded in all, by all servers, and what is wrong with them.

    A key has one name. Of a step's, the dealer and one party have one use each; of an output's or a guard's, each
    party. Weights' masks are the same for all jobs, by design.
    """
    uses: Counter[tuple[str, str, bytes]] = Counter()  # by role, kind and key
    names: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for path in sorted(recorded.iterdir()):
        role, data = path.name.split(".")[0], path.read_bytes()
        for kind, key, name in RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size]):
            uses[role, kind.rstrip(b"\0").decode(errors="replace"), key] += 1
            names[key].add(name)
    wrong = [f"a key with {len(of)} names" for of in names.values() if len(of) > 1]
    wrong += [f"{role} expanded a {kind} key {times} times" for (role, kind, _), times in uses.items()
              if kind in ONCE and times > 1]  # fmt: skip
    steps = Counter(key for (role, kind, key) in uses if kind == "step" and role in PARTIES)
    wrong += ["both parties expanded the key of one step" for times in steps.values() if times > 1]
    return sum(uses.values()), wrong


# Files --------------------------------------------------------------------------------------------


def stored_wrongly(cluster: Watched) -> list[str]:
    """Everything that stopped servers have on their disks, read as they read it: what does not authenticate, is left
    over, or does not fit what the others have."""
    wrong = [f"left over: {path}" for path in (cluster.root / "data").rglob(".*.new")]
    wrong += [f"set aside: {path}" for path in (cluster.root / "data").rglob("*.damaged")]
    reading = _Reading(cluster, wrong)
    dealt = reading.dealer()
    masters = Counter(entry.master for entry in dealt.values())
    wrong += ["one mask seed for two sharings" for times in masters.values() if times > 1]
    held = {role: reading.party(role) for role in PARTIES}
    for role, entries in held.items():
        taken = {path.name for path in (cluster.root / "data" / role / "share_ids").iterdir()}
        for share_id in {*entries, *dealt} - taken:
            wrong.append(f"{role} has not used up the identifier {share_id[:8]}")
        for share_id, entry in entries.items():
            if share_id not in dealt or dealt[share_id].digests.get(role) != entry.share_digest:
                wrong.append(f"the dealer's masks of {share_id[:8]} hide another share of {role}")
    for name, entry in reading.coordinator().items():
        for role, entries in held.items():
            if entry.share_id not in entries:
                wrong.append(f"{role} has no share of {name}, which the coordinator serves")
    return wrong


class _Reading:
    def __init__(self, cluster: Watched, wrong: list[str]) -> None:
        self._cluster, self._wrong = cluster, wrong

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except DittoError as error:
            self._wrong.append(f"{error.code}: {error}")

    def _root(self, role: str) -> Path:
        config = self._cluster.server_config(role)
        use(storage_of(config))
        return config.data_dir / "models"

    def party(self, role: str) -> dict[str, model_store.Entry]:
        found = {}
        root = self._root(role)
        dropped = ShareIds(root.parent / "share_ids", role, each=1 << 20).untold()
        for home in sorted(root.iterdir()):
            owner = Owner(role, home.name)
            with self._noting():
                entry = load_entry(home / "model.json", model_store.Entry, owner)
                inside = {path.name for path in home.iterdir()}
                if not entry.active or inside != ACTIVE or home.name in dropped:
                    self._wrong.append(f"half a sharing: {home}, active: {entry.active}, with {sorted(inside)}")
                    continue
                load_seed(home / "mask_seed", owner)
                wires = weights_of(entry.description)
                for stem, masked in (("opened", True), ("kept", False)):
                    kind = {name: wire for name, wire in wires.items() if (wire.held != "share") == masked}
                    for _ in load_tensors(home / f"{stem}.safetensors", kind, owner):
                        pass
                found[home.name] = entry
        return found

    def dealer(self) -> dict[str, dealer_service.Entry]:
        found = {}
        for path in sorted(self._root("dealer").glob("*.json")):
            with self._noting():
                found[path.stem] = load_entry(path, dealer_service.Entry, Owner("dealer", path.stem))
        return found

    def coordinator(self) -> dict[str, Registered]:
        found = {}
        for path in sorted(self._root("coordinator").glob("*.json")):
            with self._noting():
                found[path.stem] = load_entry(path, Registered, Owner("coordinator", path.stem))
        return found


def asking_command(config: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.asking", str(config)]
