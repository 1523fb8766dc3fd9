"""Channels that outlive certificates: calls go over a new connection once files have changed, and to no revoked server.
What goes over one is sealed (`ditto.net.seal`).

gRPC for Python shows a caller no certificate of its server and takes no revocation list. A caller that has one (`Pin`)
does this before it connects:

1. It makes a TLS handshake of its own with the server's address. Chain, dates, role and possession of the key are
   checked there as gRPC checks them, and the certificate is seen.
2. A certificate on the list is refused, here and in each later call.
3. gRPC then trusts that one certificate in the place of the authority. Nobody passes with another one, whoever
   answered in step 1: the holder of a revoked key can relay a handshake, but not take over the connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Container, Iterator
from typing import Any, Self

import grpc
from cryptography import x509

from ditto.errors import CertificateError, ClusterError
from ditto.net.seal import Coder, sealing, unsealing
from ditto.net.tls import Pems

HANDSHAKE_S = 5.0  # of a caller's own handshake, at most
SEEN = 64  # servers whose certificates a process remembers
Open = Callable[[Pems, bytes], grpc.Channel]  # with this pair, trusting these certificates


class _Method:
    """One method of a channel that may be opened anew: each call goes over the newest."""

    def __init__(self, owner: Renewed, kind: str, args: tuple[Any, ...], named: Any) -> None:
        self._owner, self._kind, self._args, self._named = owner, kind, args, named
        self._made: tuple[grpc.Channel | None, Any] = (None, None)

    def _now(self, timeout: float | None) -> tuple[grpc.Channel, Any]:
        channel, method = self._made
        if (newest := self._owner.newest(timeout)) is not channel:
            method = getattr(newest, self._kind)(*self._args, **self._named)
            self._made = (newest, method)
        return newest, method

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._followed("__call__", args, named)

    def future(self, *args: Any, **named: Any) -> Any:
        return self._followed("future", args, named)

    def with_call(self, *args: Any, **named: Any) -> Any:
        """A server that was renewed meanwhile is met with its new certificate: the request had not left."""
        channel, method = self._now(named.get("timeout"))
        try:
            return method.with_call(*args, **named)
        except grpc.RpcError as error:
            self._owner.note(error)
            if self._kind != "unary_unary" or not self._owner.renewed(channel, error, named.get("timeout")):
                raise
        return self._now(named.get("timeout"))[1].with_call(*args, **named)

    def _followed(self, how: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        _, method = self._now(named.get("timeout"))
        call = getattr(method, how)(*args, **named)
        if self._owner.pinned and not call.add_callback(lambda: self._owner.note(call)):
            self._owner.note(call)
        return call


class Renewed(grpc.Channel):
    """A channel whose calls go over a new connection once the certificate files have changed, or the server's pinned
    certificate has.

    Calls under way stay on theirs: older connections are kept until the channel is closed.
    """

    def __init__(self, files: Callable[[], Pems], open: Open, pin: Pin | None = None) -> None:
        self._files, self._open, self._pin, self._lock = files, open, pin, threading.Lock()
        self._pems = files()
        self._channels: list[grpc.Channel] = []
        self._stale = True  # is the server's certificate to be looked at before the next call?
        self._tried = 0.0  # when it was last, time.monotonic
        self._nobody: grpc.Channel | None = None
        self._closed = False

    @property
    def pinned(self) -> bool:
        return self._pin is not None

    def newest(self, timeout: float | None = None) -> grpc.Channel:
        """The connection for a call that may take `timeout` seconds. Raises CertificateError for a revoked server."""
        arrived = time.monotonic()
        with self._lock:
            if self._closed:  # by a handler that outlives its server; grpc would crash for a method that is new to it
                raise ClusterError("this process stops: the connection is closed")
            pems = self._files()
            changed, self._pems = pems is not self._pems, pems
            if self._pin is None:
                if changed or not self._channels:
                    self._channels.append(self._open(pems, pems.ca))
                return self._channels[-1]
            if changed or ((self._stale or self._pin.revoked) and self._tried < arrived):
                self._look(self._pin, pems, changed, timeout)
            self._pin.check()
            return self._channels[-1] if self._channels else self._absent()

    def _look(self, pin: Pin, pems: Pems, changed: bool, timeout: float | None) -> None:
        """Pin what the server shows now. Where it does not answer, the last certificate stays: the call finds out."""
        known = pin.certificate
        try:
            with contextlib.suppress(OSError):
                if known or not pin.recall(pems):
                    pin.look(pems, min(timeout or HANDSHAKE_S, HANDSHAKE_S))
                self._stale = False
        finally:
            self._tried = time.monotonic()
        if pin.certificate and (changed or pin.certificate != known):
            self._channels.append(self._open(pems, pin.certificate))

    def _absent(self) -> grpc.Channel:
        """Where a call fails as one to a server that is not there does."""
        if self._nobody is None:
            self._nobody = grpc.insecure_channel("unix:/dev/null/nobody")
        return self._nobody

    def note(self, call: Any) -> None:
        """A call has ended; a lost connection is made anew to a server that may be another."""
        if self._pin is not None and call.code() is grpc.StatusCode.UNAVAILABLE:
            self._stale = True

    def renewed(self, channel: grpc.Channel, error: Any, timeout: float | None) -> bool:
        """Did a call fail since the server's certificate is no more the pinned one?"""
        if self._pin is None or "CERTIFICATE_VERIFY_FAILED" not in (error.details() or ""):
            return False
        return self.newest(timeout) is not channel

    def _method(
        self,
        kind: str,
        method: str,
        request_serializer: Coder = None,
        response_deserializer: Coder = None,
        *args: Any,
        **named: Any,
    ) -> _Method:
        sealed = sealing(method, "request", request_serializer), unsealing(method, "reply", response_deserializer)
        return _Method(self, kind, (method, *sealed, *args), named)

    def unary_unary(self, *args: Any, **named: Any) -> Any:
        return self._method("unary_unary", *args, **named)

    def unary_stream(self, *args: Any, **named: Any) -> Any:
        return self._method("unary_stream", *args, **named)

    def stream_unary(self, *args: Any, **named: Any) -> Any:
        return self._method("stream_unary", *args, **named)

    def stream_stream(self, *args: Any, **named: Any) -> Any:
        return self._method("stream_stream", *args, **named)

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        self.newest().subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        for channel in self._channels:
            channel.unsubscribe(callback)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for channel in (*self._channels, *([self._nobody] if self._nobody else [])):
                channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# The server's certificate ------------------------------------------------------------------------


