"""gRPC channels and servers: mutual TLS, one role and version check, one mapping of errors.

Every call carries the protocol version in its metadata. A server knows its caller by the identity in the client
certificate (`ditto.net.identity`); a client knows its server by the role among the certificate's DNS names, so a
stolen party certificate cannot stand in for the dealer's. Neither works with a certificate that has no identity.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent import futures
from typing import Any, NoReturn

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from ditto.errors import (
    BY_CODE,
    BadShare,
    Busy,
    CertificateError,
    ConfigError,
    DittoError,
    IntegrityError,
    LimitExceeded,
    MessageTooLarge,
    NotAllowed,
    PeerAbsent,
    PeerLost,
    ReplayedJob,
    UnknownModel,
    VersionMismatch,
)
from ditto.net.channels import Pin, Renewed
from ditto.net.config import Limits, Tls
from ditto.net.identity import Identity, caller, holder
from ditto.net.pools import Pace, Pools
from ditto.net.seal import Seals
from ditto.net.tls import Pems, Revocations, server_credentials, watch

PROTOCOL_VERSION = 7
CHUNK = 1 << 20
VERSION_KEY, CODE_KEY, PEER_KEY = "ditto-protocol", "ditto-code", "ditto-peer"
RETRY_KEY = "ditto-retry-after"  # seconds
LONGEST = 1000  # characters of an error on the wire: gRPC takes 8 kB of metadata, 12 bytes a character at most
HANDSHAKE_MS = 10_000  # a connection that has shown no certificate by then is closed
log = structlog.get_logger()

Roles = Mapping[str, frozenset[str]]  # method name -> roles that may call it


def short(job: str) -> str:
    """How logs and the status name a job: the whole identifier opens its inputs and its answer."""
    return job[:8]


_STATUS = {
    CertificateError: grpc.StatusCode.PERMISSION_DENIED,
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    VersionMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    ReplayedJob: grpc.StatusCode.ALREADY_EXISTS,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    BadShare: grpc.StatusCode.INVALID_ARGUMENT,
    MessageTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    PeerAbsent: grpc.StatusCode.ABORTED,
    PeerLost: grpc.StatusCode.ABORTED,
}


SILENCE_S = 7.0


def options(max_message_mb: int, silence_s: float = SILENCE_S) -> list[tuple[str, int]]:
    """Channel and server options: a killed peer shows at once, a frozen one, or a connection that carries nothing any
    more, after `silence_s`: a ping when nothing came for two sevenths of it, which has the rest to be answered in."""
    limit, quiet = max_message_mb << 20, int(1000 * silence_s * 2 / 7)
    answered = int(1000 * silence_s) - quiet
    return [
        ("grpc.max_send_message_length", limit),
        ("grpc.max_receive_message_length", limit),
        ("grpc.enable_retries", 0),  # a call that broke off may have been heard: correlations are dealt once
        ("grpc.keepalive_time_ms", quiet),
        ("grpc.keepalive_timeout_ms", answered),
        ("grpc.http2.ping_timeout_ms", answered),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", min(1000, quiet)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", min(1000, quiet)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.so_reuseport", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]


# Client side -------------------------------------------------------------------------------------


class _Stamp(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the protocol version to the metadata of every call."""

    def __init__(self, version: int) -> None:
        self._pair = (VERSION_KEY, str(version))

    def _call(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        details = details._replace(metadata=[*(details.metadata or ()), self._pair])
        return continuation(details, request)

    intercept_unary_unary = intercept_unary_stream = _call  # type: ignore[assignment]
    intercept_stream_unary = intercept_stream_stream = _call  # type: ignore[assignment]


def open_channel(
    address: str,
    peer: str,
    tls: Tls,
    role: str,
    max_message_mb: int = 4,
    silence_s: float = SILENCE_S,
    version: int = PROTOCOL_VERSION,
) -> grpc.Channel:
    """A lazy channel to `peer`; nothing is sent before the first call.

    The server must hold the role `peer`, whatever its address. Raises CertificateError if the caller's own files do not
    make it a `role`; when they change, the next call goes over a new connection with the new ones. With `tls.crl` the
    server's certificate must not be on that list (`ditto.net.channels`); a call to one that is raises CertificateError.
    """
    args: list[tuple[str, Any]] = [*options(max_message_mb, silence_s), ("grpc.ssl_target_name_override", peer)]
    files = watch(tls, role)

    def secure(pems: Pems, trusted: bytes) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(trusted, pems.key, pems.cert)
        return grpc.secure_channel(address, credentials, options=args)

    pin = Pin(address, peer, Revocations(tls.crl, tls, files)) if tls.crl else None
    return grpc.intercept_channel(Renewed(files.current, secure, pin), _Stamp(version))


def connect(channel: grpc.Channel, peer: str, timeout: float) -> None:
    """Wait until `peer` answers its health check. The only place where a call is tried again."""
    stub = health_pb2_grpc.HealthStub(channel)

    def check() -> None:
        try:
            stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error, peer) from None

    transient = (PeerAbsent, IntegrityError)
    retrying = Retrying(
        stop=stop_after_delay(timeout), wait=wait_fixed(0.1), retry=retry_if_exception_type(transient), reraise=True
    )
    retrying(check)


