"""One job as the coordinator drives it: both parties in step, one cancellation for everything under way."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from ditto.errors import CertificateError, ClusterError, DittoError, IntegrityError, PeerAbsent, PeerLost
from ditto.net.tracing import SILENT
from ditto.net.transport import from_rpc_error
from ditto.service.turns import Turns
from ditto.wire import control_pb2, party_pb2, party_pb2_grpc

Stubs = dict[str, party_pb2_grpc.PartyStub]
NOWHERE: Mapping[str, str] = {}
GRACE = 2.0  # beyond a step's time, in which a party says itself what it waited for
REPEAT_S = 15.0  # after which a waiting client hears its place again
PATIENCE = 1.0  # how long the second party may take to say what it knows, once the first one failed


class Account:
    """What the coordinator remembers of the jobs that ended."""

    def __init__(self, recent: int = 20) -> None:
        self._lock = threading.Lock()
        self._ended = {"done": 0, "failed": 0, "cancelled": 0}
        self._recent: deque[dict[str, float]] = deque(maxlen=recent)
        self._took: deque[float] = deque(maxlen=recent)

    def add(self, outcome: str, seconds: dict[str, float], took: float, beside: int = 0) -> None:
        """`seconds` by phase, which overlap; `took` from the job's inputs to its end, with `beside` others running."""
        with self._lock:
            self._ended[outcome if outcome in self._ended else "failed"] += 1
            if outcome == "done":
                self._recent.append(seconds)
                self._took.append(took / (1 + beside))

    def pace(self) -> float:
        """Seconds from one end of a job to the next, on average of the last: jobs that overlap share their seconds."""
        with self._lock:
            return sum(self._took) / max(1, len(self._took))

    def state(self) -> control_pb2.Throughput:
        with self._lock:
            count = len(self._recent)
            online, offline = (sum(s[p] for s in self._recent) / max(1, count) for p in ("online", "offline"))
            return control_pb2.Throughput(
                done=self._ended["done"], failed=self._ended["failed"], cancelled=self._ended["cancelled"],
                recent=count, online_seconds=online, offline_seconds=offline,
            )  # fmt: skip


