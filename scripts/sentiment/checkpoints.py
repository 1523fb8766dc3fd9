"""Checkpoints on the way to the shipped classifier: with fewer words, with fewer layers, in int8 with their ranges."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import ditto
from ditto import files
from ditto.models.architecture import Tensors
from ditto.models.calibrated import save_calibrated
from ditto.models.checkpoint import Checkpoint, load_checkpoint
from ditto.models.compact import rounded
from ditto.models.export import save_compact, save_encoder, write_json, write_tensors
from ditto.models.importer import describe
from ditto.models.tensors import SINGLE
from scripts.sentiment import vocabulary

NAME = "sentiment"
TEXTS = 1_000  # of the task for calibration, beside the demo's general sentences


def prune(source: Path, target: Path, texts: list[str], pieces: int, positions: int) -> None:
    """The encoder in `source` with `pieces` words and `positions` rows of its tables, in fp16: it is only where
    training begins, and a copy of it may have to travel."""
    document = vocabulary.read(source / "tokenizer.json")
    kept = vocabulary.chosen_pieces(document, texts, pieces)
    before: dict[str, int] = document["model"]["vocab"]
    encoder = load_checkpoint(source)
    tensors = dict(encoder.tensors)
    tensors["embeddings.word.weight"] = tensors["embeddings.word.weight"][[before[piece] for piece in kept]]
    tensors["embeddings.position.weight"] = tensors["embeddings.position.weight"][:positions]
    d = encoder.dimensions.model_copy(update={"vocabulary": len(kept), "positions": positions})
    small = replace(encoder, dimensions=d, tensors=tensors)
    save_encoder(small, target, source, vocab_size=len(kept), max_position_embeddings=positions, pad_token_id=0)
    for name in ("vocab.txt", "special_tokens_map.json"):
        (target / name).unlink(missing_ok=True)
    _write_line(target / "tokenizer.json", vocabulary.cut(document, kept))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": positions}
    write_json(target / "tokenizer_config.json", settings)
    named = encoder.architecture.release(tensors, d)
    write_tensors(target / SINGLE, {name: t.half() for name, t in named.items()})


def with_layers(checkpoint: Checkpoint, layers: list[int]) -> Checkpoint:
    """The same classifier with these layers alone, in this order."""
    found: Tensors = {name: t for name, t in checkpoint.tensors.items() if not name.startswith("layer.")}
    for new, old in enumerate(layers):
        for name, tensor in checkpoint.tensors.items():
            if name.startswith(f"layer.{old}."):
                found[f"layer.{new}.{name.removeprefix(f'layer.{old}.')}"] = tensor
    d = checkpoint.dimensions.model_copy(update={"layers": len(layers)})
    return replace(checkpoint, dimensions=d, tensors=found)


def general_texts() -> list[str]:
    """The sentences on which the demo calibrates. Read as a file: the command line is not imported for it."""
    lines = (Path(ditto.__file__).parent / "cli" / "calibration.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line]


def finish(student: Path, target: Path, texts: list[str], work: Path) -> dict[str, float]:
    """Write the classifier of `student` to `target` as it is shipped; returns how far int8 is from fp32.

    1. Round its matrices to int8.
    2. Calibrate, on the demo's sentences and on TEXTS of the task that a fixed seed draws; put neurons in order.
    3. Write int8, and ditto's description for exactly what is read back.
    """
    checkpoint = load_checkpoint(student)
    tensors = {key: rounded(t) if t.dim() == 2 else t for key, t in checkpoint.tensors.items()}  # 1
    picked = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:TEXTS].tolist()  # 2
    used = general_texts() + [texts[i] for i in picked]
    batches = checkpoint.architecture.batches(checkpoint.tokenizer(), used, checkpoint.dimensions)
    description, arranged = describe(replace(checkpoint, tensors=tensors), NAME, batches)
    save_encoder(arranged, work, student)  # 3
    save_compact(work, target)
    save_calibrated(target, description, load_checkpoint(target).tensors)
    off = [(tensors[key] - t).norm() / t.norm() for key, t in checkpoint.tensors.items() if t.dim() == 2]
    return {"largest relative error of a matrix": float(max(off)), "mean": float(sum(off) / len(off))}


def _write_line(path: Path, document: Any) -> None:
    """Without white space: a tokenizer's file is long."""
    files.write(path, json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")
