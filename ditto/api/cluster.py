"""A running cluster, as a client sees it."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ditto.api.answers import ModelInfo
from ditto.api.model import Model
from ditto.api.public import Public, _public_part, find
from ditto.api.sharing import import_checkpoint, share
from ditto.client.client import Client
from ditto.client.local_cluster import client_config
from ditto.client.store import models_dir
from ditto.errors import UnknownModel
from ditto.models import architecture_of
from ditto.names import check_name
from ditto.net.config import ClientConfig

if TYPE_CHECKING:
    from ditto.api.answers import Text


class Cluster:
    """A client of four servers. Made by `connect` and `local`; a context manager, or `close` ends it."""

    def __init__(
        self, config: ClientConfig, models: Sequence[Path], servers: contextlib.ExitStack, *, bring: bool = False
    ) -> None:
        """`models`: directories of imported models; what is shared is noted in the first. `servers` are closed with
        the client. `bring`: share what is imported when it is asked for first."""
        self._client = Client(config)
        self._models, self._bring = list(models), bring
        self._known: dict[str, Public] = {}
        servers.callback(self._client.close)
        self._end = weakref.finalize(self, servers.close)  # also when the interpreter ends

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connections; of `local`, the servers as well. Can be repeated."""
        self._end()

    def model(self, name: str) -> Model:
        """A shared model, to be asked.

        Raises UnknownModel where it is not shared, NotAllowed, IntegrityError where it is not as its owner published
        it, JobMismatch for one that was imported anew and not shared since.
        """
        check_name(name)
        try:
            public = _public_part(self._client, name, self._models, self._known.get(name))
        except UnknownModel:
            here = find(name, self._models) if self._bring else None
            if here is None:
                raise
            share(self._client, here)
            public = _public_part(self._client, name, self._models)
        self._known[name] = public
        return Model(self._client, public, self)

    def models(self) -> list[ModelInfo]:
        """The shared models that this client owns or may ask, by name."""
        return [
            ModelInfo(
                name=shared.name,
                owner=shared.owner,
                architecture=shared.description.architecture,
                preset=shared.description.preset,
                kind=architecture_of(shared.description.architecture).answer.value,
                max_length=shared.description.dimensions.positions,
                labels=shared.description.dimensions.labels,
            )
            for shared in self._client.list_models()
        ]

    def share(
        self, checkpoint: str | os.PathLike[str], name: str | None = None, *, calibrate: Iterable[Text] | None = None,
        preset: str | None = None, embeddings: str = "secret", hard_texts: bool = True,
    ) -> Model:  # fmt: skip
        """Import a checkpoint (a directory) and share its weights between the parties: a model of this client's, in the
        place of an earlier one of the name (default: the directory's).

        `calibrate`: texts (or pairs) typical of later use; not needed for what `ditto distill` made. `preset`: default
        `ditto`, or what it was distilled for. `embeddings`: "secret", or "public" when the client may look words up.
        `hard_texts`: calibrate on ditto's own texts as well (digits, code, scripts, repetition, long ones). Warns of
        few, short or narrow texts (CalibrationWarning).
        Raises BadCheckpoint, UnsupportedArchitecture, RangeError, UsageError, NotAllowed for another client's name.
        """
        stored = import_checkpoint(Path(checkpoint), name, calibrate, preset, embeddings, self._models[0], hard_texts)
        share(self._client, stored)
        return self.model(stored.dir.name)

    def remove(self, name: str) -> None:
        """Have the servers forget a model of this client's. What is imported here stays."""
        self._client.remove_model(check_name(name))

    def grant(self, name: str, client: str) -> None:
        """Let another client, by its certificate's name, ask a model of this client's."""
        self._client.grant_model(check_name(name), check_name(client))

    def revoke(self, name: str, client: str) -> None:
        """Take back what was granted; a job under way is not ended."""
        self._client.grant_model(check_name(name), check_name(client), revoke=True)


def connect(config: str | os.PathLike[str] | ClientConfig | None = None) -> Cluster:
    """A client of a running cluster. Raises ConfigError; servers are reached with the first call that needs them.

    `config`: a client's YAML file, else the file in $DITTO_CONFIG, else that of this user's local cluster.
    """
    if not isinstance(config, ClientConfig):
        named = config or os.environ.get("DITTO_CONFIG")
        config = client_config(Path(named) if named else None)
    return Cluster(config, [models_dir()], contextlib.ExitStack())
