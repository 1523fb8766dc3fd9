"""Files of a user: texts, imported models, a local cluster's state, training, measurements to compare with."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ditto.cli.bench_presets import read_peers
from ditto.cli.generate import _prompts
from ditto.cli.infer import _questions
from ditto.client import pids
from ditto.client.local_cluster import Cluster
from ditto.client.public import fetch
from ditto.client.publication import SharedModel
from ditto.client.sampling import Sampler
from ditto.client.store import StoredModel
from ditto.models.export import save_gpt2
from ditto.net.config import Tls
from ditto.report.presets import markdown
from ditto.train.language import LanguageTrainer, Settings, new_dimensions, new_weights
from ditto.train.run import Run
from ditto.train.text import BytePairs, read_text
from ditto.wire import control_pb2
from fuzz.model_files import PIECES, named, place
from fuzz.mutate import as_json, flips
from fuzz.server_files import _yaml
from fuzz.source import Source, pack, unpack
from fuzz.target import Finding, Target
from fuzz.world import FILES, MODEL, OWNER, directory, model, registration

TEXT = "one line\nanother\twith a pair\n\nlast"


# Texts ---------------------------------------------------------------------------------------------


def _build_texts(source: Source) -> bytes:
    text = flips(source, TEXT.encode())
    zipped = gzip.compress(TEXT.encode(), mtime=0)
    return pack([text, flips(source, zipped) if source.one_in(2) else zipped])


def _read_texts(given: bytes) -> None:
    """As questions, as prompts, as a text to train on, compressed or not."""
    home = place("texts", named(("a.txt", "a.txt.gz"), given))
    for read in (lambda p: _questions(None, None, p), lambda p: _prompts(None, p), read_text):
        for name in ("a.txt", "a.txt.gz"):
            _quietly(read, home / name)


def _quietly(read: Any, path: Path) -> None:
    """Each reader may refuse what the next one takes."""
    from ditto.errors import DittoError

    with contextlib.suppress(DittoError):
        read(path)


# Models that were imported -------------------------------------------------------------------------


@cache
def _weights() -> bytes:
    return save({name: tensor.contiguous() for name, tensor in model()[1].items()})


def _build_store(source: Source) -> bytes:
    origin = {"checkpoint": "/", "weights": hashlib.sha256(_weights()).hexdigest()}
    files, at = [model()[0].text().encode(), json.dumps(origin).encode(), _weights()], source.below(3)
    documents: tuple[Any, ...] = (model()[0].model_dump(mode="json"), origin)
    files[at] = flips(source, files[2]) if at == 2 else as_json(source, documents[at])
    return pack(files)


def _read_store(given: bytes) -> None:
    stored = StoredModel(place("store", named(("description.json", "origin.json", "weights.safetensors"), given)))
    for read in (lambda: stored.description, lambda: stored.checkpoint):
        _quietly(lambda _, read=read: read(), stored.dir)
    stored.weights()
    told = '"weights"' in (stored.dir / "origin.json").read_text(errors="replace")
    if told and (stored.dir / "weights.safetensors").read_bytes() != _weights():
        raise Finding("weights that are not what was imported")


# What is fetched of others' models ------------------------------------------------------------------


class _Coordinator:
    """Says of a model what it is given."""

    def __init__(self, text: str, pieces: list[control_pb2.PublicPiece]) -> None:
        home = directory() / "certs"
        self.tls = Tls(ca=home / "ca.pem", cert=home / "client.pem", key=home / "client.key", crl=home / "crl.pem")
        self._text, self._pieces = text, pieces

    def shared(self, name: str) -> SharedModel:
        found = SharedModel(self._text, OWNER)
        found.description  # noqa: B018  # as a client does
        return found

    def public_part(self, name: str) -> Iterator[control_pb2.PublicPiece]:
        return iter(self._pieces)


def _build_public(source: Source) -> bytes:
    head = registration().head
    assert head is not None
    parts = [registration().text.encode(), head.statement, head.signature, head.certificate, b"".join(FILES.values())]
    at = source.below(len(parts))
    parts[at] = as_json(source, json.loads(parts[at])) if at < 2 and source.one_in(2) else flips(source, parts[at])
    return pack(parts)


def _fetch(given: bytes) -> None:
    """What passes is what the owner signed."""
    text, statement, signature, certificate, data = (*unpack(given), *[b""] * 5)[:5]
    cache = place("public", {})
    shutil.rmtree(cache)
    head = control_pb2.PublicHead(statement=statement, signature=signature, certificate=certificate)
    pieces = [control_pb2.PublicPiece(head=head), control_pb2.PublicPiece(data=data)]
    found = fetch(_Coordinator(text.decode(errors="replace"), pieces), MODEL, cache)  # type: ignore[arg-type]
    read = {path.name: path.read_bytes() for path in found.files.iterdir()}
    if read != FILES or found.description != model()[0] or found.owner != OWNER:
        raise Finding("a public part that its owner did not sign")


# A local cluster -----------------------------------------------------------------------------------


def _build_cluster(source: Source) -> bytes:
    state = as_json(source, {role: {"pid": 2**22 + i} for i, role in enumerate(("dealer", "party0"))})
    config = {"role": "party0", "data_dir": "data", "threads": 1, "listen": "127.0.0.1:1", "tls": {}}
    return pack([state, _yaml(source, config)])


def _read_cluster(given: bytes) -> None:
    """What says which processes run, and the configurations that commands look into; nothing is started."""
    state, config = (*unpack(given), b"", b"")[:2]
    home = place("cluster", {"cluster.json": state})
    (home / "configs").mkdir(exist_ok=True)
    (home / "configs" / "party0.yaml").write_bytes(config)
    cluster = Cluster(home)
    _quietly(pids.read, home / "cluster.json")
    _quietly(lambda _: cluster.unconfirmed(), home)
    _quietly(lambda _: cluster.set_aside(), home)
    _quietly(lambda _: cluster._network("party0"), home)
    _quietly(lambda _: cluster._threads("party0"), home)
    _quietly(lambda _: cluster._give_storage_key("party0"), home)


# Training ------------------------------------------------------------------------------------------


@cache
def _trainer() -> tuple[LanguageTrainer, Path, dict[str, bytes]]:
    """A run that was stopped after two steps: its trainer, its tokenizer and its files."""
    words = place("words", {
        "vocab.json": json.dumps(PIECES).encode(), "merges.txt": b"#version: 0.2\na b\n",
    })  # fmt: skip
    BytePairs(words)
    trainer = _fresh(words)
    home = place("training", {})
    save_gpt2(home, trainer.dimensions, trainer.tensors, words)
    run = Run(trainer, place("run", {}))
    run.go(lambda: trainer.at.step >= 2)
    folder = run.directory / ".training"
    return trainer, words, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _fresh(words: Path) -> LanguageTrainer:
    d = new_dimensions(len(PIECES), 1, 4, 2, 4)
    text = torch.arange(40, dtype=torch.int32) % len(PIECES)
    return LanguageTrainer(new_weights(d, 0), d, text, text, Settings(9, 1, 4, 1e-3, 0, 9), words)


def _build_training(source: Source) -> bytes:
    files = dict(_trainer()[2])
    tensors = next(name for name in files if name.endswith(".safetensors"))
    if source.one_in(3):
        files[tensors] = flips(source, files[tensors])
    else:
        files["state.json"] = as_json(source, json.loads(files["state.json"]))
    return pack([files["state.json"], files[tensors]])


def _resume(given: bytes) -> None:
    _, words, files = _trainer()
    tensors = next(name for name in files if name.endswith(".safetensors"))
    home = place("resumed", {})
    folder = home / ".training"
    folder.mkdir(exist_ok=True)
    for name, data in zip(("state.json", tensors), (*unpack(given), b"", b""), strict=False):
        (folder / name).write_bytes(data)
    run = Run(_fresh(words), home)
    run.trainer.step()


# Options and measurements --------------------------------------------------------------------------


def _build_sampling(source: Source) -> bytes:
    values = {"temperature": 0.5, "top_k": 2, "top_p": 0.9, "seed": 1, "logits": [[0.0, 1.0, -1.0], [2.0, 0.0, 1.0]]}
    return as_json(source, values)


def _sample(given: bytes) -> None:
    """Options as the command line takes them: numbers, any; and logits, any."""
    try:
        found = json.loads(given)
        options = {
            "temperature": float(found["temperature"]), "top_k": int(found["top_k"]), "top_p": float(found["top_p"]),
            "seed": found["seed"] if isinstance(found["seed"], int) else None,
        }  # fmt: skip
        logits = torch.tensor(found["logits"], dtype=torch.float64)
    except (ValueError, KeyError, TypeError, OverflowError, RuntimeError, RecursionError):
        return
    chosen = Sampler(**options).choose(logits)
    assert len(chosen) == len(logits) and all(0 <= token < logits.shape[1] for token in chosen)


_PEER = {
    "system": "another", "version": "1", "recipe": "r", "model": "bert-base", "layers": 12, "seq": 128, "seconds": 1.5,
    "rounds": 10, "bytes_sent_all_parties": 10, "bytes_dealer": None,
}  # fmt: skip
_ROW = {
    "model": "bert-base", "layers": 12, "seq": 128, "network": "loopback", "preset": "ditto", "online_seconds": 1.0,
    "offline_seconds": 1.0, "rounds": 3, "bytes_sent": 5, "bytes_from_dealer": 6,
}  # fmt: skip


def _peers(given: bytes) -> None:
    markdown([_ROW], read_peers(place("peers", {"peers.json": given}) / "peers.json"))


TARGETS = [
    Target("texts", _build_texts, _read_texts),
    Target("store", _build_store, _read_store),
    Target("public", _build_public, _fetch),
    Target("cluster", _build_cluster, _read_cluster),
    Target("training", _build_training, _resume),
    Target("sampling", _build_sampling, _sample),
    Target("peers", lambda source: as_json(source, [_PEER, {"error": "x"}]), _peers),
]
