"""What waits to go out on one stream: messages of several jobs, a piece of 1 MB of each in turn.

A large message of one job holds back no other job's by more than a piece. Those of one job keep their order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ditto.net.bulk import Data
from ditto.net.transport import CHUNK
from ditto.transcript import DIGEST
from ditto.wire import party_pb2

Head = party_pb2.Frame  # of a frame: all but its data
# Payloads wait as they are, with the time at which they were queued and the digests of their pieces; a frame is built
# from its slice only when gRPC asks for it.
Item = tuple[float, Head, Data, bytes]


@dataclass
class _Waiting:
    queued: float
    head: Head
    payload: memoryview
    digests: bytes
    sent: int = 0  # pieces


class Outbox:
    """A queue without bound. Any thread may put; one takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: dict[str, deque[_Waiting]] = {}  # whose turn is the longest ago comes first
        self._closed = False

    def put(self, item: Item | None) -> None:
        """A message. None: nothing comes after what is there."""
        with self._changed:
            if item is None:
                self._closed = True
            elif not self._closed:
                queued, head, payload, digests = item
                message = _Waiting(queued, head, memoryview(payload), digests)
                self._jobs.setdefault(head.job, deque()).append(message)
            self._changed.notify_all()

    def get(self, leaves: Callable[[], float] = time.monotonic) -> Item | None:
        """The next piece, as a message of its own; waits for one. None at the end.

        `leaves`: when a piece that is taken now begins to leave. An emulated link lags behind its sender: its turn is
        among the jobs whose messages were there by then, or else the first that came after.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._jobs) or self._closed)
            if not self._jobs:
                return None
            waiting = self._jobs.pop(self._turn(leaves))
            message = waiting[0]
            if len(message.payload) <= CHUNK:
                item = message.queued, message.head, message.payload, message.digests
            else:
                start, head = message.sent * CHUNK, Head()
                head.CopyFrom(message.head)
                head.offset += start
                item = message.queued, head, message.payload[start : start + CHUNK], self._digest(message)
            message.sent += 1
            if message.sent * CHUNK >= len(message.payload):
                waiting.popleft()
            if waiting:
                self._jobs[item[1].job] = waiting  # behind the others
            return item

    def _turn(self, leaves: Callable[[], float]) -> str:
        if len(self._jobs) == 1:
            return next(iter(self._jobs))
        at = leaves()
        ready = (job for job, waiting in self._jobs.items() if waiting[0].queued <= at)
        return next(ready, None) or min(self._jobs, key=lambda job: self._jobs[job][0].queued)

    @staticmethod
    def _digest(message: _Waiting) -> bytes:
        return message.digests[message.sent * DIGEST : (message.sent + 1) * DIGEST]
