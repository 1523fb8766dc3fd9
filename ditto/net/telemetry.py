"""Spans, recorded and exported to an OpenTelemetry collector by OTLP over HTTP, where `telemetry` is configured.

Each process exports to the collector of its own configuration, and to no other: redirects are not followed, no proxy
and no netrc of the environment is used. OpenTelemetry is imported only here, and only if it is configured.

A span is queued in memory; a thread sends what is there once a second. A collector that is slow, away or refuses costs
spans, never a job: the queue is bounded, what does not fit is dropped, and the end of a process waits CLOSE_S at most.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import structlog

from ditto.errors import ConfigError
from ditto.net.config import AnyConfig, Telemetry
from ditto.net.tracing import OFF, Attributes, Context, Span, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as Recording
    from opentelemetry.trace import SpanKind

SPANS = 1000  # of one job at one process; what goes beyond is counted, not recorded
QUEUE, BATCH = 4096, 512  # spans that wait, and that go at once
EVERY_MS = 1000
EXPORT_S, CLOSE_S, LINE_S = 5.0, 2.0, 60.0


def _version() -> str:
    try:
        return version("ditto-mpc")
    except PackageNotFoundError:  # run from its source
        return "unknown"


def tracing_of(config: AnyConfig) -> Tracing:
    """What records the spans of the process of this configuration. Raises ConfigError where that cannot be."""
    if config.telemetry is None:
        return OFF
    return _Exported(config.telemetry, config.role)


class _Exported(Tracing):
    def __init__(self, config: Telemetry, role: str) -> None:
        try:
            self._provider = _provider(config, role)
        except ImportError as error:
            raise ConfigError(
                f"{role}: telemetry is configured, but OpenTelemetry is not installed ({error.name}): "
                "install Ditto with its extra, `pip install '.[telemetry]'`, or leave telemetry out"
            ) from None
        self._tracer = self._provider.get_tracer("ditto", _version())
        self._client = role == "client"

    def start(self, name: str, parent: Context | None = None, **attributes: Unpack[Attributes]) -> Span:
        from opentelemetry import trace

        if parent is None and self._client:  # a part of what the application traces, if it does
            around = trace.get_current_span().get_span_context()
            parent = _named(around) if around.is_valid else None
        kind = trace.SpanKind.CLIENT if self._client else trace.SpanKind.SERVER
        shared = _Shared(self._tracer, time.time_ns() - time.perf_counter_ns(), SPANS)
        return _Recorded(shared, name, parent, kind, attributes, first=True)

    def close(self) -> None:
        """Its own shutdown waits for as long as a collector does."""
        ending = threading.Thread(target=self._provider.shutdown, name="telemetry-end", daemon=True)
        ending.start()
        ending.join(CLOSE_S)


@dataclass
class _Shared:
    """By the spans of one job at one process. `zero`: the time of day, in ns, at which its monotonic clock was 0, so
    that a clock that is set meanwhile tears nothing apart."""

    tracer: Any
    zero: int
    left: int  # spans that the job may still have here
    omitted: int = 0


class _Recorded(Span):
    def __init__(
        self,
        shared: _Shared,
        name: str,
        parent: Context | None,
        kind: SpanKind,
        attributes: Attributes,
        first: bool = False,
    ) -> None:
        self._shared, self._first, self._ended = shared, first, False
        self._start = shared.zero + time.perf_counter_ns()
        self._span: Recording = shared.tracer.start_span(
            name, _around(parent), kind, _prefixed(attributes), start_time=self._start
        )
        own = self._span.get_span_context()
        super().__init__(_named(own) if own.is_valid else parent)

    def child(self, name: str, parent: Context | None = None, **attributes: Unpack[Attributes]) -> Span:
        from opentelemetry.trace import SpanKind

        shared = self._shared
        if parent is None or self.context is None or parent.trace != self.context.trace:
            parent = self.context
        if shared.left <= 0:
            shared.omitted += 1
            return Span(self.context)
        shared.left -= 1
        return _Recorded(shared, name, parent, SpanKind.INTERNAL, attributes)

    def note(self, **attributes: Unpack[Attributes]) -> None:
        self._span.set_attributes(_prefixed(attributes))

    def end(self, error: str = "", seconds: float | None = None) -> None:
        from opentelemetry.trace import Status, StatusCode

        if self._ended:
            return
        self._ended = True
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        if self._first and self._shared.omitted:
            self._span.set_attribute("ditto.spans_omitted", self._shared.omitted)
        now = self._shared.zero + time.perf_counter_ns()
        self._span.end(now if seconds is None else self._start + round(seconds * 1e9))


def _prefixed(attributes: Attributes) -> dict[str, Any]:
    return {f"ditto.{name}": value for name, value in attributes.items()}


def _named(context: Any) -> Context:
    return Context(f"{context.trace_id:032x}", f"{context.span_id:016x}", f"{context.trace_flags:02x}")


def _around(parent: Context | None) -> Any:
    """An OpenTelemetry context of that parent only: nothing of the thread's own, in a server or an application."""
    from opentelemetry.context import Context as Empty
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if parent is None:
        return Empty()
    flags = TraceFlags(int(parent.flags, 16))
    remote = SpanContext(int(parent.trace, 16), int(parent.span, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(remote), Empty())


def _provider(config: Telemetry, role: str) -> TracerProvider:
    """Raises ImportError without OpenTelemetry, ConfigError for a file that cannot be read."""
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, DEFAULT_ON

    class Drawn(IdGenerator):
        """From the operating system: an application may seed `random`, and so meet another's identifiers."""

        def generate_span_id(self) -> int:
            return secrets.randbits(64) or 1

        def generate_trace_id(self) -> int:
            return secrets.randbits(128) or 1

    def readable(path: Path | None) -> str | None:
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{role}: telemetry: cannot read {path}: {error.strerror}") from None
        return None if path is None else str(path)

    session = requests.Session()
    session.trust_env = False
    exporter = OTLPSpanExporter(
        f"{config.endpoint.rstrip('/')}/v1/traces",
        certificate_file=readable(config.ca),
        client_certificate_file=readable(config.cert),
        client_key_file=readable(config.key),
        timeout=EXPORT_S,
        session=session,
    )
    _quieten(role)
    resource = Resource({"service.namespace": "ditto", "service.name": role, "service.version": _version()})
    # a caller's word that a trace is not sampled counts in its own process only
    sampler = DEFAULT_ON if role == "client" else ALWAYS_ON
    provider = TracerProvider(sampler, resource, shutdown_on_exit=False, id_generator=Drawn())
    provider.add_span_processor(BatchSpanProcessor(exporter, QUEUE, EVERY_MS, BATCH))
    return provider


class _Lines(logging.Handler):
    """What OpenTelemetry has to say, as a line of the server's log, one in LINE_S at most."""

    _last = -LINE_S

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() - self._last < LINE_S:
            return
        self._last = time.monotonic()
        structlog.get_logger().warning("telemetry", reason=record.getMessage())


def _quieten(role: str) -> None:
    """Warnings of the exporter go to a server's log; at the client to whatever the application does with logs, else
    nowhere. Not to standard error as they are."""
    log = logging.getLogger("opentelemetry")
    if role == "client":
        log.addHandler(logging.NullHandler())
    elif not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines())
        log.propagate = False
