"""What the dealer has for one party and job: correlations that are dealt and wait to be sent."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator

from ditto.errors import ClusterError, DittoError
from ditto.net.bulk import Data
from ditto.net.transport import CHUNK


class Feed:
    """One party's bounded queue of chunks. The limit counts bytes; `unblocked` puts may pass it by one chunk."""

    def __init__(self, limit: int) -> None:
        self.changed = threading.Condition()
        self._chunks: deque[tuple[float, Data]] = deque()
        self._held, self._limit = 0, limit
        self._small: list[Data] = []
        self._small_bytes = 0
        self.ended = False
        self.error: DittoError | None = None
        self.sent = 0

    @property
    def ready(self) -> int:
        """Bytes dealt and not sent yet."""
        return self._held + self._small_bytes

    def add(self, data: Data, other: Feed) -> None:
        """Queue `data` in chunks of about 1 MB, waiting while full. What `other` still gathers goes out first:
        its party may need it before this one makes room."""
        if len(data) < CHUNK:
            self._small.append(data)
            self._small_bytes += len(data)
            if self._small_bytes < CHUNK:
                return
            self.flush(wait_with=other)
            return
        self.flush()
        view = memoryview(data)
        for start in range(0, len(data), CHUNK):
            self._put(view[start : start + CHUNK], other)

    def flush(self, wait_with: Feed | None = None) -> None:
        if self._small:
            whole = self._small[0] if len(self._small) == 1 else b"".join(self._small)
            self._small, self._small_bytes = [], 0
            self._put(whole, wait_with)

    def _put(self, chunk: Data, wait_with: Feed | None) -> None:
        with self.changed:
            full = self._held >= self._limit and wait_with is not None
        if full and wait_with is not None:
            wait_with.flush()
        with self.changed:
            if full:
                self.changed.wait_for(lambda: self._held < self._limit or self.ended)
            if self.ended:
                raise ClusterError("the job was dropped")
            self._chunks.append((time.monotonic(), chunk))
            self._held += len(chunk)
            self.changed.notify_all()

    def end(self, error: DittoError | None = None) -> None:
        with self.changed:
            if error is not None:
                self.error = self.error or error
                self._chunks.clear()
                self._held = 0
            self.ended = True
            self.changed.notify_all()

    def drain(self) -> Iterator[tuple[float, Data]]:
        """The chunks in order, each with the time (time.monotonic) at which it was queued."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: bool(self._chunks) or self.ended)
                if self.error is not None:
                    raise self.error
                if not self._chunks:
                    return
                queued, chunk = self._chunks.popleft()
                self._held -= len(chunk)
                self.sent += len(chunk)
                self.changed.notify_all()
            yield queued, chunk
