"""Another storage key: whatever moment the change is killed at, it is finished later, and no server starts before."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import small_model
from typer.testing import CliRunner

from ditto.cli import app
from ditto.engine.channel import MemoryChannel
from ditto.engine.sharing import share
from ditto.errors import ClusterError, ConfigError, UsageError
from ditto.models.compiled import weights_of
from ditto.net.config import DealerConfig, PartyConfig, ServerConfig, load_config
from ditto.ring import pack
from ditto.ring.prg import new_seed
from ditto.service import model_store, recordings, rekey, stored
from ditto.service.dealer_service import Entry as Masks
from ditto.service.model_store import ModelStore
from ditto.service.process import alone
from ditto.service.share_ids import ShareIds
from ditto.service.storage import Storage, storage_of
from ditto.service.stored import PIECE, Owner, load_entry, load_stream, save_entry, save_stream
from ditto.wire import party_pb2

ID = secrets.token_hex(16)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_storage", None)


def configured(directory: Path, role: str, **fields: Any) -> ServerConfig:
    tls = {"ca": "ca.pem", "cert": "x.pem", "key": "x.key"}
    given = {"role": role, "listen": "127.0.0.1:0", "data_dir": role, "tls": tls, "storage_key": "old.key"} | fields
    path = directory / f"{role}.yaml"
    path.write_text(yaml.safe_dump(given))
    for name in ("old.key", "new.key"):
        if not (directory / name).exists():
            (directory / name).write_text(secrets.token_hex(32) + "\n")
    return load_config(path, DealerConfig) if role == "dealer" else load_config(path, PartyConfig)


def put(store: ModelStore, share_id: str, text: str, weights: dict[str, torch.Tensor]) -> Any:
    header = party_pb2.ModelHeader(model="m", share_id=share_id, description=text)
    parts = [party_pb2.PutModelRequest(header=header)]
    for name, wire in weights_of(text).items():
        data = _packed(name, wire, share(name, weights[name], wire, new_seed()))
        parts.append(party_pb2.PutModelRequest(chunk=data))
    return store.put(iter(parts), "client/alice")


def _packed(name: str, wire: Any, tensor: torch.Tensor) -> party_pb2.TensorChunk:
    data = pack(tensor, wire.ring)
    return party_pb2.TensorChunk(name=name, ring=wire.ring, shape=wire.shape, offset=0, total=len(data), data=data)


@pytest.fixture(scope="module")
def model() -> tuple[str, dict[str, torch.Tensor]]:
    return small_model()


@pytest.fixture()
def party(tmp_path: Path, model: tuple[str, dict[str, torch.Tensor]]) -> ServerConfig:
    """Party 1's directory under the old key: a sharing that is active, and one that was dropped."""
    config = configured(tmp_path, "party1")
    stored.use(storage_of(config))
    store = ModelStore(config.data_dir, 1)
    entry = put(store, ID, *model)

    class Mirror(MemoryChannel):
        """A peer that sends what it gets: what is opened is of no matter here."""

        def exchange(self, label: str, payload: bytes) -> bytes:
            return bytes(payload)

    mine, _ = MemoryChannel.pair()
    mirror = Mirror.__new__(Mirror)
    mirror.__dict__ = mine.__dict__
    store.activate(entry, new_seed(), mirror)
    store.drop(put(store, secrets.token_hex(16), *model).share_id)
    return config


def content(config: ServerConfig, storage: Storage) -> dict[str, bytes]:
    """What a party would compute with: F and shares of the active sharing, and whose it is."""
    stored.use(storage)
    store = ModelStore(config.data_dir, 1)
    (entry,) = store.entries()
    weights = store.weights(entry.share_id)
    found = {"entry": entry.model_dump_json().encode()}
    for name in weights.wires:
        weight = weights[name]
        parts = weight if isinstance(weight, torch.Tensor) else torch.zeros(0)
        found[name] = parts.numpy().tobytes() + repr(weight)[:40].encode()
    return found


CHILD = """
import os, signal, sys
from pathlib import Path
import ditto.files as files
from ditto.net.config import PartyConfig, load_config
from ditto.service.rekey import change_key
config, key = load_config(Path(sys.argv[1]), PartyConfig), Path(sys.argv[2])
while True:  # a child that is killed before its n-th file takes its place
    pid = os.fork()
    if pid == 0:
        count, replace = 0, Path.replace
        def counted(self, target):
            global count
            count += 1
            if count == int(sys.argv[3]):
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)
        Path.replace = counted
        change_key(config, key)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print(status, file=sys.stderr, flush=True)  # logs go to the other one
    sys.stdin.readline()
    if status == 0:
        break
"""


