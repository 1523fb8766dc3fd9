"""What the routes ask: a cluster as one client sees it, its models, and one job after the other."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ditto.api import jobs
from ditto.api.threads import whole
from ditto.client.flight import IN_FLIGHT, Ending, Landed, checked
from ditto.errors import OutOfRange, UsageError
from ditto.models.tokenizer import padded, padded_width
from ditto.serve.flying import flown
from ditto.serve.metrics import Metrics
from ditto.serve.turns import Turns

if TYPE_CHECKING:
    from ditto.api.answers import ModelInfo, Text
    from ditto.api.cluster import Cluster
    from ditto.api.model import Model
    from ditto.models.tokenizer import Batch

BATCH = 8  # texts of one job
J = TypeVar("J")
T = TypeVar("T")
Follow = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Answered:
    """One job: an answer for each of its texts (nested lists, as `ditto.Answer` has them), how many tokens each text
    has, special ones included, and the job's report (`ditto.client.client.InferResult`)."""

    values: list[Any]
    tokens: list[int]
    report: dict[str, Any]

    @property
    def in_range(self) -> bool:
        found: bool = self.report["in_range"]
        return found


class Totals:
    """What the jobs of one request cost together, and whether all values stayed in range."""

    def __init__(self) -> None:
        self.tokens, self.in_range = 0, True
        self._jobs, self._rounds, self._stocked = list[str](), 0, 0
        self._seconds, self._bytes = {"online": 0.0, "offline": 0.0}, {"online": 0, "offline": 0}

    def add(self, answered: Answered) -> None:
        online, offline = answered.report["online"], answered.report["offline"]
        self.tokens += sum(answered.tokens)
        self.in_range &= answered.in_range
        self._jobs.append(answered.report["job"])
        self._rounds += online["rounds"]
        self._stocked += answered.report["stocked_jobs"]
        for name, phase, sent in (("online", online, "bytes_sent"), ("offline", offline, "bytes_to_party")):
            self._seconds[name] += phase["seconds"]
            self._bytes[name] += sum(phase[sent])

    def headers(self) -> dict[str, str]:
        return {"x-ditto-in-range": str(self.in_range).lower(), "x-ditto-stock": str(self.stock).lower()}

    @property
    def stock(self) -> bool:
        """Was all that these jobs needed dealt before?"""
        return 0 < self._stocked == len(self._jobs)

    def document(self) -> dict[str, Any]:
        """`bytes`: online between the parties, offline from the dealer to both."""
        return {
            "in_range": self.in_range, "jobs": self._jobs, "rounds": self._rounds, "seconds": self._seconds,
            "bytes": self._bytes, "stock": self.stock,
        }  # fmt: skip


class State:
    """Made before the server starts, closed by its end. Nothing of a text is kept or logged."""

    def __init__(
        self, cluster: Cluster, *, waiting: int = 32, strict: bool = False, in_flight: int = IN_FLIGHT
    ) -> None:
        """`in_flight` jobs run at once, of one request or of several. `strict`: an answer whose values left their
        calibrated range is an error. Raises UsageError."""
        self.in_flight = checked(in_flight)
        self.cluster = cluster
        self.turns = Turns(self.in_flight, waiting)
        self.metrics = Metrics(self.turns)
        self.strict = strict
        self.started = time.time()

    async def close(self) -> None:
        await whole(self.cluster.close)

    async def models(self) -> list[ModelInfo]:
        """As `ditto.Cluster.models`."""
        return await whole(self.cluster.models)

    async def model(self, name: str) -> Model:
        """As `ditto.Cluster.model`: the version that serves now."""
        return await whole(lambda: self.cluster.model(name))

    async def fitting(self, name: str | None, fits: Callable[[ModelInfo | Model], bool], what: str) -> Model:
        """The model of this name, or without one the only one that fits. Raises UsageError: another kind, none, or
        several of them."""
        if name is None:
            names = [info.name for info in await self.models() if fits(info)]
            if len(names) != 1:
                which = f"several models do: name one of {', '.join(names)} as `model`" if names else "no model does"
                raise UsageError(f"{what}: {which}")
            name = names[0]
        model = await self.model(name)
        if not fits(model):
            raise UsageError(f"{what}: not what {name} does")
        return model

    async def encoded(self, model: Model, texts: Sequence[Text], *, truncate: bool = False) -> list[Batch]:
        """The texts, or pairs, of each job, all of them checked. With `truncate` the end of a long one is left out.

        Raises EmptyText, TextTooLong, UsageError.
        """
        if model.kind == "text":
            raise UsageError(f"{model.name} generates text: /v1/completions asks it")
        return await whole(lambda: self._encode(model, texts, truncate))

    def _encode(self, model: Model, texts: Sequence[Text], truncate: bool) -> list[Batch]:
        tokenizer, limit = model._public.tokenizer, model.max_length
        pieces = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        if not truncate:
            return [tokenizer.encode(piece, limit) for piece in pieces]
        rows = [tokenizer.cut(piece, limit) for piece in pieces]
        return [padded(some, padded_width(max(len(ids) for ids, _ in some), limit)) for some in rows]

    async def ask(
        self, model: Model, batches: Sequence[Batch], follow: Follow | None = None
    ) -> AsyncIterator[Answered]:
        """The answers of what `encoded` gave, job by job. Raises Busy, and what the servers say; with `strict`,
        OutOfRange.

        `follow` is called with each event of a job, in the job's thread. Who is cancelled ends the jobs under way and
        waits for their end; there is no further one.
        """

        def one(batch: Batch, ending: Ending) -> Answered:
            tables = model._public.tables()
            values, report = jobs.ask(
                model._client, model.description, batch, tables, True, follow, None, None, ending
            )  # fmt: skip
            return Answered(values, batch.mask.sum(1).tolist(), report)

        async with self.turns.place():
            async for landed in self.flown(batches, one):
                self.count(model, landed.value.report, len(landed.value.values))
                yield landed.value

    def flown(
        self, of_request: Sequence[J], ask: Callable[[J, Ending], T], in_flight: int | None = None
    ) -> AsyncGenerator[Landed[J, T], None]:
        """The answers of one request's jobs, in order; `ask` is called in threads, in the turn of each. Only within
        `turns.place`. `in_flight`: of this request's, where it asks for other than the daemon's."""
        return flown(of_request, ask, in_flight or self.in_flight, self.turns.run)

    async def job(self, work: Callable[[], Any], stop: Callable[[], None] = lambda: None) -> Any:
        """Call what runs one job, in a thread, when it is its turn. Only within `turns.place`. Who is cancelled calls
        `stop` and waits for its end."""
        return await self.turns.run(lambda: whole(work, stop))

    def count(self, model: Model, report: dict[str, Any], texts: int) -> None:
        """A job that is done. Raises OutOfRange where `strict` says so."""
        self.metrics.job(model.name, report, texts)
        if self.strict and report["in_range"] is False:
            raise OutOfRange(f"values of {model.name} left their calibrated range: the answer may be wrong")

    async def status(self) -> dict[str, Any]:
        """What the coordinator says of the four servers (`ditto.client.client.Client.status`)."""
        return await whole(self.cluster._client.status)
