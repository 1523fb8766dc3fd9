"""What to say to someone whose checkpoint cannot be taken: what was found, and what to do about it.

Nothing here is run: commands are printed for the user, with what comes from files quoted or left out.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditto import files
from ditto.errors import BadCheckpoint, UnsupportedArchitecture

CONFIG, ADAPTER = "config.json", "adapter_config.json"
LAYOUT = (
    "a checkpoint is a directory with config.json, model.safetensors and a tokenizer's files, as transformers saves it"
)
PICKLED = "pickled, which can run any code"
OTHERS = {
    ".gguf": "llama.cpp's format", ".onnx": "ONNX", ".h5": "TensorFlow's format", ".msgpack": "Flax's format",
    ".ot": "rust-bert's format", ".ckpt": "TensorFlow's format", ".pt": PICKLED, ".pth": PICKLED,
}  # fmt: skip
OWN_QUANTIZED = "compressed-tensors"  # int8 matrices with a scale a row are read (`ditto.models.compact`)
_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9]{0,99}")


def check_directory(directory: Path) -> None:
    """Raises BadCheckpoint for what is no directory with a config.json, with what to do about it."""
    if os.path.isfile(directory / CONFIG):  # a Path raises for a name that is too long
        return
    if not os.path.exists(directory):
        raise BadCheckpoint(f"{directory}: no such directory; {LAYOUT}")
    if not directory.is_dir():
        kind = OTHERS.get(directory.suffix)
        raise BadCheckpoint(f"{directory}: a file{f' ({kind})' if kind else ''}, not a directory; {LAYOUT}")
    if (directory / ADAPTER).is_file():
        raise BadCheckpoint(_merge(directory))
    if inner := next((path.parent for path in sorted(directory.glob("*/config.json")) if _weights(path.parent)), None):
        raise BadCheckpoint(
            f"{directory}: no {CONFIG} here, but in {inner.name}: name that directory; where a modules.json says how "
            f'its vectors are pooled, move its files up, beside modules.json, and set its "path" there to ""'
        )
    if other := other_format(directory):
        raise BadCheckpoint(other)
    raise BadCheckpoint(f"{directory}: no {CONFIG}; {LAYOUT}")


def _weights(directory: Path) -> bool:
    return any(directory.glob("*.safetensors")) or any(directory.glob("*.bin"))


def _merge(directory: Path) -> str:
    where, out = str(directory), f"{directory}-merged"
    code = (
        f"from peft import AutoPeftModel as M; M.from_pretrained({where!r}).merge_and_unload().save_pretrained({out!r})"
    )
    return (
        f"{directory}: an adapter, without the model that it changes; merge the two and import the result (with the "
        f"AutoPeftModelFor… of its task, and its tokenizer): python -c {shlex.quote(code)}"
    )


def other_format(directory: Path) -> str:
    """What lies in a directory in the place of safetensors, in words; nothing for nothing known."""
    if (directory / ADAPTER).is_file():
        return _merge(directory)
    for path in (*sorted(directory.glob("*")), *sorted(directory.glob("*/*"))):  # onnx/model.onnx; no deeper
        if path.suffix in OTHERS and path.is_file():
            found = f"{path.relative_to(directory)} ({OTHERS[path.suffix]})"
            return f"{directory}: {found} is not read; take the checkpoint that it was made from, as safetensors"
    return ""


def check_quantized(config: Mapping[str, Any]) -> None:
    """Raises UnsupportedArchitecture for weights in somebody else's packed integers."""
    found = config.get("quantization_config")
    if not isinstance(found, dict) or found.get("quant_method") == OWN_QUANTIZED:
        return
    method = str(found.get("quant_method", "an unknown method"))[:40]
    raise UnsupportedArchitecture(
        f"{CONFIG}: weights quantized by {method}; Ditto quantizes by itself: take the checkpoint before that, in "
        "float32, float16 or bfloat16"
    )


def another_class(name: str, directory: Path, known: Mapping[str, Any]) -> str:
    """What to do with a checkpoint of a class that is not among the `known` ones."""
    if not name:
        return (
            f"{directory / CONFIG}: no class in architectures; name the one that it was saved as, for its vectors "
            f'"architectures": ["{next(iter(known))}"] (or one of {", ".join(list(known)[1:4])}, …)'
        )
    shown = name if _CLASS.fullmatch(name) else "this class"
    others = family(name, known)
    if not others:
        return (
            f"{shown} is not supported: of encoders BERT, RoBERTa, XLM-RoBERTa, DistilBERT, ELECTRA and MPNet are, of "
            "models that write GPT-2 (GPT2LMHeadModel); take a checkpoint of one of these for the task"
        )
    base = next((other for other in others if other.endswith("Model")), others[0])
    code = (
        f"from transformers import {base} as M; M.from_pretrained({str(directory)!r})"
        f".save_pretrained({str(directory) + '-converted'!r})"
    )
    return (
        f"{shown} is not supported, {', '.join(others)} {'is' if len(others) == 1 else 'are'}; this saves it as "
        f"{base} (copy its tokenizer's files, too): python -c {shlex.quote(code)}"
    )


def family(name: str, known: Mapping[str, Any]) -> list[str]:
    """The known classes of the same model with other heads: those of the longest beginning that ends where a head's
    name begins."""
    ends = ("LMHeadModel", "ForMaskedLM", "Model")
    stems = {other.removesuffix(end) for other in known for end in ends if other.endswith(end)}
    stem = max((stem for stem in stems if re.match(f"{stem}(For|Model|LMHead|Double)", name)), key=len, default="")
    return [other for other in known if stem and re.match(f"{stem}(For|Model|LMHead)", other)]


def conversion(directory: Path) -> str:
    """The command that makes model.safetensors of a pickled checkpoint, with the class that its configuration names."""
    try:
        config: Any = files.read_json(directory / CONFIG)
        kind = str(config["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError):
        kind = ""
    if not _CLASS.fullmatch(kind):  # what is printed to be run comes from a file
        kind = "AutoModel"
    where = str(directory)
    code = f"from transformers import {kind} as M; M.from_pretrained({where!r}).save_pretrained({where!r})"
    return f"if you trust where it comes from, convert it yourself: python -c {shlex.quote(code)}"
