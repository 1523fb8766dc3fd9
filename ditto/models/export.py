"""Writing Hugging Face checkpoints that `load_checkpoint` and `transformers` read. Each file is replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ditto import files
from ditto.models.compact import compacted
from ditto.models.description import Dimensions
from ditto.models.gpt2.gpt2 import QUAD, TANH
from ditto.models.tensors import SINGLE, read_tensors

TOKENIZER = (
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip


def save_gpt2(directory: Path, d: Dimensions, tensors: dict[str, torch.Tensor], tokenizer: Path) -> None:
    """config.json, model.safetensors and the tokenizer's files; `d` and `tensors` as in a Checkpoint."""
    files.make_directory(directory)
    for path in tokenizer.iterdir():
        if path.name in TOKENIZER and path.resolve().parent != directory.resolve():
            files.write(directory / path.name, path.read_bytes())
    write_json(directory / "config.json", gpt2_config(d, _end_of_text(tokenizer)))
    named = {f"transformer.{name}": tensor.detach().cpu() for name, tensor in tensors.items()}
    write_tensors(directory / "model.safetensors", named)


def _end_of_text(tokenizer: Path) -> int | None:
    words: dict[str, int] = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
    return words.get("<|endoftext|>")


def gpt2_config(d: Dimensions, end: int | None) -> dict[str, Any]:
    """GPT-2's own names for a Checkpoint's dimensions; `end` is the token that ends a text, if there is one."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": QUAD if d.activation == "quad" else TANH[0],
        "vocab_size": d.vocabulary,
        "n_positions": d.positions,
        "n_ctx": d.positions,
        "n_embd": d.hidden,
        "n_layer": d.layers,
        "n_head": d.heads,
        "n_inner": d.inner,
        "layer_norm_epsilon": d.epsilon,
        "initializer_range": 0.02,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
    }


def save_compact(source: Path, target: Path) -> None:
    """The checkpoint of directory `source`, its matrices in int8 (`ditto.models.compact`), in directory `target`, with
    its configuration and its tokenizer's files as they are. Raises BadCheckpoint."""
    tensors = compacted(read_tensors(source))
    files.make_directory(target)
    for name in ("config.json", *TOKENIZER):
        if (source / name).is_file():
            files.write(target / name, (source / name).read_bytes())
    write_tensors(target / SINGLE, tensors)


def write_json(path: Path, document: Any) -> None:
    files.write(path, json.dumps(document, indent=2) + "\n")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with files.replacing(path) as fresh:
        save_tensors(fresh, tensors)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Fill a file that stands there, whose mode stays. Raises OSError."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # how the library reports a full disk, too
        raise OSError(str(error)) from error
