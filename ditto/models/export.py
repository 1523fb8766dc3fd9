"""Writing Hugging Face checkpoints that `load_checkpoint` and `transformers` read. Each file is replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ditto import files
from ditto.errors import UsageError
from ditto.models.checkpoint import Checkpoint
from ditto.models.compact import compacted
from ditto.models.description import Dimensions
from ditto.models.encoder import Encoder
from ditto.models.encoder.pooling import write_pooling
from ditto.models.gpt2.gpt2 import QUAD, TANH
from ditto.models.tensors import SINGLE, read_tensors

TOKENIZER = (
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip


def save_gpt2(directory: Path, d: Dimensions, tensors: dict[str, torch.Tensor], tokenizer: Path) -> None:
    """config.json, model.safetensors and the tokenizer's files; `d` and `tensors` as in a Checkpoint."""
    files.make_directory(directory)
    _copy_tokenizer(tokenizer, directory)
    write_json(directory / "config.json", gpt2_config(d, _end_of_text(tokenizer)))
    named = {f"transformer.{name}": tensor.detach().cpu() for name, tensor in tensors.items()}
    write_tensors(directory / "model.safetensors", named)


def _end_of_text(tokenizer: Path) -> int | None:
    words: dict[str, int] = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
    return words.get("<|endoftext|>")


def save_encoder(checkpoint: Checkpoint, directory: Path, source: Path, **changed: Any) -> None:
    """A checkpoint of an encoder's class: config.json of `source` with what is `changed` (None: left out), the names of
    the labels, model.safetensors in fp32, the tokenizer's files of `source`. Raises UsageError for another class."""
    architecture, d = checkpoint.architecture, checkpoint.dimensions
    if not isinstance(architecture, Encoder):
        raise UsageError(f"{checkpoint.class_name} is no encoder")
    config = files.read_json(source / "config.json")
    for name in ("_name_or_path", "torch_dtype", "dtype", "id2label", "label2id", "num_labels", "problem_type"):
        config.pop(name, None)
    config |= {"architectures": [checkpoint.class_name], "torch_dtype": "float32"}
    if d.labels:
        config |= {"id2label": {str(i): label for i, label in enumerate(d.labels)}}
        config |= {"label2id": {label: i for i, label in enumerate(d.labels)}}
        if d.problem_type != "single_label_classification":
            config["problem_type"] = d.problem_type
    config |= changed
    files.make_directory(directory)
    _copy_tokenizer(source, directory)
    write_pooling(directory, d)
    write_json(directory / "config.json", {name: value for name, value in config.items() if value is not None})
    released = architecture.release(checkpoint.tensors, d)
    write_tensors(directory / "model.safetensors", {name: t.detach().float().cpu() for name, t in released.items()})


def _copy_tokenizer(source: Path, directory: Path) -> None:
    for path in source.iterdir():
        if path.name in TOKENIZER and path.resolve().parent != directory.resolve():
            files.write(directory / path.name, path.read_bytes())


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
    _copy_tokenizer(source, target)
    files.write(target / "config.json", (source / "config.json").read_bytes())
    write_tensors(target / SINGLE, tensors)


def write_json(path: Path, document: Any) -> None:
    files.write(path, json.dumps(document, indent=2) + "\n")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with files.replacing(path) as fresh:
        save_tensors(fresh, tensors)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Fill a file that stands there, whose mode stays. Raises OSError."""
    mode = path.stat().st_mode
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # how the library reports a full disk, too
        raise OSError(str(error)) from error
    path.chmod(mode)  # safetensors 0.8 puts a file of its own, which only its owner may read, in the place of this one
