"""A job as one trace across the client and the servers: what the code that runs a part of it sees.

A span is a piece of a job's time with a name and what it cost. Where telemetry is configured, `ditto.net.telemetry`
records spans and exports them; here is what there is without: a `Span` records nothing, its methods return at once, and
it passes on the trace that a caller named, so that a server without telemetry does not cut a trace in two.

Whose child a span is, a call says in its metadata (`traceparent`, https://www.w3.org/TR/trace-context/). That is a
caller's word: anything but one well-formed header counts as none, and a trace belongs to whom it came from first
(`Claims`). `tracestate` and baggage are neither read nor sent.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from types import TracebackType
from typing import Any, NamedTuple, Self, TypedDict, Unpack

import grpc

from ditto.errors import DittoError

KEY = "traceparent"
_HEADER = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Context(NamedTuple):
    """A span of some process: its trace's identifier and its own, 32 and 16 hexadecimal digits, and W3C flags."""

    trace: str
    span: str
    flags: str = "01"

    @property
    def header(self) -> str:
        return f"00-{self.trace}-{self.span}-{self.flags}"


def parse(header: str | bytes) -> Context | None:
    """None for what is no `traceparent` of version 00."""
    found = _HEADER.fullmatch(header) if isinstance(header, str) else None
    if found is None or not (found[1].strip("0") and found[2].strip("0")):
        return None
    return Context(*found.groups())


def received(call: grpc.ServicerContext) -> Context | None:
    """What the caller of this call names as the parent; None if it names none, or several."""
    headers = [value for key, value in call.invocation_metadata() or () if key == KEY]
    return parse(headers[0]) if len(headers) == 1 else None


class Attributes(TypedDict, total=False):
    """All that a span may say beside its name and its times: what every server of a job knows, and what was counted."""

    job: str  # the digits that logs show
    model: str
    preset: str
    batch: int
    padded_length: int
    tokens: int
    phase: str
    layer: int
    stage: int
    rounds: int
    bytes_sent: int
    bytes_received: int
    bytes_from_dealer: int
    bytes_to_party0: int
    bytes_to_party1: int
    waiting_seconds: float
    outcome: str


class Span:
    """One that records nothing. `context` is what calls name as their parent."""

    def __init__(self, context: Context | None = None) -> None:
        self.context = context

    @property
    def carried(self) -> dict[str, Any]:
        """The keyword arguments of a gRPC call with which its server continues the trace; none where there is none."""
        return {"metadata": ((KEY, self.context.header),)} if self.context else {}

    def child(self, name: str, parent: Context | None = None, **attributes: Unpack[Attributes]) -> Span:
        """A part of this one, or of `parent`, a caller's in the same trace; of another trace it counts as none."""
        return self

    def note(self, **attributes: Unpack[Attributes]) -> None: ...

    def end(self, error: str = "", seconds: float | None = None) -> None:
        """The first end counts. `error`: the code of what went wrong. `seconds`: how long it took, as measured."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end("" if error is None else code_of(error))


class Tracing:
    """None: what `start` gives records nothing."""

    def start(self, name: str, parent: Context | None = None, **attributes: Unpack[Attributes]) -> Span:
        """The first span of a job at this process."""
        return Span(parent)

    def close(self) -> None:
        """Export what is left, for two seconds at most."""


OFF, SILENT = Tracing(), Span()


def code_of(error: BaseException) -> str:
    """Never its text, which may quote anything."""
    if isinstance(error, DittoError):
        return error.code
    return "CANCELLED" if isinstance(error, GeneratorExit) else type(error).__name__


class Claims:
    """Whose a trace is: the client's that named it first. The last `most` are remembered."""

    def __init__(self, most: int = 4096) -> None:
        self._most, self._lock = most, threading.Lock()
        self._owners: OrderedDict[str, str] = OrderedDict()

    def of(self, context: Context | None, who: str) -> Context | None:
        """The context, unless its trace is somebody else's: then none, and the job gets a trace of its own."""
        if context is None:
            return None
        with self._lock:
            owner = self._owners.setdefault(context.trace, who)
            self._owners.move_to_end(context.trace)
            while len(self._owners) > self._most:
                self._owners.popitem(last=False)
        return context if owner == who else None
