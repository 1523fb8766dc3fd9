"""The Python API for asyncio: the same names, with `async with`, `await` and `async for`.

    async with ditto.aio.connect() as cluster:
        model = await cluster.model("sst2")
        async for answer in model.classify(texts):
            print(answer.label)

Everything runs in threads (`asyncio.to_thread`), so that the event loop never waits. A task that is cancelled waits for
the job under way (of a generated text: for the token).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ditto.api.threads import whole

if TYPE_CHECKING:
    from ditto.api import cluster, generation, model
    from ditto.api.answers import Answer, Classification, Cost, ModelInfo, Numbers, Text, Token
    from ditto.models import Description
    from ditto.net.config import ClientConfig

T = TypeVar("T")
_END: Any = object()


class Model:
    """`ditto.Model`: what is checked there by the call itself is checked here when the first answer is asked for."""

    def __init__(self, model: model.Model) -> None:
        self._model = model

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def description(self) -> Description:
        return self._model.description

    @property
    def kind(self) -> str:
        return self._model.kind

    @property
    def labels(self) -> tuple[str, ...]:
        return self._model.labels

    @property
    def max_length(self) -> int:
        return self._model.max_length

    def ask(
        self, texts: str | Iterable[Text], pairs: Iterable[str] | None = None, *, batch: int = 8,
        range_check: bool = True, in_flight: int = 2,
    ) -> AsyncIterator[Answer]:  # fmt: skip
        return _each(lambda: self._model.ask(texts, pairs, batch=batch, range_check=range_check, in_flight=in_flight))

    def classify(
        self, texts: str | Iterable[Text], pairs: Iterable[str] | None = None, *, batch: int = 8,
        range_check: bool = True, in_flight: int = 2,
    ) -> AsyncIterator[Classification]:  # fmt: skip
        return _each(
            lambda: self._model.classify(texts, pairs, batch=batch, range_check=range_check, in_flight=in_flight)
        )

    async def score(
        self, texts: str | Iterable[Text], pairs: Iterable[str] | None = None, *, batch: int = 8,
        range_check: bool = True, in_flight: int = 2,
    ) -> Numbers:  # fmt: skip
        return await whole(
            lambda: self._model.score(texts, pairs, batch=batch, range_check=range_check, in_flight=in_flight)
        )

    async def encode(
        self, texts: str | Iterable[str], *, normalize: bool = False, batch: int = 8, range_check: bool = True,
        in_flight: int = 2,
    ) -> Numbers:  # fmt: skip
        return await whole(
            lambda: self._model.encode(
                texts, normalize=normalize, batch=batch, range_check=range_check, in_flight=in_flight
            )
        )

    def generate(
        self, prompt: str, *, max_new_tokens: int = 32, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
        seed: int | None = None, server_argmax: bool = False, exact_length: bool = False, range_check: bool = True,
    ) -> Generation:  # fmt: skip
        return Generation(
            self._model.generate(
                prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                server_argmax=server_argmax, exact_length=exact_length, range_check=range_check,
            )
        )  # fmt: skip


class Generation(AsyncIterator["Token"]):
    """`ditto.Generation`."""

    def __init__(self, generation: generation.Generation) -> None:
        self._generation = generation
        self._tokens = _each(lambda: generation, generation.stop)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        return await anext(self._tokens)

    async def aclose(self) -> None:
        """End the job, if it is under way, and wait for that."""
        await whole(self._generation.close)

    @property
    def prompt(self) -> str:
        return self._generation.prompt

    @property
    def text(self) -> str:
        return self._generation.text

    @property
    def cost(self) -> Cost:
        return self._generation.cost

    @property
    def in_range(self) -> bool | None:
        return self._generation.in_range

    @property
    def tokens_per_second(self) -> float:
        return self._generation.tokens_per_second


class Cluster:
    """`ditto.Cluster`. Made by `connect` and `local`, and opened by `async with`."""

    def __init__(self, open_: Callable[[], cluster.Cluster]) -> None:
        self._open = open_
        self._opened: cluster.Cluster | None = None

    @property
    def _cluster(self) -> cluster.Cluster:
        if self._opened is None:
            from ditto.errors import UsageError

            raise UsageError("no connection: use `async with`")
        return self._opened

    async def __aenter__(self) -> Self:
        self._opened = await whole(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._opened is not None:
            await whole(self._opened.close)

    async def model(self, name: str) -> Model:
        return Model(await whole(lambda: self._cluster.model(name)))

    async def models(self) -> list[ModelInfo]:
        return await whole(self._cluster.models)

    async def share(
        self, checkpoint: str | os.PathLike[str], name: str | None = None, *, calibrate: Iterable[Text] | None = None,
        preset: str | None = None, embeddings: str = "secret", hard_texts: bool = True,
    ) -> Model:  # fmt: skip
        shared = await whole(
            lambda: self._cluster.share(
                checkpoint, name, calibrate=calibrate, preset=preset, embeddings=embeddings, hard_texts=hard_texts
            )
        )
        return Model(shared)

    async def remove(self, name: str) -> None:
        await whole(lambda: self._cluster.remove(name))

    async def grant(self, name: str, client: str) -> None:
        await whole(lambda: self._cluster.grant(name, client))

    async def revoke(self, name: str, client: str) -> None:
        await whole(lambda: self._cluster.revoke(name, client))


def connect(config: str | os.PathLike[str] | ClientConfig | None = None) -> Cluster:
    """`ditto.connect`."""
    import ditto

    return Cluster(lambda: ditto.connect(config))


def local(*, threads: int = 1, network: str | None = None) -> Cluster:
    """`ditto.local`: the servers start with `async with`."""
    import ditto

    return Cluster(lambda: ditto.local(threads=threads, network=network))


async def _each(begin: Callable[[], Iterator[T]], stop: Callable[[], None] = lambda: None) -> AsyncIterator[T]:
    """The items of an iterator, each from a thread; the iterator is closed when nobody takes more."""
    items = await whole(begin)
    try:
        while (item := await whole(lambda: next(items, _END), stop)) is not _END:
            yield item
    finally:
        close: Callable[[], None] | None = getattr(items, "close", None)
        if close is not None:
            await whole(close)
