"""From a text's hidden states to one vector, as sentence-transformers does it; its files on that, read and written.

`modules.json` names the modules that a text passes: the Transformer, a Pooling, perhaps a Normalize. Anything else, or
another pooling, is refused: an answer without it would be another model's.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.nn.functional as F

from ditto import files
from ditto.errors import BadCheckpoint, UnsupportedArchitecture
from ditto.models.description import Dimensions, Pooling

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
SETTINGS = "sentence_*_config.json"  # of the Transformer, by its family
KINDS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "max": "max"}  # as newer versions write `pooling_mode`
FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max",
}  # fmt: skip
ADVICE = 'move its files up, beside modules.json, and set its "path" there to ""'
DEFAULT = "pooling_mode_mean_tokens"  # true where it is not written


def pooled(hidden: torch.Tensor, mask: torch.Tensor, how: Pooling, normalize: bool) -> torch.Tensor:
    """Hidden states [B, N, H] and mask [B, N] to vectors [B, H]: the first token's state, or the mean or the largest
    over a text's tokens; with `normalize` of length 1."""
    if how == "cls":
        found = hidden[:, 0]
    elif how == "mean":
        weights = mask[..., None].to(hidden.dtype)
        found = (hidden * weights).sum(1) / weights.sum(1)
    else:
        found = hidden.masked_fill(~mask[..., None].bool(), -torch.inf).amax(1)
    return F.normalize(found, dim=1) if normalize else found


def read_pooling(directory: Path, d: Dimensions) -> Dimensions:
    """The dimensions with the pooling that a checkpoint's modules.json asks for; a mean where there is none.

    Raises UnsupportedArchitecture for a module, a pooling or a prompt that is not supported, BadCheckpoint for files
    that cannot be read.
    """
    path = directory / MODULES
    if not path.exists():
        return d
    modules = _read(path, list)
    kinds = [_kind(path, module) for module in modules]
    for module, kind in zip(modules, kinds, strict=True):
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UnsupportedArchitecture(
                f"{path}: module {kind[:80]}: only Transformer, Pooling, Normalize; without it the vectors would be "
                "another model's, so take a checkpoint that does without it"
            )
        if kind == "Transformer" and module.get("path"):
            raise UnsupportedArchitecture(f"{path}: the Transformer lies in a directory of its own: {ADVICE}")
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedArchitecture(f"{path}: {', '.join(kinds)}: a Transformer, a Pooling, and perhaps a Normalize")
    _refuse_changed_texts(directory)
    inner = PurePosixPath(str(modules[1].get("path", "")))
    if inner.is_absolute() or ".." in inner.parts:
        raise BadCheckpoint(f"{path}: the Pooling lies in another directory than the checkpoint's")
    how = _pooling(directory / inner / "config.json", d.hidden)
    return d.model_copy(update={"pooling": how, "normalize": kinds[-1] == "Normalize"})


def write_pooling(directory: Path, d: Dimensions) -> None:
    """The files that `read_pooling` and sentence-transformers read, where there is more to say than a mean."""
    if (d.pooling, d.normalize) == ("mean", False):
        return
    names = ["Transformer", "Pooling", *(["Normalize"] if d.normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    flags = {flag: kind == d.pooling for flag, kind in FLAGS.items()}
    files.make_directory(directory / "1_Pooling")
    files.write(directory / "1_Pooling" / "config.json", json.dumps({"word_embedding_dimension": d.hidden} | flags))
    files.write(directory / MODULES, json.dumps(modules, indent=2) + "\n")


def _kind(path: Path, module: Any) -> str:
    """The class of a module. Modules of others than the library's are code that nobody here has read."""
    name = module.get("type") if isinstance(module, dict) else None
    if not isinstance(name, str) or not isinstance(module.get("path", ""), str):
        raise BadCheckpoint(f"{path}: modules with a type and a path expected")
    package, _, kind = name.rpartition(".")
    return kind if package.split(".")[0] == "sentence_transformers" else name


def _pooling(path: Path, hidden: int) -> Pooling:
    settings = _read(path, dict)
    width = settings.get("word_embedding_dimension", settings.get("embedding_dimension", hidden))
    if width != hidden:
        raise BadCheckpoint(f"{path}: vectors of {str(width)[:20]}, and hidden states of {hidden}")
    named = settings.get("pooling_mode")
    if named is not None:
        chosen = [named] if isinstance(named, str) else named
        chosen = chosen if isinstance(chosen, list) else [chosen]
        known: dict[str, Pooling] = KINDS
    else:
        flags = {DEFAULT: True} | {key: value for key, value in settings.items() if key.startswith("pooling_mode_")}
        chosen, known = [key for key, value in flags.items() if value], FLAGS
    if len(chosen) != 1 or str(chosen[0]) not in known:
        said = ", ".join(str(name)[:80] for name in chosen) or "none"
        raise UnsupportedArchitecture(f"{path}: pooling {said}: one of cls, mean, max is supported")
    return known[str(chosen[0])]


def _refuse_changed_texts(directory: Path) -> None:
    """What sentence-transformers does to a text before the tokenizer, which would be dropped here."""
    for path in sorted(directory.glob(SETTINGS)):
        if _read(path, dict).get("do_lower_case"):
            raise UnsupportedArchitecture(f"{path}: do_lower_case is not supported: have the tokenizer do it")
    if (directory / PROMPTS).exists():
        settings = _read(directory / PROMPTS, dict)
        prompts, name = settings.get("prompts"), settings.get("default_prompt_name")
        if name is not None and not (isinstance(prompts, dict) and prompts.get(name) == ""):
            raise UnsupportedArchitecture(f"{directory / PROMPTS}: a prompt before every text is not supported")


def _read(path: Path, kind: type) -> Any:
    try:
        found = files.read_json(path)
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path}: {error}") from error
    if not isinstance(found, kind):
        raise BadCheckpoint(f"{path}: a JSON {'array' if kind is list else 'object'} expected")
    return found
