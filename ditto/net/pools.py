"""Threads of a server: calls that must not wait for each other have pools of their own, and no client may hold a thread
for longer than it takes to answer it.

grpc runs a handler in the pool that its behaviour names, and reads the request of a unary call in that thread without a
limit of time. So every call is served as a stream of requests, which looks the same on the wire: then it is known who
calls before anything is read, and what is read has a deadline.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

import grpc

from ditto.errors import Busy, CertificateError, DittoError, LimitExceeded, UsageError

T = TypeVar("T")
FIRST_S = 10.0  # in which a call's first message has to be there
TAKEN_S = 60.0  # in which a client has to take a message that it asked for
WINDOW_S = 60.0  # of waiting, over which the rate of an upload is taken
RETRY_S = 2.0
SHARE = 0.75  # of a pool's threads that one caller may hold


class Kind(NamedTuple):
    """Calls that share a pool: its threads, made when they are needed."""

    name: str
    threads: int
    upload: bool = False  # a client streams: every message has a deadline
    download: bool = False  # a client is streamed to, and has to take what it asked for


HEALTH, CONTROL = Kind("health", 64), Kind("control", 256)
KINDS = {  # what is not named here is control
    "Check": HEALTH,
    "Status": Kind("status", 32),  # asks the other processes, which may be slow
    "StartJob": Kind("start", 64),
    "ListModels": Kind("lists", 64),
    "PutModel": Kind("models", 64, upload=True),
    "PutInput": Kind("inputs", 64, upload=True),
    "FetchOutput": Kind("outputs", 64, download=True),
    "FetchShare": Kind("copies", 32, download=True),
    "Exchange": Kind("link", 8),
    "Correlations": Kind("correlations", 256),
    "RegisterModel": Kind("registrations", 64, upload=True),
    "GetPublic": Kind("public", 32, download=True),
    "Stock": Kind("stock", 64),  # as long as dealing and writing take
    "Deal": Kind("deals", 32, download=True),  # waits as a job does
    "RunJob": Kind("jobs", 64, download=True),  # and one for each that may be queued, since it waits in its thread
}


class Pool(futures.ThreadPoolExecutor):
    """Knows how many of its calls have not ended, and whose they are."""

    def __init__(self, name: str, threads: int, each: int) -> None:
        """`each`: how many one caller may have."""
        super().__init__(threads, thread_name_prefix=f"rpc-{name}")
        self._count, self._most, self._each = threading.Lock(), threads, each
        self._under_way = 0
        self._held: Counter[str] = Counter()

    def submit(self, call: Callable[..., T], /, *args: Any, **named: Any) -> futures.Future[T]:
        with self._count:
            self._under_way += 1
        future = super().submit(call, *args, **named)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: futures.Future[Any]) -> None:
        with self._count:
            self._under_way -= 1

    @property
    def full(self) -> bool:
        """Would the next call wait for a thread?"""
        with self._count:
            return self._under_way >= self._most

    @contextmanager
    def held_by(self, who: str) -> Iterator[bool]:
        """A call of this caller runs; False where that is more than it may have."""
        with self._count:
            self._held[who] += 1
            within = self._held[who] <= self._each
        try:
            yield within
        finally:
            with self._count:
                self._held[who] -= 1
                if not self._held[who]:
                    del self._held[who]


class Call(Protocol):
    """Either end of one."""

    def cancel(self) -> Any: ...


class Watchdog:
    """Cancels calls whose other end is too late: what waits for it inside grpc ends. One thread while there is any."""

    def __init__(self, tick: float = 0.5) -> None:
        self._lock, self._tick = threading.Lock(), tick
        self._due: dict[object, tuple[float, Call]] = {}
        self._running = False

    @contextmanager
    def within(self, seconds: float, context: Call) -> Iterator[None]:
        key = object()
        with self._lock:
            self._due[key] = time.monotonic() + seconds, context
            if not self._running:
                self._running = True
                threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._due.pop(key, None)

    def _watch(self) -> None:
        while True:
            time.sleep(self._tick)
            with self._lock:
                now = time.monotonic()
                late = [key for key, (due, _) in self._due.items() if due < now]
                contexts = [self._due.pop(key)[1] for key in late]
                if not self._due and not contexts:
                    self._running = False
                    return
            for context in contexts:
                context.cancel()


class Pace(NamedTuple):
    """What an upload has to keep: a message within `idle_s`, and on average `min_rate` bytes a second."""

    idle_s: float = 20.0
    min_rate: float = 8 << 10

    def keep(self, requests: Iterator[Any], me: str) -> Iterator[Any]:
        """The requests, as they come. Raises LimitExceeded when the client is too slow; what this server takes to
        handle a message is not counted.

        Another thread reads, one message ahead: grpc's own iterator waits without a limit. It ends with the call.
        """
        pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()
        room, ended = threading.Semaphore(1), threading.Event()

        def read() -> None:
            error: Exception | None = None
            try:
                for request in requests:
                    room.acquire()
                    if ended.is_set():
                        return
                    pieces.put((request, None))
            except Exception as caught:  # of several classes: the client left
                error = caught
            pieces.put((None, error))

        threading.Thread(target=read, name="upload", daemon=True).start()
        waited, received = 0.0, 0
        try:
            while True:
                began = time.monotonic()
                try:
                    request, error = pieces.get(timeout=self.idle_s)
                except queue.Empty:
                    raise LimitExceeded(
                        f"{me}: an upload sent nothing for {self.idle_s:g} s (upload_idle_s)", peer=me
                    ) from None
                if error is not None:
                    raise error
                if request is None:
                    return
                waited, received = waited + time.monotonic() - began, received + request.ByteSize()
                if waited > WINDOW_S:
                    if received < self.min_rate * waited:
                        raise LimitExceeded(
                            f"{me}: an upload came at {received / waited:,.0f} bytes a second; "
                            f"at least {self.min_rate:,.0f} (upload_min_kb_s)",
                            peer=me,
                        )
                    waited, received = 0.0, 0
                room.release()
                yield request
        finally:
            ended.set()
            room.release()


class Pools(grpc.ServerInterceptor):
    """The outermost interceptor: chooses the pool, bounds what one caller holds of it, and sets deadlines.

    `caller` names who calls; `abort` ends a call with an error; `uploads` is how many of a kind one caller may have,
    `queue` how many jobs may wait.
    """

    def __init__(
        self,
        me: str,
        caller: Callable[[grpc.ServicerContext], object],
        abort: Callable[[grpc.ServicerContext, DittoError], NoReturn],
        pace: Pace,
        uploads: int,
        queue: int = 0,
    ) -> None:
        self._me, self._caller, self._abort, self._pace = me, caller, abort, pace
        self._pools: dict[str, Pool] = {}
        for kind in (CONTROL, *KINDS.values()):
            threads = kind.threads + (queue if kind.name == "jobs" else 0)
            each = int(SHARE * threads)
            self._pools[kind.name] = Pool(kind.name, threads, min(uploads, each) if kind.upload else each)
        self._refusals = Pool("refusals", 4, 4)
        self._watchdog = Watchdog()

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        handler = continuation(handler_call_details)
        method = handler_call_details.method.rpartition("/")[2]
        if handler is None or method == "Watch":  # of health: a thread for each who watches, and nobody needs it
            return None
        kind = KINDS.get(method, CONTROL)
        pool = self._pools[kind.name]
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        streams = handler.response_streaming
        call: Any
        if pool.full:
            call, pool = (self._refuse_stream if streams else self._refuse), self._refusals
            call = partial(call, method)
        else:
            first = not handler.request_streaming
            call = partial(self._serve_stream if streams else self._serve, inner, pool, kind, method, first)
        call.experimental_thread_pool = pool
        make = grpc.stream_stream_rpc_method_handler if streams else grpc.stream_unary_rpc_method_handler
        return make(call, handler.request_deserializer, handler.response_serializer)

    def _who(self, context: grpc.ServicerContext) -> str:
        try:
            return str(self._caller(context))
        except CertificateError:  # the guard inside refuses it, or lets it ask for health
            return "nobody"

    def _busy(self, method: str, whose: str = "") -> Busy:
        what = f"{whose} has too many calls of {method} under way" if whose else f"too many calls of {method}"
        return Busy(f"{self._me}: {what}; try again in {RETRY_S:.0f} s", peer=self._me, retry_s=RETRY_S)

    def _refuse(self, method: str, requests: Any, context: grpc.ServicerContext) -> Any:
        self._abort(context, self._busy(method))

    def _refuse_stream(self, method: str, requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._abort(context, self._busy(method))
        yield

    def _argument(self, kind: Kind, one: bool, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """What the handler gets: the one request, or all of them at their pace."""
        if not one:
            return self._pace.keep(requests, self._me) if kind.upload else requests
        with self._watchdog.within(FIRST_S, context):
            request = next(requests, None)
        if request is None:
            self._abort(context, UsageError(f"{self._me}: a call without a request", peer=self._me))
        return request

    def _serve(
        self, inner: Any, pool: Pool, kind: Kind, method: str, one: bool, requests: Any, context: grpc.ServicerContext
    ) -> Any:
        who = self._who(context)
        with pool.held_by(who) as within:
            if not within:
                self._abort(context, self._busy(method, who))
            return inner(self._argument(kind, one, requests, context), context)

    def _serve_stream(
        self, inner: Any, pool: Pool, kind: Kind, method: str, one: bool, requests: Any, context: grpc.ServicerContext
    ) -> Iterator[Any]:
        who = self._who(context)
        with pool.held_by(who) as within:
            if not within:
                self._abort(context, self._busy(method, who))
            replies = inner(self._argument(kind, one, requests, context), context)
            if not kind.download:
                yield from replies
                return
            for reply in replies:
                with self._watchdog.within(TAKEN_S, context):
                    yield reply