# What gRPC says when a handshake was refused over a certificate: a chain that does not verify, an alert, another name.
# Not when it ended early ("Handshake read failed"): then the server was stopped, or killed, or not the one that listens
# there. And when TLS broke otherwise: a byte of a handshake or of a record is another, or it is no TLS at all.
_TLS_TROUBLE = re.compile(r"CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED|Hostname Verification Check|Peer name .* is not in")
_TLS_BROKEN = re.compile(r"TSI_DATA_CORRUPTED|TSI_PROTOCOL_FAILURE|SSL_ERROR_SSL")


def from_rpc_error(error: grpc.RpcError, peer: str, running: bool = False) -> DittoError:
    """The DittoError behind a failed call to `peer`; `running` says that a job was under way."""
    trailing = {k: v for k, v in (getattr(error, "trailing_metadata", lambda: ())() or ())}
    code: grpc.StatusCode = getattr(error, "code", lambda: grpc.StatusCode.UNKNOWN)()
    details: str = getattr(error, "details", lambda: "")() or code.name
    known = BY_CODE.get(str(trailing.get(CODE_KEY, "")))
    if known is not None:
        found = known(details, peer=str(trailing.get(PEER_KEY) or peer))
        if isinstance(found, Busy):
            with contextlib.suppress(ValueError):
                found.retry_s = float(trailing.get(RETRY_KEY, found.retry_s))
        return found
    if _TLS_TROUBLE.search(details) and code is grpc.StatusCode.UNAVAILABLE:
        return CertificateError(f"{peer}: the TLS handshake failed: wrong certificate or CA", peer=peer)
    if _TLS_BROKEN.search(details):
        return IntegrityError(f"{peer}: TLS broke: what arrived from there was changed, or is none of it", peer=peer)
    if code is grpc.StatusCode.UNKNOWN and details.startswith("Stream removed"):  # with its connection
        code = grpc.StatusCode.UNAVAILABLE
    if code is grpc.StatusCode.UNAVAILABLE:
        if running:
            return PeerLost(f"{peer} was lost during the job", peer=peer)
        return PeerAbsent(f"{peer} does not answer", peer=peer)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        kind = PeerLost if running else PeerAbsent
        return kind(f"{peer} did not answer in time", peer=peer)
    if code is grpc.StatusCode.CANCELLED:
        return PeerLost(f"{peer} ended the call early", peer=peer)
    if code is grpc.StatusCode.INTERNAL and "Exception deserializing" in details:
        whose = "what arrived there" if "request" in details else "what arrived from there"
        return IntegrityError(f"{peer}: {whose} is not what was sent", peer=peer)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return MessageTooLarge(f"{peer}: {details}", peer=peer)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return VersionMismatch(f"{peer} does not know this call: it runs another version", peer=peer)
    return DittoError(f"{peer}: {code.name}: {details}", peer=peer)


# Server side -------------------------------------------------------------------------------------


def abort(context: grpc.ServicerContext, error: DittoError) -> NoReturn:
    """End a call. What it says is cut short where it quotes a caller at length: a status that is longer than gRPC's
    metadata may be arrives as none."""
    status = _STATUS.get(type(error), grpc.StatusCode.FAILED_PRECONDITION)
    if type(error) is DittoError:
        status = grpc.StatusCode.INTERNAL
    metadata = [(CODE_KEY, error.code), (PEER_KEY, error.peer or "")]
    if isinstance(error, Busy):
        metadata.append((RETRY_KEY, f"{error.retry_s:.0f}"))
    context.set_trailing_metadata(tuple(metadata))
    details = str(error)
    context.abort(status, details if len(details) <= LONGEST else f"{details[:LONGEST]}…")
    raise AssertionError("abort returns never")


