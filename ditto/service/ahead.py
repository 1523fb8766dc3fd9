"""The layers of a job's first stage, prepared in a thread of their own while earlier ones run."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from ditto.engine.memory import reach
from ditto.errors import ClusterError, DittoError
from ditto.service.job_run import PATIENCE, most_telling
from ditto.wire import control_pb2

Event = control_pb2.JobEvent


class Preparing:
    """Calls `prepare` for one layer after another, as far ahead of the one that runs as the parties' memory allows.

    1. A layer may be prepared when what the parties hold of it, and of those that have not run, is within `hold` bytes;
       the one that is next to run in any case. With `hold` 0 layers are prepared and run in turns.
    2. `take` gives what came of each, in order. What `prepare` raised is raised there; or by `telling`, where it tells
       more than what the layer that ran meanwhile ended with.
    3. Left early, nothing further is prepared; `break_off` ends the call under way.

    `held` is bytes of correlations by layer (ditto.engine.memory.held_by_layer).
    """

    def __init__(
        self, held: Sequence[int], hold: int, prepare: Callable[[int], Event], break_off: Callable[[], None]
    ) -> None:
        self._held, self._hold, self._prepare, self._break_off = held, hold, prepare, break_off
        self._changed = threading.Condition()
        self._ready: deque[Event] = deque()
        self._running = 0  # the first layer that has not ended
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
            for layer in range(len(self._held)):
                with self._changed:
                    self._changed.wait_for(lambda at=layer: self._left or self._may(at))  # type: ignore[misc]
                    if self._left:
                        return
                    self._calling = True
                event = self._prepare(layer)
                with self._changed:
                    self._calling = False
                    self._ready.append(event)
                    self._changed.notify_all()
        except BaseException as error:  # raised where the job's own thread asks for it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _may(self, layer: int) -> bool:
        # 1
        return layer <= reach(self._held, self._running, self._hold)

    def take(self) -> Event:
        """What came of preparing the next layer; waits for it."""
        # 2
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready) or self._error is not None)
            if self._ready:
                return self._ready.popleft()
            raise self._error or ClusterError("nothing was prepared")

    def ran(self) -> None:
        """The next layer has run: its correlations are used up."""
        with self._changed:
            self._running += 1
            self._changed.notify_all()

    def telling(self, error: DittoError) -> DittoError:
        """Of a layer's own error and that of the one that was prepared meanwhile, if it fails as well."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not self._calling, PATIENCE)
            found = self._error
        return most_telling([error, found]) if isinstance(found, DittoError) else error
