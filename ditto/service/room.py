"""What a server lets all jobs hold at once: its own limit, whoever asks it to open them."""

from __future__ import annotations

import threading

from ditto.errors import Busy

WAIT_S = 2.0  # for what ends this moment: one server knows of a job's end before another
RETRY_S = 5.0
MB = 1 << 20


class Room:
    """Bytes by job, as predicted; any thread may call."""

    def __init__(self, limit: int, me: str) -> None:
        self._limit, self._me = limit, me
        self._changed = threading.Condition()
        self._taken: dict[str, int] = {}

    @property
    def taken(self) -> int:
        with self._changed:
            return sum(self._taken.values())

    def open(self, job: str, nbytes: int, wait: float = WAIT_S) -> None:
        """A job holds so much from here on. Waits for room; raises Busy."""
        with self._changed:
            self._take(job, nbytes, wait)

    def change(self, job: str, nbytes: int, wait: float = WAIT_S) -> None:
        """The same for one that is open, in the place of what it held; nothing for one that has ended meanwhile."""
        with self._changed:
            if job in self._taken:
                self._take(job, nbytes, wait)

    def _take(self, job: str, nbytes: int, wait: float) -> None:
        """The caller holds the lock."""
        known = job in self._taken
        if not self._changed.wait_for(lambda: self._beside(job) + nbytes <= self._limit, wait):
            beside, limit = self._beside(job) / MB, self._limit / MB
            raise Busy(
                f"{self._me}: a job that holds about {nbytes / MB:,.0f} MB, beside others that hold {beside:,.0f}; "
                f"it takes at most {limit:,.0f} of all at once (jobs_mb); try again in {RETRY_S:.0f} s",
                peer=self._me, retry_s=RETRY_S,
            )  # fmt: skip
        if known and job not in self._taken:  # it has ended while it waited
            return
        self._taken[job] = nbytes
        self._changed.notify_all()

    def wait_for(self, job: str, nbytes: int, wait: float = WAIT_S) -> bool:
        """Is there room for so much? Waits for it, and takes nothing."""
        with self._changed:
            return self._changed.wait_for(lambda: self._beside(job) + nbytes <= self._limit, wait)

    def _beside(self, job: str) -> int:
        return sum(taken for other, taken in self._taken.items() if other != job)

    def give_back(self, job: str) -> None:
        """All that a job held: it has ended. Harmless for one that holds nothing."""
        with self._changed:
            self._taken.pop(job, None)
            self._changed.notify_all()
