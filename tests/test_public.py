"""What is public of a model: whoever is granted it asks with nothing but a configuration, and believes its owner alone.
Some 30 s of CPU, of which the start of a cluster and of one server again are half."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tiny import small_shapes
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner
from world import issue

from ditto.cli import app
from ditto.client import store
from ditto.client.client import Client
from ditto.client.local_cluster import Cluster, embedded
from ditto.client.public import fetch
from ditto.client.publication import Registration, SharedModel, with_files
from ditto.errors import (
    CertificateError,
    DittoError,
    IntegrityError,
    JobMismatch,
    LimitExceeded,
    NotAllowed,
    PeerAbsent,
    UnknownModel,
    UsageError,
)
from ditto.models import Description, describe, encode_weights, random, random_model
from ditto.models.random import random_checkpoint
from ditto.models.tokenizer_files import published
from ditto.net.certs import Authority, Wanted, init_certs
from ditto.net.config import ClientConfig, CoordinatorConfig, Tls
from ditto.net.identity import Identity
from ditto.net.signed import PREFIX, Trust, check_signature
from ditto.service import stored
from ditto.service.parties_view import PartiesView
from ditto.service.public_parts import PublicParts
from ditto.service.registered import Registered
from ditto.service.rekey import change_key
from ditto.service.storage import Storage, storage_of
from ditto.wire import control_pb2

SPECIAL = "[PAD] [UNK] [CLS] [SEP] [MASK]".split()
WORDS = [*SPECIAL, *"the a cat dog sat ran on under mat tree and red green .".split()]


def word_pieces(directory: Path, words: list[str] = WORDS) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", "_name_or_path": "/home/alice/secret"}))
    return directory


def whole_words(directory: Path) -> Path:
    """A tokenizer.json, for a GPT-2 of 64 words."""
    directory.mkdir()
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def shapes() -> Iterator[dict[str, tuple[Description, dict[str, torch.Tensor]]]]:
    with pytest.MonkeyPatch.context() as patch:
        small_shapes(patch, 16)
        found = {name: random_model(name, 1, 16)[:2] for name in ("bert", "gpt2")}
        description, arranged = describe(
            random_checkpoint("bert", 1, 0), "p", [random.random_batch(1, 16)], "ditto", "public"
        )
        yield found | {"public": (description, encode_weights(description, arranged.tensors))}


# With a cluster ----------------------------------------------------------------------------------


@dataclass
class Clients:
    cluster: Cluster
    root: Path
    configs: dict[str, ClientConfig] = field(default_factory=dict)

    def add(self, name: str) -> None:
        config = self.cluster.client_config()
        self.configs[name] = config.model_copy(update={"tls": issue(self.cluster, name)})
        raw = {"role": "client", "peers": config.peers.model_dump()}
        raw["tls"] = {key: str(path) for key, path in self.configs[name].tls if path is not None}
        (self.root / f"{name}.yaml").write_text(yaml.safe_dump(raw))

    def client(self, name: str) -> Client:
        return Client(self.configs[name])

    def run(self, name: str, *args: str, code: int = 0) -> tuple[Any, str]:
        """A command in a client's own home."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DITTO_HOME", str(self.root / name))
            patch.setenv("DITTO_CONFIG", str(self.root / f"{name}.yaml"))
            result = CliRunner().invoke(app, [*args, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if result.stdout else None, result.stderr

    def imported(self, name: str, model: tuple[Description, dict[str, torch.Tensor]], files: Path) -> store.StoredModel:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DITTO_HOME", str(self.root / "alice"))
            return store.save(model[0].model_copy(update={"name": name}), model[1], files)

    def parts(self) -> set[str]:
        return {path.name for path in (self.cluster.root / "data" / "coordinator" / "public").iterdir()}


@pytest.fixture(scope="module")
def clients(shapes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """Alice's encoder `m` and GPT-2 `g`, shared and granted to bob; mallory has a certificate."""
    with embedded() as cluster:
        found = Clients(cluster, tmp_path_factory.mktemp("clients"))
        for name in ("alice", "bob", "mallory"):
            found.add(name)
        found.imported("m", shapes["bert"], word_pieces(found.root / "words"))
        found.imported("g", shapes["gpt2"], whole_words(found.root / "whole"))
        for name in ("m", "g"):
            found.run("alice", "model", "share", name)
            found.run("alice", "model", "grant", name, "--to", "bob")
        yield found


def test_whoever_is_granted_asks(clients: Clients) -> None:
    texts = ["--text", "the cat sat on the mat .", "--text", "a red dog"]
    mine, theirs = (clients.run(who, "infer", "--model", "m", *texts)[0] for who in ("alice", "bob"))
    assert theirs["owner"] == "client/alice" and len(theirs["output"]) == 2
    for a, b in zip(mine["output"], theirs["output"], strict=True):
        assert a == pytest.approx(b, abs=0.05)
    assert mine["output"][0] != pytest.approx(mine["output"][1], abs=0.05), "another text has another answer"
    (kept,) = (clients.root / "bob" / "public").iterdir()
    assert {path.name for path in (kept / "tokenizer").iterdir()} == {"vocab.txt", "config.json"}
    assert "secret" not in (kept / "tokenizer" / "config.json").read_text()
    shown = clients.run("bob", "model", "show", "m")[0]
    assert (shown["digest"], shown["owner"], shown["imported"]) == (kept.name, "client/alice", None)
    assert not (clients.root / "bob" / "models").exists()


def test_whoever_is_granted_generates(clients: Clients) -> None:
    """In floats the likeliest tokens lead by 0.05 and 0.12; roundings move a logit by some thousandths."""
    how = ["generate", "--model", "g", "--prompt", "the cat sat on", "--max-new-tokens", "2"]
    mine, theirs = (clients.run(who, *how)[0] for who in ("alice", "bob"))
    assert theirs["owner"] == "client/alice" and theirs["output_tokens"] == mine["output_tokens"]


def test_evaluates(clients: Clients, tmp_path: Path) -> None:
    task = tmp_path / "texts.csv"
    task.write_text("text,text2,label\nthe cat sat,a cat,1.0\nthe dog ran,a tree,0.0\nred mat,green mat,0.5\n")
    found = clients.run("bob", "evaluate", "--task", str(task), "--model", "m", "--mode", "mpc")[0]
    assert found["finished"] and found["results"]


def test_who_was_not_granted_gets_nothing(clients: Clients) -> None:
    assert "granted" in clients.run("mallory", "infer", "--model", "m", "--text", "a cat", code=31)[1]
    with clients.client("mallory") as mallory, pytest.raises(NotAllowed):
        next(mallory.public_part("m"))
    with clients.client("mallory") as mallory, pytest.raises(UnknownModel):
        next(mallory.public_part("absent"))


def test_what_takes_the_checkpoint_says_so(clients: Clients, shapes: dict[str, Any]) -> None:
    clients.imported("p", shapes["public"], clients.root / "words")
    clients.run("alice", "model", "share", "p")
    clients.run("alice", "model", "grant", "p", "--to", "bob")
    said = clients.run("bob", "infer", "--model", "p", "--text", "a cat", code=2)[1]
    assert "public embeddings take its checkpoint" in said
    for args in (["infer", "--model", "m", "--text"], ["generate", "--model", "g", "--prompt"]):
        assert "client/alice is not imported here" in clients.run("bob", *args, "a cat", "--check", code=2)[1]


def test_another_version_is_never_asked_with_stale_files(clients: Clients, shapes: dict[str, Any]) -> None:
    """The same weights with the words in another order: only the tokenizer tells the versions apart."""
    ask = ["infer", "--model", "m", "--text", "the cat sat on the mat ."]
    before = clients.run("bob", *ask)[0]["output"]
    with clients.client("bob") as bob:
        stale = fetch(bob, "m", clients.root / "bob" / "public")
    parts = clients.parts()
    clients.imported("m", shapes["bert"], word_pieces(clients.root / "words", [*SPECIAL, *reversed(WORDS[5:])]))
    assert "ditto model share m" in clients.run("alice", *ask, code=2)[1]
    row = next(row for row in clients.run("alice", "model", "list")[0] if row["name"] == "m")
    assert row["digest"] != row["shared_digest"] == stale.digest
    clients.run("alice", "model", "share", "m")
    assert len(clients.parts()) == len(parts) and clients.parts() != parts, "the older part is gone"
    with clients.client("bob") as bob, pytest.raises(JobMismatch, match="another version"):
        bob.infer("m", lambda program: {}, 1, 16, meant=stale.description)
    mine, theirs = (clients.run(who, *ask)[0]["output"] for who in ("alice", "bob"))
    assert theirs[0] == pytest.approx(mine[0], abs=0.05) and theirs[0] != pytest.approx(before[0], abs=0.05)


def test_somebody_elses_model_of_ones_own_name(clients: Clients, shapes: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DITTO_HOME", str(clients.root / "bob"))
        store.save(shapes["gpt2"][0].model_copy(update={"name": "m"}), {}, clients.root / "whole")
    found, said = clients.run("bob", "infer", "--model", "m", "--text", "a cat")
    assert found["owner"] == "client/alice" and "another model" in said


def test_a_model_without_a_public_part(clients: Clients, shapes: dict[str, Any]) -> None:
    """As an earlier version shared it: for its owner as before; for others, a clear message."""
    with clients.client("alice") as alice:
        alice.share_model(shapes["bert"][0].model_copy(update={"name": "old"}), shapes["bert"][1])
        alice.grant_model("old", "bob")
    said = clients.run("bob", "infer", "--model", "old", "--text", "a cat", code=24)[1]
    assert "shared by an earlier version" in said and "shares it again" in said


def test_a_restart_keeps_it_and_removing_drops_it(clients: Clients, tmp_path: Path) -> None:
    (clients.cluster.root / "data" / "coordinator" / "public" / ("f" * 32)).write_bytes(b"of a killed registration")
    parts = clients.parts()
    found = next(process for process in clients.cluster.status() if process.role == "coordinator")
    coordinator = psutil.Process(found.pid)
    coordinator.terminate()
    coordinator.wait(10)
    clients.cluster.up()
    assert clients.parts() == parts - {"f" * 32}
    with clients.client("bob") as bob:
        found = fetch(bob, "m", tmp_path / "fresh")
        assert found.tokenizer().encode(["a cat"], 32).ids.shape == (1, 16)
        clients.run("alice", "model", "remove", "m")
        assert len(clients.parts()) == len(parts) - 2
        with pytest.raises(UnknownModel):
            fetch(bob, "m", tmp_path / "fresh")


# Without one -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Says:
    """A coordinator that says this, as a client hears it."""

    tls: Tls
    model: SharedModel
    pieces: list[control_pb2.PublicPiece]
    asked: list[str] = field(default_factory=list)

    def shared(self, name: str) -> SharedModel:
        return self.model

    def public_part(self, name: str) -> Iterator[control_pb2.PublicPiece]:
        self.asked.append(name)
        return iter(self.pieces)


def pair(home: Path, stem: str) -> Tls:
    return Tls(ca=home / "ca.pem", cert=home / f"{stem}.pem", key=home / f"{stem}.key", crl=home / "crl.pem")


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("certs")
    init_certs(home, [], client="alice")
    for name in ("bob", "mallory"):
        Authority(home).issue(Identity("client", name), (), home / name)
    init_certs(home / "other", [], client="alice")
    return home


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return published(word_pieces(tmp_path_factory.mktemp("files") / "words"))


@pytest.fixture
def honest(shapes: dict[str, Any], certs: Path, files: dict[str, bytes]) -> Says:
    return said_by(shapes, files, pair(certs, "client"), pair(certs, "bob"))


def said_by(shapes: dict[str, Any], files: dict[str, bytes], owner: Tls, asker: Tls) -> Says:
    description = with_files(shapes["bert"][0].model_copy(update={"name": "m"}), files)
    made = Registration.of(description, files, owner)
    pieces = [control_pb2.PublicPiece(head=made.head)]
    pieces += [control_pb2.PublicPiece(data=data) for data in files.values()]
    return Says(asker, SharedModel(made.text, "client/alice"), pieces)


def altered(says: Says, change: Callable[[control_pb2.PublicHead], None]) -> Says:
    head = control_pb2.PublicHead()
    head.CopyFrom(says.pieces[0].head)
    change(head)
    return replace(says, pieces=[control_pb2.PublicPiece(head=head), *says.pieces[1:]])


def another_description(says: Says) -> Says:
    ranges = says.model.description.ranges.model_copy(update={"embeddings": 1e6})
    return replace(
        says, model=replace(says.model, text=says.model.description.model_copy(update={"ranges": ranges}).text())
    )


def another_file(says: Says) -> Says:
    """The words in another order, of the same length."""
    head, config, vocabulary = says.pieces
    data = vocabulary.data.replace(b"cat", b"dog", 1)
    assert data != vocabulary.data
    return replace(says, pieces=[head, config, control_pb2.PublicPiece(data=data)])


def another_file_and_digest(says: Says) -> Says:
    digest = hashlib.sha256(another_file(says).pieces[2].data).hexdigest()
    mine = hashlib.sha256(says.pieces[2].data).hexdigest()

    def change(head: control_pb2.PublicHead) -> None:
        head.statement = head.statement.replace(mine.encode(), digest.encode())

    return altered(another_file(says), change)


def another_owner(says: Says) -> Says:
    return replace(says, model=replace(says.model, owner="client/mallory"))


def owner_in_the_statement(says: Says) -> Says:
    return altered(another_owner(says), lambda head: setattr(
        head, "statement", head.statement.replace(b"client/alice", b"client/mallory")
    ))  # fmt: skip


def with_certificate(name: str) -> Callable[[Says], Says]:
    def change(says: Says) -> Says:
        pem = (says.tls.ca.parent / name).read_bytes()
        return altered(says, lambda head: setattr(head, "certificate", pem))

    return change


def signed_by_mallory(says: Says) -> Says:
    """Who signs for alice with another client's key: what only a colluding client can."""
    home = says.tls.ca.parent
    head = says.pieces[0].head
    key = serialization.load_pem_private_key((home / "mallory.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(PREFIX + head.statement, ec.ECDSA(hashes.SHA256()))
    with_key = altered(says, lambda head: setattr(head, "signature", signature))
    return with_certificate("mallory.pem")(with_key)


CHANGES: list[tuple[Callable[[Says], Says], type[DittoError]]] = [
    (another_file, IntegrityError),
    (another_file_and_digest, IntegrityError),
    (lambda says: replace(says, pieces=says.pieces[:-1]), IntegrityError),
    (another_description, IntegrityError),
    (another_owner, IntegrityError),
    (owner_in_the_statement, IntegrityError),
    (with_certificate("mallory.pem"), IntegrityError),
    (with_certificate("other/client.pem"), CertificateError),
    (with_certificate("party0.pem"), CertificateError),
    (with_certificate("ca.pem"), CertificateError),
    (signed_by_mallory, IntegrityError),
    (lambda says: replace(says, pieces=[]), CertificateError),
]


@pytest.mark.parametrize(("change", "error"), CHANGES)
def test_what_a_coordinator_alters_is_found_out(
    change: Callable[[Says], Says], error: type[DittoError], honest: Says, tmp_path: Path
) -> None:
    with pytest.raises(error):
        fetch(change(honest), "m", tmp_path)  # type: ignore[arg-type]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing of it is kept"
    assert fetch(honest, "m", tmp_path).owner == "client/alice"  # type: ignore[arg-type]


def test_an_older_part_of_the_name_is_refused(
    shapes: dict[str, Any], certs: Path, files: dict[str, bytes], honest: Says, tmp_path: Path
) -> None:
    """Signed all right, for another version."""
    older = said_by(shapes, files | {"vocab.txt": files["vocab.txt"][::-1]}, pair(certs, "client"), pair(certs, "bob"))
    with pytest.raises(IntegrityError, match="not the one that client/alice signed"):
        fetch(replace(honest, pieces=older.pieces), "m", tmp_path)  # type: ignore[arg-type]


def test_a_damaged_cache_is_fetched_anew(honest: Says, tmp_path: Path) -> None:
    found = fetch(honest, "m", tmp_path)  # type: ignore[arg-type]
    assert fetch(honest, "m", tmp_path) == found and len(honest.asked) == 1  # type: ignore[arg-type]
    paths = [path for path in sorted(found.dir.rglob("*")) if path.is_file()]
    assert len(paths) == 4
    for count, path in enumerate(paths, 2):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        fetch(honest, "m", tmp_path)  # type: ignore[arg-type]
        assert len(honest.asked) == count
    paths[-1].unlink()
    (found.files / "tokenizer.json").write_text("{}")
    assert fetch(honest, "m", tmp_path) == found and len(honest.asked) == len(paths) + 2  # type: ignore[arg-type]
    assert not (found.files / "tokenizer.json").exists()


def test_a_revoked_owner_is_believed_no_more(
    shapes: dict[str, Any], files: dict[str, bytes], certs: Path, tmp_path: Path
) -> None:
    """Also where the part is in the cache; a new certificate for the name serves again."""
    issuing = Authority(certs)
    _, certificate = issuing.issue(Identity("client", "alice"), (), certs / "second")
    says = said_by(shapes, files, pair(certs, "second"), pair(certs, "bob"))
    fetch(says, "m", tmp_path)  # type: ignore[arg-type]
    issuing.revoke(certificate)
    with pytest.raises(CertificateError, match="revoked"):
        fetch(says, "m", tmp_path)  # type: ignore[arg-type]
    again = said_by(shapes, files, pair(certs, "client"), pair(certs, "bob"))
    assert fetch(again, "m", tmp_path).owner == "client/alice"  # type: ignore[arg-type]


def test_an_rsa_key_signs(shapes: dict[str, Any], files: dict[str, bytes], certs: Path, tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    wanted = Wanted(Identity("client", "alice"), (), key.public_key())  # type: ignore[arg-type]
    Authority(certs).sign(wanted, tmp_path / "rsa.pem")
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "rsa.key").write_bytes(key.private_bytes(*encoding))
    owner = Tls(ca=certs / "ca.pem", cert=tmp_path / "rsa.pem", key=tmp_path / "rsa.key")
    says = said_by(shapes, files, owner, pair(certs, "bob"))
    assert fetch(says, "m", tmp_path / "cache").owner == "client/alice"  # type: ignore[arg-type]
    with pytest.raises(IntegrityError):
        fetch(another_file_and_digest(says), "m", tmp_path / "other")  # type: ignore[arg-type]


# At the coordinator --------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublicParts:
    monkeypatch.setattr(stored, "_storage", Storage(bytes(32)))
    return PublicParts(tmp_path, 1)


def test_what_a_coordinator_takes(parts: PublicParts, honest: Says, certs: Path, files: dict[str, bytes]) -> None:
    model = control_pb2.Model(model="m", description=honest.model.text)
    pem, head = (certs / "client.pem").read_bytes(), honest.pieces[0].head
    whole = b"".join(files.values())

    def receive(owner: str = "client/alice", data: bytes = whole, pem: bytes = pem) -> str:
        return parts.receive(model, head, pem, iter([data[:7], data[7:]]), owner)

    name = receive()
    first, *rest = parts.pieces(name)
    assert first.head.statement == head.statement and first.head.certificate == pem
    assert b"".join(piece.data for piece in rest) == whole
    bad: list[tuple[type[DittoError], dict[str, Any]]] = [
        (UsageError, {"owner": "client/bob"}), (IntegrityError, {"pem": (certs / "bob.pem").read_bytes()}),
        (IntegrityError, {"data": whole[:-1]}), (IntegrityError, {"data": whole + b"x"}),
        (IntegrityError, {"data": whole.replace(b"cat", b"dog", 1)}),
    ]  # fmt: skip
    for error, how in bad:
        with pytest.raises(error):
            receive(**how)
    assert [path.name for path in parts._root.iterdir()] == [name], "nothing is left of what was refused"


def test_another_storage_key(
    tmp_path: Path, honest: Says, certs: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ditto keys rotate` of a coordinator brings its parts along."""
    monkeypatch.setattr(stored, "_storage", None)
    for name, digit in (("old", "1"), ("new", "2")):
        (tmp_path / name).write_text(digit * 64)
    config = CoordinatorConfig(
        tls=pair(certs, "coordinator"), listen="a:1", data_dir=tmp_path / "data", storage_key=tmp_path / "old"
    )
    stored.use(storage_of(config))
    parts, model = PublicParts(config.data_dir, 1), control_pb2.Model(model="m", description=honest.model.text)
    pieces = (piece.data for piece in honest.pieces[1:])
    pem = (certs / "client.pem").read_bytes()
    name = parts.receive(model, honest.pieces[0].head, pem, pieces, "client/alice")
    assert change_key(config, tmp_path / "new") == (1, [])
    stored.use(Storage(bytes.fromhex("2" * 64)))
    assert b"".join(piece.data for piece in parts.pieces(name)) == b"".join(files.values())


def test_what_is_too_large_is_not_read(
    parts: PublicParts, shapes: dict[str, Any], certs: Path, files: dict[str, bytes]
) -> None:
    large = said_by(shapes, files | {"vocab.txt": bytes((1 << 20) + 1)}, pair(certs, "client"), pair(certs, "bob"))
    model = control_pb2.Model(model="m", description=large.model.text)

    def pieces() -> Iterator[bytes]:
        raise AssertionError("read")
        yield b""

    with pytest.raises(LimitExceeded, match=r"2 MB; it takes at most 1 \(max_public_mb"):
        parts.receive(model, large.pieces[0].head, (certs / "client.pem").read_bytes(), pieces(), "client/alice")
    assert not list(parts._root.iterdir())


def test_what_holds_several_records(
    parts: PublicParts, shapes: dict[str, Any], certs: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    """Of 1 MB, at the disk and on the wire, which files do not care about."""
    whole = {"tokenizer.json": bytes(700_000), "vocab.json": bytes(300_000)}
    says = said_by(shapes, whole, pair(certs, "client"), pair(certs, "bob"))
    model = control_pb2.Model(model="m", description=says.model.text)
    pieces = (piece.data for piece in says.pieces[1:])
    pem = (certs / "client.pem").read_bytes()
    name = parts.receive(model, says.pieces[0].head, pem, pieces, "client/alice")
    found = fetch(replace(says, pieces=list(parts.pieces(name))), "m", tmp_path / "cache")  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in found.files.iterdir()} == whole


def test_nobody_but_the_owner_without_a_partys_word() -> None:
    """A list of a coordinator that reaches no party is not enough to hand files out."""

    class Stub:
        class CheckModel:
            @staticmethod
            def future(ask: Any, timeout: float) -> Any:
                return type("Call", (), {"exception": lambda self: PeerAbsent("away")})()

    view = PartiesView({"party0": Stub, "party1": Stub}, 1.0)  # type: ignore[dict-item]
    entry = Registered(model="m", share_id="0" * 32, description="{}", owner="client/alice")
    view.check(entry, "client/bob")
    with pytest.raises(DittoError, match="away"):
        view.check(entry, "client/bob", sure=True)


def test_a_signature_of_tls_is_none_of_a_part(certs: Path) -> None:
    """The key signs handshakes, too: what is signed here begins with a word of its own."""
    trust = Trust.of(pair(certs, "bob"))
    _, certificate = trust.holder((certs / "client.pem").read_bytes())
    key = serialization.load_pem_private_key((certs / "client.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    with pytest.raises(IntegrityError):
        check_signature(certificate, b"{}", key.sign(b"{}", ec.ECDSA(hashes.SHA256())))


def test_old_entries_have_no_part() -> None:
    entry = {"model": "m", "share_id": "0" * 32, "description": "{}", "owner": "client/alice"}
    assert Registered.model_validate(entry).public == ""
