"""Which model a command asks: the one that the servers hold, with files that are of exactly that version."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ditto.cli.common import note
from ditto.client import store
from ditto.client.local_cluster import Cluster, client_config, home
from ditto.errors import JobMismatch, UnknownModel, UsageError
from ditto.net.config import ClientConfig
from ditto.wall import Wall

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
def asking(name: str, settings: ClientConfig, wall: Wall | None = None) -> "Iterator[tuple[Client, Model]]":
    """The configured cluster, and the model of that name as it serves there. `wall` is told where the time goes."""
    wall = wall or Wall()
    from ditto.client.client import Client

    wall.lap("imports")
    with Client(settings) as client:
        client.reach()
        wall.lap("connection")
        yield client, served(client, name)


def served(client: "Client", name: str, say: Callable[[str], None] = note) -> "Model":
    """As `ditto.client.public.served` has it, in a command's words: an owner is told to share what was imported anew,
    and that somebody else's model is asked, not the one of its name here, is said."""
    from ditto.client import public

    here = store.find(name)
    try:
        found = public.served(client, name, here, public_dir())
    except UnknownModel as error:
        if here is None:
            raise
        raise UnknownModel(f"{error}; {name} is imported here: ditto model share {name}", peer=error.peer) from None
    except JobMismatch:
        raise UsageError(f"{name} was shared before it was imported as it is here: ditto model share {name}") from None
    if here is not None and isinstance(found, public.PublicModel):
        say(f"{name} of {found.owner} is another model than the one of that name here; {found.owner}'s is asked")
    return found


def public_dir() -> Path:
    """What was fetched of others' models; may be removed at any time."""
    return home() / "public"
