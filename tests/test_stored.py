"""What servers keep on disk: read back, or an error that names the file; a damaged one stops no server."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from ditto.client.client import _chunks
from ditto.engine.channel import MemoryChannel
from ditto.engine.program import Wire
from ditto.engine.sharing import share
from ditto.errors import BadShare, DamagedFile, UnknownModel, UsageError
from ditto.models import random_model
from ditto.models.compiled import weights_of
from ditto.net.config import DealerConfig, Tls
from ditto.ring.prg import Prg, new_seed
from ditto.service import dealer_service, stored
from ditto.service.model_store import ModelStore
from ditto.service.stored import Owner
from ditto.wire import party_pb2

# b and d are of one type; all carriers but one whose integers no program keeps
WIRES = {
    name: Wire(name, ring, 8, shape, 1.0)
    for name, ring, shape in (("a", 24, (2, 3)), ("b", 64, (3,)), ("c", 8, (5,)), ("d", 64, (3,)))
}
Wires = dict[str, Wire]
ME, YOU = Owner("party0", "0" * 32), Owner("party1", "0" * 32)


def tensors(wires: Wires = WIRES) -> dict[str, torch.Tensor]:
    return {name: Prg(b"%-16s" % name.encode()).ring(wire.shape, wire.ring) for name, wire in wires.items()}


@pytest.fixture()
def path(tmp_path: Path) -> Path:
    path = tmp_path / "masked.safetensors"
    stored.save_tensors(path, WIRES, tensors().values(), ME)
    return path


def load(path: Path, wires: Wires = WIRES, owner: Owner = ME) -> dict[str, torch.Tensor]:
    return dict(stored.load_tensors(path, wires, owner))


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header, and its data."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def write(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_tensors_come_back(path: Path) -> None:
    found = load(path)
    assert list(found) == list(WIRES) and path.stat().st_mode & 0o777 == 0o600
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    others = load_file(path)  # any reader of the format understands it
    assert all(torch.equal(others[name], tensor) for name, tensor in tensors().items())


def test_no_tensors(tmp_path: Path) -> None:
    stored.save_tensors(tmp_path / "none", {}, [], ME)
    assert load(tmp_path / "none", {}) == {}


def test_every_flipped_byte_is_an_error(path: Path) -> None:
    raw = path.read_bytes()
    header, _ = header_of(path)
    begin = 8 + int.from_bytes(raw[:8], "little")
    for place in range(len(raw)):
        for flip in (0x01, 0x29, 0xFF):  # 0x29 makes a tab of a space, which JSON would not mind
            path.write_bytes(raw[:place] + bytes([raw[place] ^ flip]) + raw[place + 1 :])
            with pytest.raises(DamagedFile, match=str(path)) as caught:
                load(path)
            for name in WIRES:
                first, last = header[name]["data_offsets"]
                if begin + first <= place < begin + last:
                    assert f"{path}: {name} " in str(caught.value)


def test_every_cut_is_an_error(path: Path) -> None:
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(DamagedFile, match=str(path)):
            load(path)
    path.write_bytes(raw[:-1])
    with pytest.raises(DamagedFile, match=f"{path}: d is cut short"):
        load(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(DamagedFile, match=f"{path}: there is more"):
        load(path)
    path.unlink()
    with pytest.raises(DamagedFile, match=f"{path}: cannot be read: No such file"):
        load(path)


@pytest.mark.parametrize("digests", [False, True])
def test_two_swapped_names(path: Path, digests: bool) -> None:
    """With their places and, as a careful hand would, with their digests."""
    header, data = header_of(path)
    header["b"], header["d"] = header["d"], header["b"]
    if digests:
        found = header["__metadata__"]
        found["b"], found["d"] = found["d"], found["b"]
    write(path, header, data)
    with pytest.raises(DamagedFile, match=f"{path}: b is stored as"):
        load(path)


@pytest.mark.parametrize("digests", [False, True])
def test_two_swapped_tensors(path: Path, digests: bool) -> None:
    header, data = header_of(path)
    (b, c), (d, e) = header["b"]["data_offsets"], header["d"]["data_offsets"]
    if digests:
        found = header["__metadata__"]
        found["b"], found["d"] = found["d"], found["b"]
    write(path, header, data[:b] + data[d:e] + data[c:d] + data[b:c])
    with pytest.raises(DamagedFile, match=f"{path}: b is not what was stored here"):
        load(path)


OTHER_PROGRAMS = {
    "order": (dict(reversed(WIRES.items())), "a is in the place of d"),
    "order of one type": ({name: WIRES[name] for name in "adcb"}, "b is in the place of d"),
    "fewer": ({name: WIRES[name] for name in "abc"}, "d is no tensor of this program"),
    "more": (WIRES | {"e": WIRES["d"]}, "e is missing"),
    "another name": ({name.replace("c", "x"): wire for name, wire in WIRES.items()}, "x is missing"),
    "shape": (WIRES | {"a": replace(WIRES["a"], shape=(3, 2))}, "a is stored as"),
    "carrier": (WIRES | {"a": replace(WIRES["a"], ring=64)}, "a is stored as"),
    "ring": (WIRES | {"a": replace(WIRES["a"], ring=32)}, "a is not what was stored here"),
    "fraction bits": (WIRES | {"c": replace(WIRES["c"], frac=7)}, "c is not what was stored here"),
}


@pytest.mark.parametrize("case", OTHER_PROGRAMS)
def test_another_program_does_not_read_it(case: str, path: Path) -> None:
    wires, complaint = OTHER_PROGRAMS[case]
    with pytest.raises(DamagedFile, match=f"{path}: {complaint}"):
        load(path, wires)


def test_another_owner_or_place_does_not_read_it(path: Path) -> None:
    with pytest.raises(DamagedFile, match="a is not what was stored here"):
        load(path, owner=YOU)
    with pytest.raises(DamagedFile, match="a is not what was stored here"):
        load(path.rename(path.with_name("kept.safetensors")))


def test_only_the_right_shapes_are_written(path: Path) -> None:
    with pytest.raises(BadShare, match="a: a share of shape"):
        stored.save_tensors(path, WIRES, (tensor.T for tensor in tensors().values()), ME)
    assert load(path).keys() == WIRES.keys()  # what stood there before


def test_reading_takes_no_memory_before_it_is_used(tmp_path: Path) -> None:
    wires = {name: Wire(name, 32, 8, (1 << 20,), 1.0) for name in map(str, range(16))}
    path = tmp_path / "large"
    stored.save_tensors(path, wires, (torch.ones(1 << 20, dtype=torch.int32) for _ in wires), ME)
    process = psutil.Process()
    before = process.memory_info().rss
    found = load(path, wires)
    checked = process.memory_info().rss
    assert sum(int(tensor.sum()) for tensor in found.values()) == 16 << 20
    used = process.memory_info().rss
    assert checked - before < 16 << 20 < used - checked  # of 64 MiB; neither bound is derived


# Seeds -------------------------------------------------------------------------------------------


def test_seeds(tmp_path: Path) -> None:
    path, seed = tmp_path / "mask_seed", new_seed()
    stored.save_seed(path, seed, ME)
    assert stored.load_seed(path, ME) == seed and path.stat().st_mode & 0o777 == 0o600
    raw = path.read_bytes()
    wrong = [raw[:length] for length in range(len(raw))] + [raw + b"\0"]
    wrong += [raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :] for place in range(len(raw))]
    for data in wrong:
        path.write_bytes(data)
        with pytest.raises(DamagedFile, match=f"{path}: not the seed"):
            stored.load_seed(path, ME)
    path.write_bytes(raw)
    with pytest.raises(DamagedFile, match="not the seed"):
        stored.load_seed(path, YOU)
    with pytest.raises(DamagedFile, match="not the seed"):
        stored.load_seed(path.rename(tmp_path / "seed"), ME)
    for length in (0, 15, 17, 48):
        with pytest.raises(BadShare, match=f"a seed of {length} bytes"):
            stored.save_seed(path, bytes(length), ME)


# A party's store ---------------------------------------------------------------------------------


def put(stores: list[ModelStore], name: str) -> str:
    """Share a small random model between two stores, and activate it; returns the sharing's identifier."""
    description, weights, _ = random_model("bert-tiny", 1, 16)
    text = description.model_copy(update={"name": name}).text()
    share_id, seed = secrets.token_hex(16), new_seed()
    wires = weights_of(text)
    seeded, packed = (party_pb2.ModelHeader(model=name, share_id=share_id, description=text) for _ in range(2))
    seeded.seed = seed
    shares = [c for key, wire in wires.items() for c in _chunks(key, wire, share(key, weights[key], wire, seed))]
    messages = ({"header": packed}, *({"chunk": chunk} for chunk in shares))
    entries = [
        stores[0].put(iter([party_pb2.PutModelRequest(header=seeded)]), "client/alice"),
        stores[1].put((party_pb2.PutModelRequest(**message) for message in messages), "client/alice"),
    ]
    threads = [
        threading.Thread(target=store.activate, args=(entry, new_seed(), channel))
        for store, entry, channel in zip(stores, entries, MemoryChannel.pair(), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return share_id


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The directory of two parties, and two sharings that both have."""
    root = tmp_path_factory.mktemp("parties")
    stores = [ModelStore(root / f"party{party}", party) for party in (0, 1)]
    return root, [put(stores, name) for name in ("tiny", "other")]


@pytest.fixture()
def home(shared: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """In a copy of party 1's directory, the first sharing's."""
    root, ids = shared
    shutil.copytree(root / "party1", tmp_path / "party1")
    return tmp_path / "party1" / "models" / ids[0]


def test_a_restarted_party_has_its_weights(home: Path, shared: tuple[Path, list[str]]) -> None:
    assert {path.name for path in home.iterdir()} == {
        "model.json", "mask_seed", "masked.safetensors", "kept.safetensors",
    }  # fmt: skip
    store = ModelStore(home.parents[1], 1)
    assert [entry.share_id for entry in store.entries()] == sorted(shared[1])
    assert store.weights(home.name).wires


@pytest.mark.parametrize("name", ["mask_seed", "masked.safetensors", "kept.safetensors"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "party 0's"])
def test_a_party_names_what_is_damaged(name: str, harm: str, home: Path, shared: tuple[Path, list[str]]) -> None:
    path = home / name
    raw = bytearray(path.read_bytes())
    if harm == "flip":
        raw[-1] ^= 1
        path.write_bytes(raw)
    elif harm == "cut":
        path.write_bytes(raw[:-1])
    elif harm == "gone":
        path.unlink()
    else:  # for the masked weights, what both have in common; still not this party's file
        shutil.copyfile(shared[0] / "party0" / "models" / shared[1][0] / name, path)
    store = ModelStore(home.parents[1], 1)
    with pytest.raises(DamagedFile, match=f"party1: {path}: ") as caught:
        store.weights(home.name)
    assert caught.value.peer == "party1"


def test_an_empty_mask_seed_is_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, 0)
    found, _, _ = random_model("bert-tiny", 1, 16)
    header = party_pb2.ModelHeader(model="tiny", share_id="0" * 32, description=found.text(), seed=new_seed())
    entry = store.put(iter([party_pb2.PutModelRequest(header=header)]), "client/alice")
    with pytest.raises(BadShare, match="a seed of 0 bytes"):
        store.activate(entry, b"", MemoryChannel.pair()[0])
    header.share_id, header.seed = "1" * 32, b"short"
    with pytest.raises(BadShare, match="a seed of 5 bytes"):
        store.put(iter([party_pb2.PutModelRequest(header=header)]), "client/alice")
    header.model = "x" * 65
    with pytest.raises(UsageError, match="at most 64"):
        store.put(iter([party_pb2.PutModelRequest(header=header)]), "client/alice")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null", b"{}"])
def test_a_damaged_entry_stops_no_party(content: bytes, home: Path, shared: tuple[Path, list[str]]) -> None:
    other = shared[1][1]
    (home / "model.json").write_bytes(content)
    store = ModelStore(home.parents[1], 1)
    assert [entry.share_id for entry in store.entries()] == [other] and store.weights(other)
    with pytest.raises(UnknownModel):
        store.weights(home.name)
    assert (home / "model.json.damaged").read_bytes() == content
    store.drop(home.name)  # as when the model was shared again
    assert not home.exists()


# The dealer's store ------------------------------------------------------------------------------


@pytest.fixture()
def config(tmp_path: Path) -> DealerConfig:
    nowhere = Tls(ca=tmp_path / "ca.pem", cert=tmp_path / "dealer.pem", key=tmp_path / "dealer.key")
    return DealerConfig(listen="127.0.0.1:0", tls=nowhere, data_dir=tmp_path)


def test_a_damaged_entry_stops_no_dealer(config: DealerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(stored, "log", SimpleNamespace(error=lambda *text, **fields: said.append(f"{text} {fields}")))
    directory = dealer_service.DealerService(config)._dir
    ids = [digit * 32 for digit in "abcdef"]
    master = new_seed().hex()
    for share_id in ids:
        entry = dealer_service.Entry(model=f"model-{share_id[0]}", description="{}", master=master)
        stored.save_entry(directory / f"{share_id}.json", entry, Owner("dealer", share_id))
    good = (directory / f"{ids[1]}.json").read_text()
    (directory / f"{ids[0]}.json").write_text(good[: len(good) // 2])
    (directory / f"{ids[2]}.json").write_text(good)  # another sharing's
    flipped = master.replace(master[0], "0" if master[0] != "0" else "1", 1)
    (directory / f"{ids[3]}.json").write_text(good.replace("model-b", "model-d").replace(master, flipped))
    (directory / f"{ids[4]}.json").write_text(good.replace(master, master[:-1]))
    service = dealer_service.DealerService(config)
    assert service._known == {ids[1]: "model-b", ids[5]: "model-f"}
    assert service._entry(ids[1]).master == service._entry(ids[5]).master == master
    for share_id in (ids[0], *ids[2:5]):
        assert (directory / f"{share_id}.json.damaged").exists()
        with pytest.raises(UnknownModel):
            service._entry(share_id)
    assert len(said) == 4 and not any(seed in text for text in said for seed in (master[:-1], flipped[:-1]))
    (directory / f"{ids[1]}.json").write_text(good[1:])  # while it serves
    with pytest.raises(DamagedFile, match=ids[1]):
        service._entry(ids[1])
    assert master not in repr(service._entry(ids[5]))