class _Guard(grpc.ServerInterceptor):
    """Checks identity, role and version before a handler runs, and turns its exceptions into rich statuses."""

    def __init__(self, me: str, roles: Roles, revoked: Container[int] = ()) -> None:
        self._me, self._roles, self._revoked = me, roles, revoked

    def _caller(self, context: grpc.ServicerContext) -> Identity:
        try:
            identity, serial = holder(context)
        except CertificateError as error:
            raise CertificateError(f"{self._me}: {error}", peer=self._me) from None
        if serial in self._revoked:
            raise CertificateError(f"{self._me}: the certificate of {identity} was revoked", peer=self._me)
        return identity

    def _check(self, method: str, context: grpc.ServicerContext) -> None:
        identity = self._caller(context)
        if identity.role not in self._roles.get(method, frozenset()):
            raise CertificateError(f"{self._me}: {identity} may not call {method}", peer=self._me)
        version = dict(context.invocation_metadata()).get(VERSION_KEY)
        if version != str(PROTOCOL_VERSION):
            raise VersionMismatch(
                f"{self._me} speaks protocol {PROTOCOL_VERSION}, {identity} speaks {version!r}", peer=self._me
            )

    def _fail(self, method: str, context: grpc.ServicerContext, error: Exception) -> NoReturn:
        if not isinstance(error, DittoError):
            if not context.is_active() or isinstance(error, grpc.RpcError):
                log.info("call ended early", method=method)
            else:
                log.error("handler failed", method=method, exc_info=error)
            error = DittoError(f"{self._me}: internal error in {method}: {type(error).__name__}", peer=self._me)
        else:
            log.warning("call refused", method=method, code=error.code, peer=error.peer, reason=str(error))
        abort(context, error)

    def _enter(self, request: Any) -> None:
        """Log lines of this call carry its job and layer. gRPC gives every call a context of its own; should a thread
        keep an older one, it is cleared first."""
        structlog.contextvars.clear_contextvars()
        if job := getattr(request, "job", ""):
            structlog.contextvars.bind_contextvars(job=short(job))
            if hasattr(request, "layer"):
                structlog.contextvars.bind_contextvars(layer=request.layer)

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        handler = continuation(handler_call_details)
        service, _, method = handler_call_details.method.rpartition("/")
        if handler is None or service == "/grpc.health.v1.Health":
            return handler

        def unary(inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(request: Any, context: grpc.ServicerContext) -> Any:
                self._enter(request)
                try:
                    self._check(method, context)
                    return inner(request, context)
                except Exception as error:
                    self._fail(method, context, error)

            return call

        def stream(inner: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
            def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                self._enter(request)
                try:
                    self._check(method, context)
                    yield from inner(request, context)
                except Exception as error:
                    self._fail(method, context, error)

            return call

        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(unary(handler.unary_unary), **codec)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(unary(handler.stream_unary), **codec)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(stream(handler.unary_stream), **codec)
        return grpc.stream_stream_rpc_method_handler(stream(handler.stream_stream), **codec)


def build_server(
    listen: str,
    tls: Tls,
    me: str,
    roles: Roles,
    max_message_mb: int = 4,
    limits: Limits | None = None,
    queue: int = 0,
    silence_s: float = SILENCE_S,
) -> tuple[grpc.Server, int]:
    """A server with mutual TLS and a health service, not started yet, and the port that it is bound to; `queue` is how
    many jobs may wait in it.

    Certificate files are read again when they change. With `tls.crl`, callers on that list are refused, call by call.
    """
    limits = limits or Limits()
    certificates = watch(tls, me)
    revoked: Container[int] = Revocations(tls.crl, tls, certificates) if tls.crl else ()
    pace = Pace(limits.upload_idle_s, 1024 * limits.upload_min_kb_s)
    seals = Seals(VERSION_KEY, PROTOCOL_VERSION)
    server = grpc.server(
        futures.ThreadPoolExecutor(1),  # of what no pool serves: nothing
        interceptors=[Pools(me, caller, abort, pace, limits.max_uploads, queue), _Guard(me, roles, revoked), seals],
        options=[*options(max_message_mb, silence_s), ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS)],
    )
    checks = health.HealthServicer()
    checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    try:
        port = server.add_secure_port(listen, server_credentials(certificates))
    except RuntimeError:
        port = 0
    if port == 0:
        raise ConfigError(f"{me} cannot listen on {listen}: address in use?")
    return server, port
