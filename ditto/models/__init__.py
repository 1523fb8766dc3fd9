"""Architectures: checkpoint -> calibrated description and encoded weights -> program."""

from typing import TYPE_CHECKING

from ditto.lazy import loader

if TYPE_CHECKING:
    from ditto.engine.plan import Plan
    from ditto.models.architecture import Answer
    from ditto.models.checkpoint import Checkpoint, load_checkpoint
    from ditto.models.description import Description, Dimensions, parse
    from ditto.models.importer import describe, encode_weights, import_calibrated, import_model
    from ditto.models.random import random_batch, random_model
    from ditto.models.registry import (
        ARCHITECTURES,
        architecture_of,
        compile_stage,
        decode_outputs,
        encode_inputs,
        generator_of,
    )

# Loaded when it is asked for: whoever wants a description needs no torch (PEP 562).
_WHERE = {
    "ARCHITECTURES": "ditto.models.registry",
    "Answer": "ditto.models.architecture",
    "Checkpoint": "ditto.models.checkpoint",
    "Description": "ditto.models.description",
    "Dimensions": "ditto.models.description",
    "Plan": "ditto.engine.plan",
    "architecture_of": "ditto.models.registry",
    "compile_stage": "ditto.models.registry",
    "decode_outputs": "ditto.models.registry",
    "describe": "ditto.models.importer",
    "encode_inputs": "ditto.models.registry",
    "encode_weights": "ditto.models.importer",
    "generator_of": "ditto.models.registry",
    "import_calibrated": "ditto.models.importer",
    "import_model": "ditto.models.importer",
    "load_checkpoint": "ditto.models.checkpoint",
    "parse": "ditto.models.description",
    "random_batch": "ditto.models.random",
    "random_model": "ditto.models.random",
}

__all__ = [
    "ARCHITECTURES",
    "Answer",
    "Checkpoint",
    "Description",
    "Dimensions",
    "Plan",
    "architecture_of",
    "compile_stage",
    "decode_outputs",
    "describe",
    "encode_inputs",
    "encode_weights",
    "generator_of",
    "import_calibrated",
    "import_model",
    "load_checkpoint",
    "parse",
    "random_batch",
    "random_model",
]

if not TYPE_CHECKING:  # a checker knows the names from above, and that there are no others
    __getattr__ = loader(__name__, _WHERE)
