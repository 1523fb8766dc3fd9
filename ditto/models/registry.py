"""Every architecture by the name of its Hugging Face class. A new one is a file and a line here."""

from __future__ import annotations

from typing import Any

from ditto.engine.plan import Plan
from ditto.engine.program import Program
from ditto.errors import UnsupportedArchitecture, UsageError
from ditto.models import bert, distilbert, electra, gpt2, mpnet, roberta
from ditto.models.architecture import Answer, Architecture, Generator, Tensors
from ditto.models.description import Description

GENERATORS: dict[str, Generator] = {**gpt2.CLASSES}
ARCHITECTURES: dict[str, Architecture] = {
    **bert.CLASSES,
    **roberta.CLASSES,
    **distilbert.CLASSES,
    **electra.CLASSES,
    **mpnet.CLASSES,
    **GENERATORS,
}


def architecture_of(name: str) -> Architecture:
    """Raises UnsupportedArchitecture."""
    if name not in ARCHITECTURES:
        raise UnsupportedArchitecture(f"{name[:100] or 'no architecture'}: supported are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def generator_of(name: str) -> Generator:
    """An architecture that generates text. Raises UsageError for one that does not."""
    if name not in GENERATORS:
        raise UsageError(f"{name} generates no text: ask it with `ditto infer`")
    return GENERATORS[name]


def generates(name: str) -> bool:
    """Has a job of this architecture later stages, of a token each?"""
    return architecture_of(name).answer is Answer.text


def sibling(name: str, head: str) -> str:
    """The class of the same family with another head: ("BertForMaskedLM", "ForSequenceClassification"). Raises
    UsageError for one that is no encoder."""
    encoders = [known for known in ARCHITECTURES if known.endswith("Model") and known not in GENERATORS]
    models = [known.removesuffix("Model") for known in encoders]
    family = max((model for model in models if name.startswith(model)), key=len, default="")
    if not family:
        raise UsageError(f"{name} is no encoder: one of {', '.join(models)} expected")
    return f"{family}{head}"


# The protocol's verbs for whoever holds a description.


def compile_stage(description: Description, plan: Plan, stage: int = 0) -> Program:
    """One stage of a job: every process gets the same program. Raises UsageError for a plan that the model does not
    take."""
    return architecture_of(description.architecture).compile(description, plan, stage)


def encode_inputs(description: Description, program: Program, batch: Any, tables: Tensors | None = None) -> Tensors:
    """Ring integers of the first stage's inputs. `tables`: the model's own, where its embeddings are public."""
    return architecture_of(description.architecture).encode(description, program, batch, tables)


def decode_outputs(description: Description, program: Program, outputs: Tensors, batch: Any) -> list[Any]:
    """One answer a text."""
    return architecture_of(description.architecture).decode(description, program, outputs, batch)
