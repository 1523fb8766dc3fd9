"""Files of a model: description, checkpoint, shards, tokenizers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import save
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece

from ditto.errors import EmptyText, TextTooLong
from ditto.models.checkpoint import load_checkpoint
from ditto.models.registry import ARCHITECTURES
from ditto.models.tensors import read_tensors
from ditto.models.tokenizer import Tokenizer
from ditto.net.config import Limits
from ditto.service.limits import admit_model
from fuzz.mutate import as_json, change, flips
from fuzz.source import Source, pack, unpack
from fuzz.target import Target
from fuzz.world import directory, model

LIMITS = Limits(max_model_mb=64, max_layers=8)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "a", "b", "é"]
PIECES = {"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3, "a": 4, "b": 5, "ab": 6, "Ġ": 7, "Ġa": 8, "<|endoftext|>": 9}
TEXT = "Hello worlds, a b ab \u00e9 \U0001f600 \x00 <|endoftext|> [SEP]"


def place(name: str, files: dict[str, bytes]) -> Path:
    """A directory with just these files."""
    home = directory() / "files" / name
    home.mkdir(parents=True, exist_ok=True)
    for path in home.iterdir():
        if path.name not in files and path.is_file():
            path.unlink()
    for file, data in files.items():
        (home / file).write_bytes(data)
    return home


def named(names: tuple[str, ...], given: bytes) -> dict[str, bytes]:
    """The parts of an input as files; an empty part is no file."""
    return {name: part for name, part in zip(names, unpack(given), strict=False) if part}


# Description ---------------------------------------------------------------------------------------


def _description(source: Source) -> bytes:
    return as_json(source, model()[0].model_dump(mode="json"))


def _describe(given: bytes) -> None:
    admit_model(given.decode(errors="replace"), LIMITS, "party0")


# Checkpoints ---------------------------------------------------------------------------------------

_BERT = {
    "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 11,
    "max_position_embeddings": 8, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "embedding_size": 4, "pad_token_id": 1, "id2label": {"0": "no", "1": "yes"}, "num_labels": 2,
    "relative_attention_num_buckets": 32, "position_embedding_type": "absolute", "is_decoder": False,
    "summary_type": "first",
}  # fmt: skip
_DISTIL = {
    "dim": 4, "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "vocab_size": 11, "max_position_embeddings": 8,
    "activation": "gelu", "sinusoidal_pos_embds": False,
}  # fmt: skip
_GPT2 = {
    "n_embd": 4, "n_layer": 1, "n_head": 2, "n_inner": None, "vocab_size": 11, "n_positions": 8, "n_ctx": 8,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
}  # fmt: skip


def _config(name: str) -> dict[str, Any]:
    sizes = _GPT2 if name.startswith("GPT2") else _DISTIL | _BERT if name.startswith("Distil") else _BERT
    return {"architectures": [name]} | sizes


@cache
def _checkpoint(name: str) -> tuple[dict[str, Any], bytes]:
    import torch

    config, architecture = _config(name), ARCHITECTURES[name]
    shapes = architecture.expected(architecture.dimensions(config))
    return config, save({key: torch.zeros(shape) for key, shape in shapes.items()})


def _safetensors(source: Source, data: bytes) -> bytes:
    """Its header changed, its length kept or not; or its bytes."""
    if source.one_in(3):
        return flips(source, data)
    size = int.from_bytes(data[:8], "little")
    header = as_json(source, json.loads(data[8 : 8 + size]))
    declared = len(header) if not source.one_in(6) else source.choice((0, size, 2**31, 2**63, len(header) + 1))
    return declared.to_bytes(8, "little") + header + data[8 + size :]


def _build_checkpoint(source: Source) -> bytes:
    config, tensors = _checkpoint(source.choice(sorted(ARCHITECTURES)))
    if source.one_in(3):
        return pack([json.dumps(config).encode(), _safetensors(source, tensors)])
    return pack([as_json(source, config), tensors])


def _read_checkpoint(given: bytes) -> None:
    load_checkpoint(place("checkpoint", named(("config.json", "model.safetensors"), given)))


def _build_index(source: Source) -> bytes:
    import torch

    shards = [save({name: torch.zeros(2)}) for name in ("a", "b")]
    index = {"metadata": {"total_size": 16}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    if source.one_in(3):
        shards[0] = _safetensors(source, shards[0])
        return pack([json.dumps(index).encode(), *shards])
    return pack([as_json(source, index), *shards])


def _read_index(given: bytes) -> None:
    names = ("model.safetensors.index.json", "one.safetensors", "two.safetensors")
    read_tensors(place("index", named(names, given)))


# Tokenizers ----------------------------------------------------------------------------------------


def use(directory: Path) -> None:
    """All that a command does with a tokenizer, whatever it makes of the text."""
    tokenizer = Tokenizer.load(directory)
    ids = [0, 1, tokenizer.size - 1]
    for encode in (tokenizer.encode, tokenizer.encode_prompts):
        with contextlib.suppress(EmptyText, TextTooLong):
            ids += encode([TEXT], 64).ids.flatten().tolist()  # type: ignore[operator]
    tokenizer.decode([i for i in ids if i >= 0])
    stream = tokenizer.stream()
    for token in ids[:9]:
        stream.push(max(token, 0))
    stream.finish()


@cache
def _tokenizers() -> tuple[dict[str, Any], ...]:
    byte_pairs = Backend(BPE(vocab={p: i for p, i in PIECES.items()}, merges=[("a", "b"), ("Ġ", "a")]))
    byte_pairs.pre_tokenizer, byte_pairs.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    words = Backend(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    unigram = Backend(Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    level = Backend(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return tuple(json.loads(backend.to_str()) for backend in (byte_pairs, words, unigram, level))


def _build_json(source: Source) -> bytes:
    return as_json(source, source.choice(_tokenizers()))


def _lines(source: Source, lines: list[str]) -> bytes:
    if source.one_in(2):
        found = change(source, list(lines))
        words = [word for word in found if isinstance(word, str)] if isinstance(found, list) else []
        return "\n".join(words).encode(errors="surrogatepass")
    return flips(source, "\n".join(lines).encode())


def _settings(source: Source) -> bytes:
    if not source.one_in(3):
        return b""
    return as_json(source, {"do_lower_case": True, "strip_accents": None, "add_prefix_space": False})


def _build_words(source: Source) -> bytes:
    words = ["<s>", "</s>", "<pad>", "<mask>", "<unk>", *WORDS] if source.one_in(2) else WORDS
    return pack([_lines(source, words), _settings(source)])


def _build_pairs(source: Source) -> bytes:
    merges = ["#version: 0.2", "a b", "Ġ a"]
    config = json.dumps({"model_type": "gpt2"}).encode() if source.one_in(2) else b""
    if source.one_in(2):
        return pack([json.dumps(PIECES).encode(), _lines(source, merges), _settings(source), config])
    return pack([as_json(source, PIECES), "\n".join(merges).encode(), _settings(source), config])


def _tokenizer(name: str, files: tuple[str, ...], build: Callable[[Source], bytes]) -> Target:
    return Target(name, build, lambda given: use(place(name, named(files, given))))


TARGETS = [
    Target("description", _description, _describe),
    Target("checkpoint", _build_checkpoint, _read_checkpoint),
    Target("index", _build_index, _read_index),
    Target("tokenizer", lambda source: pack([_build_json(source)]),
           lambda given: use(place("tokenizer", named(("tokenizer.json",), given)))),
    _tokenizer("word-pieces", ("vocab.txt", "tokenizer_config.json"), _build_words),
    _tokenizer("byte-pairs", ("vocab.json", "merges.txt", "tokenizer_config.json", "config.json"), _build_pairs),
]  # fmt: skip
