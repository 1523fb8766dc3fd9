"""What servers keep on disk: read back, or an error that names the file; a damaged one stops no server."""

from __future__ import annotations

import itertools
import json
import secrets
import shutil
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ditto.client.messages import chunks
from ditto.engine.channel import MemoryChannel
from ditto.engine.program import Wire
from ditto.engine.sharing import share
from ditto.engine.weights import PartyWeights
from ditto.errors import (
    BadShare,
    ConfigError,
    DamagedFile,
    LimitExceeded,
    ReuseError,
    StorageError,
    UnknownModel,
    UsageError,
)
from ditto.models import random_model
from ditto.models.compiled import weights_of
from ditto.net.config import DealerConfig, Limits, Tls
from ditto.ring.prg import Prg, new_seed
from ditto.service import dealer_service, model_store, share_ids, stored
from ditto.service.model_store import ModelStore
from ditto.service.registered import Registered, RegisteredModels
from ditto.service.storage import START, Storage
from ditto.service.stored import Owner
from ditto.wire import party_pb2

# b and d are of one type; all carriers but one whose integers no program keeps
WIRES = {
    name: Wire(name, ring, 8, shape, 1.0)
    for name, ring, shape in (("a", 24, (2, 3)), ("b", 64, (3,)), ("c", 8, (5,)), ("d", 64, (3,)))
}
Wires = dict[str, Wire]
ME, YOU = Owner("party0", "0" * 32), Owner("party1", "0" * 32)


