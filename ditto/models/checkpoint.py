"""Loading Hugging Face checkpoints: config.json, safetensors, tokenizer files. No pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ditto import files
from ditto.errors import BadCheckpoint, UnsupportedArchitecture
from ditto.models import advice
from ditto.models.architecture import Answer, Architecture, Tensors
from ditto.models.description import Dimensions, explain
from ditto.models.encoder.pooling import read_pooling
from ditto.models.registry import ARCHITECTURES, architecture_of
from ditto.models.tensors import read_tensors, without_prefix
from ditto.models.tokenizer import Tokenizer


@dataclass
class Checkpoint:
    """A model in plaintext, at its owner: its class, sizes, fp32 tensors by the project's names, where it came from."""

    class_name: str
    dimensions: Dimensions
    tensors: Tensors
    directory: Path | None = None

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.class_name)

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer (tokenizer.json or vocab.txt)."""
        if self.directory is None:
            raise BadCheckpoint("a model with random weights has no tokenizer")
        return Tokenizer.load(self.directory)

    def reference(self, batch: Any) -> list[Any]:
        """The answers of the plaintext model in fp32."""
        return self.architecture.reference(self.tensors, self.dimensions, batch)


def load_checkpoint(directory: Path) -> Checkpoint:
    """Load and check a checkpoint; what answers with vectors, with the pooling of its modules.json.

    Raises BadCheckpoint naming the file or tensor, or UnsupportedArchitecture.
    """
    directory = Path(directory)
    name, dimensions = supported(directory)
    architecture = architecture_of(name)
    need = architecture.expected(dimensions)
    raw = without_prefix(read_tensors(directory), architecture.prefixes)
    for key, shape in need.items():
        if key not in raw:
            raise BadCheckpoint(f"tensor {key} is missing; are these the weights of a {name}, as config.json says?")
        if tuple(raw[key].shape) != shape:
            raise BadCheckpoint(f"tensor {key}: shape {tuple(raw[key].shape)}, expected {shape}")
        if not bool(raw[key].isfinite().all()):
            raise BadCheckpoint(f"tensor {key}: infinite, or no number")
    tensors = architecture.adopt({key: raw[key] for key in need}, dimensions)
    return Checkpoint(name, dimensions, tensors, directory)


def supported(directory: Path) -> tuple[str, Dimensions]:
    """A checkpoint's class and sizes, by its settings alone: no tensor is looked at. Raises as `load_checkpoint`."""
    advice.check_directory(directory)
    config = _config(directory / "config.json")
    names = config.get("architectures") or [""]
    if not isinstance(names, list):
        raise BadCheckpoint(f"{directory / 'config.json'}: architectures: a list of names expected")
    name = str(names[0])
    if name not in ARCHITECTURES:
        raise UnsupportedArchitecture(advice.another_class(name, directory, ARCHITECTURES))
    advice.check_quantized(config)
    architecture = architecture_of(name)
    try:
        dimensions = architecture.dimensions(config)
        architecture.expected(dimensions)
    except KeyError as error:
        raise BadCheckpoint(f"config.json: {error} is missing") from error
    except ValidationError as error:
        raise BadCheckpoint(f"config.json: {explain(error)}") from None
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise BadCheckpoint(f"config.json: {error}") from error
    return name, read_pooling(directory, dimensions) if architecture.answer is Answer.vector else dimensions


def _config(path: Path) -> dict[str, Any]:
    try:
        config = files.read_json(path)
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise BadCheckpoint(f"{path}: not a JSON object")
    return config
