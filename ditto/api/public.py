"""What a client needs of a model to ask it: the description and the tokenizer, both public."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ditto.client import store
from ditto.errors import JobMismatch, UnknownModel

if TYPE_CHECKING:
    from torch import Tensor

    from ditto.client.client import Client
    from ditto.models import Description
    from ditto.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Public:
    """`stored`: where it was imported, for the tables of a model whose embeddings are public."""

    description: Description
    tokenizer: Tokenizer
    stored: store.StoredModel

    def tables(self) -> dict[str, Tensor] | None:
        """What the client looks words up in, where that is not secret."""
        if self.description.embeddings != "public":
            return None
        from ditto.models import load_checkpoint

        return load_checkpoint(self.stored.checkpoint).tensors


def _public_part(client: Client, name: str, models: Sequence[Path]) -> Public:
    """Of a shared model, from the first of these directories that has it.

    Raises UnknownModel for a model that is not shared or not imported here, NotAllowed, JobMismatch when what is shared
    under this name is another one than what is imported here.
    """
    served = client.get_model(name)
    stored = find(name, models)
    if stored.description != served:
        raise JobMismatch(f"what is shared as {name} is not what is imported here under this name; share it again")
    return Public(served, stored.tokenizer(), stored)


def find(name: str, models: Sequence[Path]) -> store.StoredModel:
    """The first of an imported model. Raises UnknownModel."""
    for directory in models[:-1]:
        try:
            return store.load(name, directory)
        except UnknownModel:
            continue
    return store.load(name, models[-1])
