"""gRPC without a network: what a server's handler sees of a call, and a channel to servers in the same process."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from ditto.errors import DittoError
from ditto.net import transport
from ditto.net.seal import sealing, unsealing
from fuzz.target import Finding

MOST = 10_000  # replies of one call that are looked at
DETAILS = 4096  # characters of an error's text; gRPC takes 8 kB of all metadata
SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()


class Aborted(Exception):
    """What `context.abort` raises in grpc, too."""


class Context:
    """A call of whoever holds this certificate."""

    def __init__(self, pem: bytes) -> None:
        self._pem, self._callbacks = pem, list[Callable[[], None]]()
        self.code, self.details, self.trailing = grpc.StatusCode.OK, "", ()

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self._pem]}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self._callbacks.append(callback)
        return True

    def is_active(self) -> bool:
        return True

    def send_initial_metadata(self, metadata: Any) -> None: ...

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = metadata

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details
        raise Aborted(details)

    def end(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class Handlers:
    """The methods that servicers would serve: `add_…Servicer_to_server(servicer, self)`."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self._recorded: dict[bytes, list[Any]] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None: ...

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            path, encode, decode = f"/{service}/{name}", handler.response_serializer, handler.request_deserializer
            if name in ("Exchange", "Correlations"):  # encoded in a way of their own, where there is no seal
                handler = handler._replace(response_serializer=sealing(path, "reply", encode))
            if name == "Exchange":
                handler = handler._replace(request_deserializer=unsealing(path, "request", decode))
            self.found[path] = handler

    def stream(self, path: str, request: Any, pem: bytes) -> Stream:
        """Replies of a servicer to another one. Those to the same request are the same: to deal a job takes long."""
        key, context = request.SerializeToString(), Context(pem)
        if key not in self._recorded:
            try:
                self._recorded[key] = list(self.found[path].unary_stream(request, context))
            except DittoError as error:
                refuse(context, error, _role(path))
                return Stream(iter(()), context)
            finally:
                context.end()
        return Stream(self._recorded[key])

    def serve(self, path: str, messages: Sequence[bytes], pem: bytes, most: int = MOST) -> list[bytes]:
        """Replies, `most` of them at most: then the caller leaves. Raises DittoError, as the caller would see it."""
        handler, context = self.found[path], Context(pem)
        try:
            requests = [handler.request_deserializer(message) for message in messages or (b"",)]
        except DecodeError:  # grpc answers
            return []
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        try:
            answer = inner(iter(requests) if handler.request_streaming else requests[0], context)
            replies = itertools.islice(answer, most) if handler.response_streaming else [answer]
            return [handler.response_serializer(reply) for reply in replies]
        except DittoError as error:
            refuse(context, error, _role(path))
            raise
        finally:
            context.end()
            if inner in (handler.unary_stream, handler.stream_stream) and "answer" in locals():
                answer.close()


def _role(path: str) -> str:
    service = path.split("/")[1].removeprefix("ditto.v1.")
    return {"Dealer": "dealer", "Coordinator": "coordinator"}.get(service, "party0")


def refuse(context: Context, error: DittoError, role: str) -> None:
    """The status of an error of a server. Raises Finding if it is none that a caller should see: "internal error" is
    for what another process did, and names it."""
    with contextlib.suppress(Aborted):
        transport.abort(context, error)  # type: ignore[arg-type]
    internal = context.code is grpc.StatusCode.INTERNAL and error.peer in (None, role)
    if internal or context.code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.OK):
        raise Finding(f"{context.code}: {error!r}") from error
    if len(context.details) > DETAILS or not all(str(value).isascii() for _, value in context.trailing):
        raise Finding(f"an error of {len(context.details)} characters, metadata {str(context.trailing)[:200]}")


class Refused(grpc.RpcError):
    """How a stub reports an error."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def code(self) -> grpc.StatusCode:
        return self._context.code

    def details(self) -> str:
        return self._context.details

    def trailing_metadata(self) -> Any:
        return self._context.trailing


class Future:
    """A call that has ended."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._error: Exception | None = None
        try:
            self._result = call()
        except grpc.RpcError as error:
            self._error = error

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result

    def exception(self) -> Exception | None:
        return self._error

    def cancelled(self) -> bool:
        return False

    def cancel(self) -> None: ...

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)


class Stream:
    """A call whose replies come one by one, until it is cancelled; `refused`: how it ends."""

    def __init__(self, replies: Iterable[Any], refused: Context | None = None) -> None:
        self._replies, self._refused, self._cancelled = replies, refused, False

    def __iter__(self) -> Iterator[Any]:
        for reply in self._replies:
            if self._cancelled:
                return
            yield reply
        if self._refused is not None:
            raise Refused(self._refused)

    def cancel(self) -> None:
        self._cancelled = True


class Inside(grpc.Channel):
    """Calls to `servers`, by path, with a certificate; a health check finds them well."""

    def __init__(self, servers: Handlers, pem: bytes) -> None:
        self._servers, self._pem = servers, pem

    def unary_unary(self, path: str, *_: Any, response_deserializer: Any = None, **__: Any) -> Any:
        return _Method(self._servers, path, self._pem, response_deserializer)

    def unary_stream(self, path: str, *_: Any, **__: Any) -> Any:
        return lambda request, **_: self._servers.stream(path, request, self._pem)

    stream_unary = stream_stream = unary_stream

    def subscribe(self, *_: Any, **__: Any) -> None: ...

    def unsubscribe(self, *_: Any) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Method:
    def __init__(self, servers: Handlers, path: str, pem: bytes, reply: Callable[[bytes], Any]) -> None:
        self._servers, self._path, self._pem, self._reply = servers, path, pem, reply

    def __call__(self, request: Any, timeout: float | None = None) -> Any:
        if self._path.endswith("/Check"):
            return self._reply(SERVING)
        context = Context(self._pem)
        handler = self._servers.found[self._path]
        try:
            reply = handler.unary_unary(request, context)
        except DittoError as error:
            refuse(context, error, _role(self._path))
            raise Refused(context) from None
        finally:
            context.end()
        return self._reply(handler.response_serializer(reply))

    def future(self, request: Any, timeout: float | None = None) -> Future:
        return Future(lambda: self(request))
