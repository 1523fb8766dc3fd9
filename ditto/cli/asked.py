"""Which model a command asks: the one that the servers hold, with files that are of exactly that version."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ditto.cli.common import note
from ditto.client import store
from ditto.client.local_cluster import Cluster, client_config, home
from ditto.errors import UnknownModel, UsageError
from ditto.net.config import ClientConfig

if TYPE_CHECKING:
    from ditto.client.client import Client
    from ditto.client.public import PublicModel

    Model = store.StoredModel | PublicModel


def settings_for(name: str, config: Path | None) -> ClientConfig:
    """Where a model is asked. Raises UnknownModel where there is neither a cluster nor such a model."""
    if store.find(name) is None and config is None and not Cluster(home()).config_path("client").exists():
        store.load(name)  # says what there is
    return client_config(config)


@contextmanager
def asking(name: str, settings: ClientConfig) -> "Iterator[tuple[Client, Model]]":
    """The configured cluster, and the model of that name as it serves there."""
    from ditto.client.client import Client

    with Client(settings) as client:
        yield client, served(client, name)


def served(client: "Client", name: str) -> "Model":
    """What the servers hold under a name: the import here if it is the same version, else its public part.

    Versions are told apart by the description, which holds for the tokenizer's files, too. What is imported here and is
    another version is never asked with: its owner is told to share it; of somebody else's model the public part is
    taken, with a note. Raises UsageError, UnknownModel, and what `fetch` raises.
    """
    from ditto.client.public import fetch
    from ditto.net.signed import own_identity

    here = store.find(name)
    try:
        shared = client.shared(name)
    except UnknownModel as error:
        if here is None:
            raise
        raise UnknownModel(f"{error}; {name} is imported here: ditto model share {name}", peer=error.peer) from None
    if here is not None and here.description == shared.description:
        return here
    if here is not None and shared.owner == str(own_identity(client.tls)):
        raise UsageError(f"{name} was shared before it was imported as it is here: ditto model share {name}")
    if here is not None:
        note(f"{name} of {shared.owner} is another model than the one of that name here; {shared.owner}'s is asked")
    return fetch(client, name, public_dir())


def public_dir() -> Path:
    """What was fetched of others' models; may be removed at any time."""
    return home() / "public"