@pytest.fixture(scope="module", autouse=True, params=["encrypted", "plaintext"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """What one way of storing finds, the other one finds, too: for plaintext, as an accident."""
    before = stored._in_use()
    storage = Storage(secrets.token_bytes(32) if request.param == "encrypted" else None)
    stored.use(storage)
    yield storage
    stored.use(before)


def tensors(wires: Wires = WIRES) -> dict[str, torch.Tensor]:
    return {name: Prg(b"%-16s" % name.encode()).ring(wire.shape, wire.ring) for name, wire in wires.items()}


@pytest.fixture()
def path(tmp_path: Path) -> Path:
    path = tmp_path / "opened.safetensors"
    stored.save_tensors(path, WIRES, tensors().values(), ME)
    return path


def load(path: Path, wires: Wires = WIRES, owner: Owner = ME) -> dict[str, torch.Tensor]:
    return dict(stored.load_tensors(path, wires, owner))


def records_of(path: Path, wires: Wires = WIRES) -> tuple[bytes, dict[str, list[bytes]]]:
    """What stands before a file's tensors, and each one's records, tags included."""
    raw, tag = path.read_bytes(), stored._in_use().tag
    at = START + 8 + int.from_bytes(raw[START : START + 8], "little")
    before, found = raw[:at], {}
    for name, wire in wires.items():
        pieces = [last - first + tag for first, last in stored._pieces(wire)]
        ends = list(itertools.accumulate(pieces, initial=at))
        found[name] = [raw[first:last] for first, last in itertools.pairwise(ends)]
        at = ends[-1]
    assert at == len(raw)
    return before, found


def write(path: Path, before: bytes, records: dict[str, list[bytes]]) -> None:
    path.write_bytes(before + b"".join(itertools.chain(*records.values())))


def test_tensors_come_back(path: Path, storage: Storage) -> None:
    found = load(path)
    assert list(found) == list(WIRES) and path.stat().st_mode & 0o777 == 0o600
    readable = path.read_bytes()
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        assert (tensor.numpy().tobytes() in readable) == (storage._key is None)


def test_the_same_content_is_never_the_same_file(path: Path) -> None:
    before = path.read_bytes()
    stored.save_tensors(path, WIRES, tensors().values(), ME)
    assert path.read_bytes() != before and load(path).keys() == WIRES.keys()


def test_no_tensors(tmp_path: Path) -> None:
    stored.save_tensors(tmp_path / "none", {}, [], ME)
    assert load(tmp_path / "none", {}) == {}


def test_every_flipped_byte_is_an_error(path: Path) -> None:
    raw = path.read_bytes()
    before, records = records_of(path)
    names = [""] * len(before) + [name for name, parts in records.items() for _ in range(len(b"".join(parts)))]
    for place, name in enumerate(names):
        for flip in (0x01, 0x80):
            path.write_bytes(raw[:place] + bytes([raw[place] ^ flip]) + raw[place + 1 :])
            with pytest.raises(DamagedFile, match=f"{path}: {name}"):
                load(path)


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


def test_two_swapped_tensors(path: Path) -> None:
    before, records = records_of(path)
    records["b"], records["d"] = records["d"], records["b"]
    write(path, before, records)
    with pytest.raises(DamagedFile, match=f"{path}: b is not what was stored here"):
        load(path)


@pytest.fixture()
def long(tmp_path: Path) -> tuple[Path, Wires]:
    """Two tensors of several records, the second ends with a record."""
    wires = {name: Wire(name, 8, 0, (n,), 1.0) for name, n in (("x", (2 << 20) + 5), ("y", 3 << 20))}
    stored.save_tensors(tmp_path / "long", wires, tensors(wires).values(), ME)
    return tmp_path / "long", wires


def test_records_of_long_tensors(long: tuple[Path, Wires]) -> None:
    path, wires = long
    assert all(torch.equal(a, b) for a, b in zip(load(path, wires).values(), tensors(wires).values(), strict=True))
    before, records = records_of(path, wires)
    assert [len(parts) for parts in records.values()] == [3, 3]
    for name, (i, j) in itertools.product(wires, ((0, 1), (1, 0))):  # one in the place of another
        parts = list(records[name])
        parts[i] = parts[j]
        write(path, before, records | {name: parts})
        with pytest.raises(DamagedFile, match=f"{path}: {name} is not what was stored here"):
            load(path, wires)
    write(path, before, records | {"y": records["y"][:2]})
    with pytest.raises(DamagedFile, match=f"{path}: y is cut short"):
        load(path, wires)
    write(path, before, records | {"y": records["y"] + records["y"][:1]})
    with pytest.raises(DamagedFile, match=f"{path}: there is more"):
        load(path, wires)


def test_no_record_but_the_last_ends_a_file(long: tuple[Path, Wires]) -> None:
    """Even where a shorter program asks for no more."""
    path, wires = long
    less = {"x": wires["x"]}
    start, records = stored._in_use().begin(stored._count(wires))  # what the longer program would write
    header = records.seal(stored._header(less), ME.context(path))
    data, context = bytes(2 << 20) + b"12345", stored._context(path, wires["x"], "x", ME)
    body = [records.seal(data[first:last], context) for first, last in stored._pieces(wires["x"])]
    path.write_bytes(b"".join([start, len(header).to_bytes(8, "little"), header, *body]))
    with pytest.raises(DamagedFile, match=f"{path}: x is not what was stored here"):
        load(path, less)


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
    with pytest.raises(DamagedFile, match="is not what was stored here"):
        load(path, owner=YOU)
    with pytest.raises(DamagedFile, match="is not what was stored here"):
        load(path.rename(path.with_name("kept.safetensors")))


def test_only_the_right_shapes_are_written(path: Path) -> None:
    with pytest.raises(BadShare, match="a: a share of shape"):
        stored.save_tensors(path, WIRES, (tensor.T for tensor in tensors().values()), ME)
    assert load(path).keys() == WIRES.keys()  # what stood there before


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """Both ways. numpy's memory is traced, torch's is not."""
    size = 8 << 20
    wires = {name: Wire(name, 32, 8, (size // 4,), 1.0) for name in map(str, range(8))}
    whole = torch.ones(size // 4, dtype=torch.int32)
    tracemalloc.start()
    try:
        stored.save_tensors(tmp_path / "large", wires, (whole for _ in wires), ME)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        total = sum(int(tensor.sum()) for _, tensor in stored.load_tensors(tmp_path / "large", wires, ME))
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 8 * size // 4
    # a record as it is, sealed, and one that goes; reading, also the tensor and the one before; 1 MiB for all else
    assert written < 4 << 20 and read < 2 * size + (4 << 20)


def test_a_party_prepares_each_weight_before_the_next_is_read() -> None:
    wires = {name: Wire(name, 32, 8, (64, 64), 1.0, held="matrix") for name in "abcd"}
    shares = {name: torch.zeros((), dtype=torch.int32).expand(64, 64) for name in wires}
    read: list[weakref.ref[torch.Tensor]] = []

    def opened() -> Iterator[tuple[str, torch.Tensor]]:
        for name, wire in wires.items():
            assert not any(earlier() is not None for earlier in read[:-1])
            tensor = Prg(new_seed()).ring(wire.shape, wire.ring)
            read.append(weakref.ref(tensor))
            yield name, tensor

    weights = PartyWeights(wires, 1, new_seed(), dict(shares))
    weights.restore(opened())
    assert len(read) == 4
    with pytest.raises(BadShare, match="masked weight a is missing"):
        PartyWeights(wires, 1, new_seed(), shares).restore([])


# Keys --------------------------------------------------------------------------------------------


def test_another_key_does_not_read_it(path: Path, storage: Storage) -> None:
    stored.save_seed(path.with_name("seed"), new_seed(), ME)
    stored.use(Storage(secrets.token_bytes(32)))
    try:
        with pytest.raises(DamagedFile, match=f"{path}: the header is not what was stored here"):
            load(path)
        with pytest.raises(DamagedFile, match="seed: not the seed that was stored here"):
            stored.load_seed(path.with_name("seed"), ME)
    finally:
        stored.use(storage)


def test_without_a_key_nothing_is_stored(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_storage", None)
    for attempt in (lambda: load(path), lambda: stored.save_seed(path, new_seed(), ME)):
        with pytest.raises(ConfigError, match="DITTO_STORAGE_KEY"):
            attempt()


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
    shares = [c for key, wire in wires.items() for c in chunks(key, wire, share(key, weights[key], wire, seed))]
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


def test_one_owner_has_so_many_models(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a party and at the coordinator; sharing one of them again is no more. So many can be granted one, too."""
    store, description = ModelStore(tmp_path / "party0", 0, Limits(max_models=1)), random_model("bert-tiny", 1, 16)[0]

    def bring(name: str) -> None:
        text = description.model_copy(update={"name": name}).text()
        header = party_pb2.ModelHeader(model=name, share_id=secrets.token_hex(16), description=text, seed=new_seed())
        store.put(iter([party_pb2.PutModelRequest(header=header)]), "client/alice")

    for _ in range(2):
        bring("tiny")
    with pytest.raises(LimitExceeded, match=r"client/alice has 1 models; .*max_models"):
        bring("other")
    monkeypatch.setattr(model_store, "GRANTS", 2)
    for name in ("bob", "carol", "bob"):
        store.grant("tiny", "client/alice", f"client/{name}", revoke=False)
    with pytest.raises(LimitExceeded, match="granted to 2 clients"):
        store.grant("tiny", "client/alice", "client/dave", revoke=False)

    listed = RegisteredModels(tmp_path / "coordinator")
    listed.put(Registered(model="tiny", share_id="0" * 32, description=description.text(), owner="client/alice"))
    listed.check_owner("tiny", "client/alice", 1)
    listed.check_owner("other", "client/bob", 1)
    with pytest.raises(LimitExceeded, match="max_models"):
        listed.check_owner("other", "client/alice", 1)


@pytest.fixture(scope="module")
def shared(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
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
        "model.json", "mask_seed", "opened.safetensors", "kept.safetensors",
    }  # fmt: skip
    store = ModelStore(home.parents[1], 1)
    assert [entry.share_id for entry in store.entries()] == sorted(shared[1])
    assert store.weights(home.name).wires


@pytest.mark.parametrize("name", ["mask_seed", "opened.safetensors", "kept.safetensors"])
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


def test_what_a_killed_activation_left_goes(home: Path, shared: tuple[Path, list[str]]) -> None:
    """Killed between the last two steps: the sharing is active, and what was put is still there."""
    for name in ("seed", "shares.safetensors"):
        (home / name).write_bytes(b"share")
    assert ModelStore(home.parents[1], 1).weights(home.name)
    names = {"model.json", "mask_seed", "opened.safetensors", "kept.safetensors"}
    assert {path.name for path in home.iterdir()} == names


def test_a_full_disk_stops_no_party_that_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a sharing that was never activated, and cannot write down that it is dropped; its identifier stays used. A
    new one's cannot be written down, and nothing is taken."""
    found, _, _ = random_model("bert-tiny", 1, 16)

    def put(store: ModelStore, share_id: str) -> None:
        header = party_pb2.ModelHeader(model="tiny", share_id=share_id, description=found.text(), seed=new_seed())
        store.put(iter([party_pb2.PutModelRequest(header=header)]), "client/alice")

    put(ModelStore(tmp_path, 0), "0" * 32)

    def full(path: Path, *_: object) -> None:
        raise StorageError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(share_ids.files, "write", full)
        again = ModelStore(tmp_path, 0)
        assert again.entries() == []
        with pytest.raises(StorageError, match="No space left"):
            put(again, "1" * 32)
        assert not (tmp_path / "models" / ("1" * 32)).exists()
    with pytest.raises(ReuseError):
        put(again, "0" * 32)
    assert ModelStore(tmp_path, 0).untold() == ["0" * 32]


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
    good = (directory / f"{ids[1]}.json").read_bytes()
    (directory / f"{ids[0]}.json").write_bytes(good[: len(good) // 2])
    (directory / f"{ids[2]}.json").write_bytes(good)  # another sharing's
    (directory / f"{ids[3]}.json").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    wrong, context = {"model": "model-e", "description": "{}", "master": master[:-1]}, Owner("dealer", ids[4])
    path = directory / f"{ids[4]}.json"
    path.write_bytes(stored._in_use().seal(json.dumps(wrong).encode(), context.context(path)))
    service = dealer_service.DealerService(config)
    assert service._known == {ids[1]: "model-b", ids[5]: "model-f"}
    assert service._entry(ids[1]).master == service._entry(ids[5]).master == master
    for share_id in (ids[0], *ids[2:5]):
        assert (directory / f"{share_id}.json.damaged").exists()
        with pytest.raises(UnknownModel):
            service._entry(share_id)
    assert len(said) == 4 and not any(master[:-1] in text for text in said)
    (directory / f"{ids[1]}.json").write_bytes(good[1:])  # while it serves
    with pytest.raises(DamagedFile, match=ids[1]):
        service._entry(ids[1])
    assert master not in repr(service._entry(ids[5]))
