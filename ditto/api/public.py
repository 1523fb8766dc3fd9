"""What a client needs of a model to ask it: the description and the tokenizer, both public."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ditto.client import store
from ditto.client.public import PublicModel, served

if TYPE_CHECKING:
    from torch import Tensor

    from ditto.client.client import Client
    from ditto.models import Description
    from ditto.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Public:
    """`stored`: where it was imported, for the tables of a model whose embeddings are public, or what was fetched."""

    description: Description
    tokenizer: Tokenizer
    stored: store.StoredModel | PublicModel

    def tables(self) -> dict[str, Tensor] | None:
        """What the client looks words up in, where that is not secret."""
        if self.description.embeddings != "public":
            return None
        from ditto.models import load_checkpoint

        return load_checkpoint(self.stored.checkpoint).tensors


def _public_part(client: Client, name: str, models: Sequence[Path], known: Public | None = None) -> Public:
    """Of a shared model, imported in one of these directories or not (`ditto.client.public.served`); what is fetched is
    kept beside the first of them. `known`, which is given again if it is that: its tokenizer has been read."""
    found = served(client, name, find(name, models), models[0].parent / "public")
    if known is not None and known.stored == found and known.description == found.description:
        return known
    return Public(found.description, found.tokenizer(), found)


def find(name: str, models: Sequence[Path]) -> store.StoredModel | None:
    """The first of an imported model."""
    return next(filter(None, (store.find(name, directory) for directory in models)), None)