_seen: dict[tuple[str, str, bytes], tuple[int, bytes]] = {}  # serial and PEM by address, role and authority


class Pin:
    """The certificate, in PEM, by which a caller knows its server; none (empty) until the server was seen."""

    def __init__(self, address: str, peer: str, revoked: Container[int]) -> None:
        self._address, self._peer, self._revoked = address, peer, revoked
        self._context: tuple[Pems, ssl.SSLContext] | None = None
        self.certificate, self._serial = b"", -1

    @property
    def revoked(self) -> bool:
        """Is the server's certificate on the list now? It may have another one by then."""
        return bool(self.certificate) and self._serial in self._revoked

    def check(self) -> None:
        """Raises CertificateError if it is."""
        if self.revoked:
            raise CertificateError(f"the certificate of {self._peer} was revoked", peer=self._peer)

    def look(self, pems: Pems, timeout: float) -> None:
        """See what the server shows. Raises CertificateError for what is not its role's by this authority, OSError
        where there is no answer."""
        host, _, port = self._address.rpartition(":")
        try:
            with (
                socket.create_connection((host.strip("[]"), int(port)), timeout) as tcp,
                self._tls(pems).wrap_socket(tcp, server_hostname=self._peer) as connection,
            ):
                shown = connection.getpeercert(binary_form=True)
        except ssl.SSLCertVerificationError:
            text = f"{self._peer}: the TLS handshake failed: wrong certificate or CA"
            raise CertificateError(text, peer=self._peer) from None
        if not shown:
            raise ConnectionError("no certificate")
        self._take(pems, x509.load_der_x509_certificate(shown).serial_number, ssl.DER_cert_to_PEM_cert(shown).encode())

    def recall(self, pems: Pems) -> bool:
        """Take what another channel of this process saw at the same place. If the server has another certificate by
        now, the connection fails, and it is looked at."""
        found = _seen.get((self._address, self._peer, pems.ca))
        if found is None or found[0] in self._revoked:
            return False
        self._serial, self.certificate = found
        return True

    def _take(self, pems: Pems, serial: int, certificate: bytes) -> None:
        self._serial, self.certificate = serial, certificate
        while len(_seen) >= SEEN:
            _seen.pop(next(iter(_seen)), None)
        _seen[self._address, self._peer, pems.ca] = serial, certificate

    def _tls(self, pems: Pems) -> ssl.SSLContext:
        if self._context is None or self._context[0] is not pems:
            self._context = pems, tls_context(pems)
        return self._context[1]


def tls_context(pems: Pems) -> ssl.SSLContext:
    """Of a caller with this pair: chain, dates, purpose and name of the server are checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=pems.ca.decode())
    context.set_alpn_protocols(["h2"])
    with _file(pems.cert + b"\n" + pems.key) as path:
        context.load_cert_chain(path)
    return context


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[str]:
    """A path to bytes in memory: `ssl` takes a pair from a file only, and the file on the disk may have changed."""
    descriptor = os.memfd_create("pair")
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
