"""What a job's parties do, piece by piece, and how the next piece is prepared while one runs."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ditto.engine.memory import held_by_layer, reach
from ditto.errors import ClusterError, DittoError
from ditto.models import Plan
from ditto.models.compiled import program_for
from ditto.service.job_run import PATIENCE, most_telling
from ditto.wire import control_pb2, party_pb2

Event = control_pb2.JobEvent


@dataclass(frozen=True)
class Work:
    """A layer of the first stage, or a later stage as a whole, which is small.

    `layer` numbers all of them, `held` is bytes of correlations that a party holds once it is prepared.
    """

    request: party_pb2.StepRequest
    layer: int
    name: str
    held: int

    @property
    def stage(self) -> int:
        return self.request.stage


def works_of(job: str, description: str, plan: Plan) -> list[Work]:
    """Of a job, in order. What a later stage holds grows with its cache: the last one's stands for all."""
    program = program_for(description, plan)
    held = held_by_layer(program)
    works = [
        Work(party_pb2.StepRequest(job=job, layer=layer), layer, name, held[layer])
        for layer, name in enumerate(program.layers)
    ]
    if plan.stages > 1:
        most = sum(held_by_layer(program_for(description, plan, plan.stages - 1)))
        for stage in range(1, plan.stages):
            request = party_pb2.StepRequest(job=job, stage=stage, rest=True)
            works.append(Work(request, len(works), f"token {stage + 1}", most))
    return works


class Preparing:
    """Calls `prepare` for one piece of work after another in a thread of its own, one ahead of the one that runs.

    1. A piece may be prepared when the one before it runs, if what the parties hold of both is within `hold` bytes;
       when that one has ended, in any case. With `hold` 0 they are prepared and run in turns.
    2. `take` gives what came of each, in order. What `prepare` raised is raised there; or by `running`, where it tells
       more than what the piece that runs meanwhile ends with: a party that fails to prepare closes the job.
    3. Left early, nothing further is prepared; `break_off` ends the call under way.
    """

    def __init__(
        self, works: Sequence[Work], hold: int, prepare: Callable[[Work], Event], break_off: Callable[[], None]
    ) -> None:
        self._works, self._hold, self._prepare, self._break_off = works, hold, prepare, break_off
        self._held = [work.held for work in works]
        self._changed = threading.Condition()
        self._ready: deque[Event] = deque()
        self._begun = self._ended = 0  # pieces that run, or have run
        self._error: BaseException | None = None
        self._left = self._calling = False
        context = contextvars.copy_context()  # whose job it is, for the log
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="preparing", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # 3
        with self._changed:
            self._left = True
            self._changed.notify_all()
        if error is not None:
            self._break_off()
        self._thread.join()

    def _work(self) -> None:
        try:
            for number, work in enumerate(self._works):
                with self._changed:
                    self._changed.wait_for(lambda at=number: self._left or self._may(at))  # type: ignore[misc]
                    if self._left:
                        return
                    self._calling = True
                event = self._prepare(work)
                with self._changed:
                    self._calling = False
                    self._ready.append(event)
                    self._changed.notify_all()
        except BaseException as error:  # raised where the job's own thread asks for it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _may(self, number: int) -> bool:
        # 1
        if self._ended == self._begun or number < self._begun:
            return number <= self._begun
        return number <= reach(self._held, self._ended, self._hold)

    def take(self) -> Event:
        """What came of preparing the next piece; waits for it."""
        # 2
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready) or self._error is not None)
            if self._ready:
                return self._ready.popleft()
            raise self._error or ClusterError("nothing was prepared")

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the next piece runs. Raises what it ends with, or preparing, if that tells more."""
        with self._changed:
            self._begun += 1
            self._changed.notify_all()
        try:
            yield
        except DittoError as error:
            raise self._telling(error) from None
        with self._changed:
            self._ended += 1
            self._changed.notify_all()

    def _telling(self, error: DittoError) -> DittoError:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not self._calling, PATIENCE)
            found = self._error
        return most_telling([error, found]) if isinstance(found, DittoError) else error
