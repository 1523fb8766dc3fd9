"""What a client needs of a model to ask it: the description and the tokenizer, both public."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ditto.client import store
from ditto.client.public import PublicModel, fetch
from ditto.errors import JobMismatch
from ditto.net.signed import own_identity

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


def _public_part(client: Client, name: str, models: Sequence[Path]) -> Public:
    """Of a shared model: from the first of these directories that has it, if that is the same version, else as its
    owner published it (`ditto.client.public`), kept beside the first directory.

    Raises UnknownModel, NotAllowed, JobMismatch for a model of one's own that was imported anew, what `fetch` raises.
    """
    shared, here = client.shared(name), find(name, models)
    if here is not None and here.description == shared.description:
        return Public(here.description, here.tokenizer(), here)
    if here is not None and shared.owner == str(own_identity(client.tls)):
        raise JobMismatch(f"what is shared as {name} is not what is imported here under this name; share it again")
    fetched = fetch(client, name, models[0].parent / "public")
    return Public(fetched.description, fetched.tokenizer(), fetched)


def find(name: str, models: Sequence[Path]) -> store.StoredModel | None:
    """The first of an imported model."""
    return next(filter(None, (store.find(name, directory) for directory in models)), None)
