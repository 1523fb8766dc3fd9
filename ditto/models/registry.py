"""Every architecture by the name of its Hugging Face class. A new one is a file and a line here."""

from __future__ import annotations

from ditto.errors import UnsupportedArchitecture, UsageError
from ditto.models import bert, distilbert, electra, gpt2, mpnet, roberta
from ditto.models.architecture import Answer, Architecture, Generator

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
        raise UnsupportedArchitecture(f"{name or 'no architecture'}: supported are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def generator_of(name: str) -> Generator:
    """An architecture that generates text. Raises UsageError for one that does not."""
    if name not in GENERATORS:
        raise UsageError(f"{name} generates no text: ask it with `ditto infer`")
    return GENERATORS[name]


def generates(name: str) -> bool:
    """Has a job of this architecture later stages, of a token each?"""
    return architecture_of(name).answer is Answer.text