class JobRun:
    """Calls to both parties on behalf of one job."""

    def __init__(
        self, name: str, stubs: Stubs, step_timeout: float, client: str = "", where: Mapping[str, str] = NOWHERE
    ) -> None:
        """`stubs`: of both parties; of a job, once its turn says which workers'. `where`, by role: what an error says
        of which they are."""
        self.name, self.stubs, self._timeout, self.where = name, stubs, step_timeout + GRACE, where
        self.job = name  # what the parties call it: another name where what was in stock under this one was refused
        self.stocked = False  # its correlations were in stock
        self.client = client  # the identity that runs the job; nobody's for an activation
        self.pair = 0  # of workers, that it runs on
        self.stage = 0  # whose inputs the client brings next
        self.ended = False  # the client wants no further stage
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self.done = False
        self.seconds = {"offline": 0.0, "online": 0.0}  # of the slower party, summed over the layers
        self.took = 0.0  # seconds from the inputs to the end
        self.traffic: list[party_pb2.Traffic] = []  # of each party, as of its last step
        self.span = SILENT  # of the whole job
        self.begun = False  # from here on a silent process is lost, not absent
        self._lock = threading.Lock()
        self._flying: set[Any] = set()
        self._over = False  # no further call is made

    def cancel(self) -> None:
        """The client went away: stop what is under way. Harmless after the end."""
        if self.done:
            return
        self.cancelled.set()
        self.started.set()
        self.break_off()

    def break_off(self) -> None:
        """End the calls that are under way; there will be no others."""
        with self._lock:
            self._over, flying = True, list(self._flying)
        for call in flying:
            call.cancel()

    def await_client(self, turns: Turns, give_way: float, when_others_wait: float, longest: float) -> None:
        """Until the client's inputs are there, and it is this job's turn. Times in seconds. Raises ClusterError.

        1. A slow client costs others little: after `give_way` its job steps aside for them.
        2. Where it cannot, since others stand aside, it ends after `when_others_wait` if somebody waits; so does one
           that stands aside, if there is no room for the next beside what it keeps; any after `longest`.
        3. A job that stood aside comes back with its inputs, before those that had no turn yet.
        """
        began, aside = time.monotonic(), False
        while not self.started.wait(min(0.5, give_way)):
            waited = time.monotonic() - began
            # 1
            if not aside and waited > give_way:
                aside = turns.step_aside(self.name)
            # 2
            if waited > longest:
                raise ClusterError("the client's inputs did not arrive in time")
            if waited > when_others_wait and turns.holds_up(self.name):
                raise ClusterError(
                    f"no inputs from the client within {when_others_wait:g} s, and others wait (start_timeout_s)"
                )
        self.check()
        # 3
        if aside:
            turns.come_back(self.name)
            self.wait_turn(turns)

    def places(self, turns: Turns, step_timeout: float) -> Iterator[int]:
        """Its place whenever that is another, and again every REPEAT_S, until it is its turn: a client does not wait
        for a silent coordinator without end."""
        place = turns.place(self.name)
        while place:
            yield place
            before, said = place, time.monotonic()
            while place == before and time.monotonic() - said < min(REPEAT_S, step_timeout / 2):
                place = turns.place(self.name, 0.2)
                self.check()

    def wait_turn(self, turns: Turns) -> None:
        while turns.place(self.name, 0.2):
            self.check()

    def check(self) -> None:
        if self.cancelled.is_set():
            raise ClusterError("the client ended the job")
        if self._over:
            raise ClusterError("the job was given up")

    def both(self, call: Callable[[party_pb2_grpc.PartyStub, float], Any]) -> list[Any]:
        """Run one RPC at both parties at once; their replies, party 0's first. Two threads may do so at a time.

        1. Start the call at both, where `cancel` finds it. Each notes its party in `ended` when it ends.
        2. Wait until both have ended. Once one has failed, the other has PATIENCE left to say what it knows.
        3. If one failed, cancel the call that has not ended, and raise the more telling error.
        """
        # 1
        self.check()
        calls: dict[str, Any] = {}
        for role, stub in self.stubs.items():
            try:
                calls[role] = call(stub, self._timeout)
            except DittoError:  # a server whose certificate was revoked is not called
                for other in calls.values():
                    other.cancel()
                raise
        with self._lock:
            self._flying.update(calls.values())
            over = self._over
        if over:  # since the check: `break_off` may have come before there was a call to find
            self.break_off()
        ended: SimpleQueue[str] = SimpleQueue()
        for role, future in calls.items():
            future.add_done_callback(lambda _, role=role: ended.put(role))
        # 2
        waiting = set(calls)
        errors: list[DittoError] = []
        while waiting:
            try:  # without a limit of its own: every call has one
                role = ended.get(timeout=PATIENCE if errors else None)
            except Empty:
                break
            waiting.remove(role)
            if error := self._error(calls[role], role):
                errors.append(error)
        with self._lock:
            self._flying.difference_update(calls.values())
        # 3
        self.check()
        for role in waiting:
            calls[role].cancel()
        if errors:
            raise most_telling(errors)
        return [future.result() for future in calls.values()]

    def _error(self, future: Any, role: str) -> DittoError | None:
        if future.cancelled():
            return ClusterError("the call was cancelled")
        error = future.exception()
        if error is None:
            return None
        if not isinstance(error, grpc.RpcError):
            return DittoError(f"{role}: {error}", peer=role)
        found = from_rpc_error(error, role, running=self.begun)
        if isinstance(found, PeerLost | PeerAbsent) and (where := self.where.get(found.peer or "")):
            return type(found)(f"{found} ({where})", peer=found.peer)
        return found

    def close(self, reason: str) -> None:
        """Best effort at both parties; a dead one is not waited for."""
        ask, calls = party_pb2.CloseJobRequest(job=self.job, reason=reason), []
        for stub in self.stubs.values():
            with contextlib.suppress(CertificateError):  # revoked: it is not called
                calls.append(stub.CloseJob.future(ask, timeout=2.0))
        for call in calls:
            call.exception()


def most_telling(errors: Iterable[DittoError]) -> DittoError:
    return min(errors, key=_vagueness)


def _vagueness(error: DittoError) -> int:
    """What was changed on its way says more than that a party is gone, and that more than "the job was closed"."""
    if isinstance(error, IntegrityError):
        return 0
    return 1 if isinstance(error, PeerLost) else 3 if isinstance(error, ClusterError) else 2