def test_killed_at_every_file(party: ServerConfig, model: tuple[str, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """Each try is killed before its second file takes its place, so that each gets one file further."""
    config, old, new = party, storage_of(party), tmp_path / "new.key"
    before = content(config, old)
    put(ModelStore(config.data_dir, 1), secrets.token_hex(16), *model)  # and one that only arrived
    record = config.data_dir / recordings.DIRECTORY / f"{'1' * 32}.party1"
    record.parent.mkdir()
    pieces, recorder = [bytes(PIECE), b"the end"], Owner("party1", "1" * 32)
    save_stream(record, pieces, recorder)
    path = config.data_dir.parent / "party1.yaml"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(new), "2"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin and child.stderr
    kills = 0
    with child:
        while (status := int(child.stderr.readline())) != 0:
            assert status == 9
            kills += 1
            for key in ("old.key", "new.key"):
                with pytest.raises(ConfigError, match="was begun"):
                    storage_of(config.model_copy(update={"storage_key": tmp_path / key}))
            child.stdin.write("\n")
            child.stdin.flush()
        child.stdin.write("\n")
    # four files of one sharing, two of the other, three identifiers and a note that one was dropped, the recording, the
    # witness
    assert kills == 12
    with pytest.raises(ConfigError, match="under another key"):
        storage_of(config)
    after = config.model_copy(update={"storage_key": new})
    sealed = [path for path in config.data_dir.rglob("*") if path.is_file() and Storage.sealed(path)]
    for path in sealed:  # nothing is left that the old key opens
        if path.name != "storage":
            in_file = path.parent.name in (model_store.SHARE_IDS, recordings.DIRECTORY)
            owner = Owner("party1", path.name.removesuffix(".party1") if in_file else path.parent.name)
            assert stored.is_under(path, owner, storage_of(after), stream=path == record), path
            assert not stored.is_under(path, owner, old, stream=path == record), path
    assert len(sealed) == 12 and not [*config.data_dir.rglob("*.new")]
    stored.use(storage_of(after))
    assert b"".join(load_stream(record, recorder)) == b"".join(pieces)
    assert ShareIds(config.data_dir / model_store.SHARE_IDS, "party1", each=9)._count == {"client/alice": 3}
    assert content(config, storage_of(after)) == before


def test_the_dealers_seeds_and_the_command(tmp_path: Path) -> None:
    config = configured(tmp_path, "dealer")
    stored.use(storage_of(config))
    master = secrets.token_hex(16)
    path = config.data_dir / "models" / f"{ID}.json"
    path.parent.mkdir()
    save_entry(path, Masks(model="m", description="x", master=master), Owner("dealer", ID))
    (path.parent / "broken.json").write_bytes(path.read_bytes()[:60])
    (path.parent / f"{secrets.token_hex(16)}.party0.dropped").touch()
    asked = ["keys", "rotate", "--config", str(tmp_path / "dealer.yaml"), "--new-key", str(tmp_path / "new.key")]
    with alone(config):
        found = CliRunner().invoke(app, asked)
        assert found.exit_code == ClusterError.exit_code and "stop it first" in found.stderr
    found = CliRunner().invoke(app, [*asked, "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == {"role": "dealer", "files": 1, "left": [str(path.parent / "broken.json")]}
    stored.use(storage_of(config.model_copy(update={"storage_key": tmp_path / "new.key"})))
    assert load_entry(path, Masks, Owner("dealer", ID)).master == master


def test_what_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, "dealer")
    other = tmp_path / "other.key"
    other.write_text(secrets.token_hex(32))
    with pytest.raises(ConfigError, match="nothing of a server"):
        rekey.change_key(config, other)
    storage_of(config)
    with pytest.raises(UsageError, match="in use"):
        rekey.change_key(config, tmp_path / "old.key")
    with pytest.raises(ConfigError, match="under another key"):  # the configuration's is not the directory's
        rekey.change_key(config.model_copy(update={"storage_key": other}), tmp_path / "new.key")
    with pytest.raises(UsageError, match="plaintext"):
        rekey.change_key(configured(tmp_path, "party0", storage="plaintext", storage_key=None), other)
    # begun with one key, not to be finished with another
    new = Storage(bytes.fromhex((tmp_path / "new.key").read_text()))
    (config.data_dir / "storage.changing").write_bytes(new.seal(b"ditto", b"dealer"))
    with pytest.raises(ConfigError, match="under another key"):
        rekey.change_key(config, other)
    rekey.change_key(config, tmp_path / "new.key")
    storage_of(config.model_copy(update={"storage_key": tmp_path / "new.key"}))
