"""An OpenTelemetry collector in this process: takes OTLP over HTTP, keeps what came."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Received(NamedTuple):
    service: str
    name: str
    trace: str
    span: str
    parent: str
    start: int  # ns
    end: int
    attributes: dict[str, Any]
    error: str

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9

    def within(self, other: Received) -> bool:
        return other.start <= self.start and self.end <= other.end


class Collector:
    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.bodies: list[bytes] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces" and outer.status == 200:
                    outer.bodies.append(body)
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def spans(self) -> list[Received]:
        return [span for body in list(self.bodies) for span in parsed(body)]

    def until(self, enough: Callable[[list[Received]], bool], seconds: float = 15.0) -> list[Received]:
        deadline = time.monotonic() + seconds
        while not enough(spans := self.spans()):
            assert time.monotonic() < deadline, [(s.service, s.name) for s in spans]
            time.sleep(0.05)
        return spans

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def collecting(tls: ssl.SSLContext | None = None) -> Iterator[Collector]:
    collector = Collector(tls)
    try:
        yield collector
    finally:
        collector.close()


def parsed(body: bytes) -> Iterator[Received]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = _values(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                error = span.status.message if span.status.code == 2 else ""
                yield Received(
                    about["service.name"], span.name, span.trace_id.hex(), span.span_id.hex(),
                    span.parent_span_id.hex(), span.start_time_unix_nano, span.end_time_unix_nano,
                    _values(span.attributes), error,
                )  # fmt: skip


def _values(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}
