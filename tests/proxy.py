"""Two faulty things that stand between a caller and a server: a wire, and a middlebox that terminates TLS."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import grpc

from ditto.net.config import Tls
from ditto.net.transport import options

Way = Literal["up", "down"]  # from the caller to the server, and back
DELAY_S = 0.02
RST = struct.pack("ii", 1, 0)  # of SO_LINGER: what close() does is a reset


def free_listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    return listener


@dataclass
class Fault:
    """What happens to what passes in one direction, once `after` bytes, or messages, have passed since it was set."""

    kind: str
    way: Way = "up"
    after: int = 0
    method: str = ""  # of a middlebox
    rate: float = 16e3  # bytes a second, of a slow reader
    struck: threading.Event = field(default_factory=threading.Event)
    healed: threading.Event = field(default_factory=threading.Event)


class Wire:
    """A TCP proxy. It sees TLS records and understands nothing.

    rst, fin, cut (the rest of a piece is lost, then FIN) and corrupt happen once. half-open, slow and delay last until
    `heal`, which ends every connection then: none stays that lost something in between.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.passed: Counter[Way] = Counter()  # bytes
        self._listener = free_listener()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._fault: Fault | None = None
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, fault: Fault) -> Fault:
        with self._lock:
            self._fault = fault
        return fault

    def heal(self) -> None:
        with self._lock:
            fault, self._fault = self._fault, None
        if fault:
            fault.healed.set()
            if fault.struck.is_set():
                self.drop()

    def drop(self) -> None:
        """End all connections; what comes next goes to `target` as it is then."""
        with self._lock:
            sockets = list(self._sockets)
        for end in sockets:
            self._end(end)

    def close(self) -> None:
        self._closed.set()
        self.heal()
        self.drop()

    def _accept(self) -> None:
        with self._listener:
            while not self._closed.is_set():
                try:
                    near, _ = self._listener.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        host, port = self.target.rsplit(":", 1)
        try:
            far = socket.create_connection((host, int(port)), 5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        ends = (near, far)
        with self._lock:
            self._sockets.update(ends)
        for end in ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self._pump, args=(far, near, "down"), daemon=True)
        back.start()
        self._pump(near, far, "up")
        back.join()
        with self._lock:
            self._sockets.difference_update(ends)
        for end in ends:
            end.close()

    @staticmethod
    def _end(end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    def _pump(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._carry(data, source, sink, way)
        self._end(source)
        self._end(sink)

    def _due(self, size: int, way: Way) -> tuple[Fault | None, int]:
        """The fault that strikes these bytes, and how many of them still pass before it."""
        with self._lock:
            self.passed[way] += size
            fault = self._fault
            if fault is None or fault.way != way:
                return None, size
            before, fault.after = fault.after, max(0, fault.after - size)
            if before >= size:
                return None, size
            if fault.kind in ("rst", "fin", "cut", "corrupt"):
                self._fault = None
        fault.struck.set()
        return fault, before

    def _carry(self, data: bytes, source: socket.socket, sink: socket.socket, way: Way) -> None:
        fault, before = self._due(len(data), way)
        if fault is None:
            sink.sendall(data)
            return
        if fault.kind == "delay":
            time.sleep(DELAY_S)
            sink.sendall(data)
        elif fault.kind == "slow":
            size = max(512, int(fault.rate / 100))
            for at in range(0, len(data), size):
                sink.sendall(data[at : at + size])
                fault.healed.wait(size / fault.rate)
        elif fault.kind == "half-open":
            fault.healed.wait()
        elif fault.kind == "corrupt":
            sink.sendall(data[:before] + bytes([data[before] ^ 4]) + data[before + 1 :])
        else:
            if fault.kind == "cut":
                sink.sendall(data[:before])
            if fault.kind == "rst":
                for end in (source, sink):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            raise ConnectionError("the fault")


def pairs_of(certs: Tls) -> tuple[bytes, bytes, bytes]:
    return certs.ca.read_bytes(), certs.key.read_bytes(), certs.cert.read_bytes()


class Middlebox:
    """Terminates TLS with the server's own certificate, and calls the server with the caller's: what it forwards are
    messages as bytes, of any method. A fault strikes one message, by its number since the fault was set: drop, delay,
    reorder (with the next one), truncate, duplicate, corrupt (one bit), stall (this and all that follow)."""

    def __init__(self, target: str, server: str, server_tls: Tls, caller_tls: Tls) -> None:
        self.seen: Counter[tuple[str, Way]] = Counter()  # messages, by method and direction
        self._lock, self._fault = threading.Lock(), None
        ca, key, cert = pairs_of(caller_tls)
        args: list[tuple[str, Any]] = [*options(16), ("grpc.ssl_target_name_override", server)]
        self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, cert), options=args)
        ca, key, cert = pairs_of(server_tls)
        self._server = grpc.server(futures.ThreadPoolExecutor(64), handlers=[self], options=options(16))
        credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
        self.address = f"127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        self._server.start()

    _fault: Fault | None

    def set(self, fault: Fault) -> Fault:
        with self._lock:
            self._fault = fault
        return fault

    def heal(self) -> None:
        with self._lock:
            fault, self._fault = self._fault, None
        if fault:
            fault.healed.set()

    def close(self) -> None:
        self.heal()
        self._server.stop(0).wait(5)
        self._channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """grpc.GenericRpcHandler: every method, unary ones as streams of one message, which look the same."""
        return grpc.stream_stream_rpc_method_handler(partial(self._forward, details))

    def _forward(self, details: Any, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        method = details.method.rpartition("/")[2]
        sent = [(k, v) for k, v in details.invocation_metadata if not k.startswith(("grpc-", "user-agent"))]
        left = context.time_remaining()
        call = self._channel.stream_stream(details.method)(
            self._altered(requests, method, "up"), timeout=left if left < 1e6 else None, metadata=sent
        )
        if not context.add_callback(call.cancel):
            call.cancel()
        try:
            context.send_initial_metadata(call.initial_metadata())
            yield from self._altered(call, method, "down")
            context.set_trailing_metadata(call.trailing_metadata())
        except grpc.RpcError:
            context.set_trailing_metadata(call.trailing_metadata() or ())
            context.abort(call.code(), call.details())
        finally:
            call.cancel()

    def _due(self, method: str, way: Way) -> Fault | None:
        with self._lock:
            self.seen[method, way] += 1
            fault = self._fault
            if fault is None or (fault.method, fault.way) != (method, way):
                return None
            fault.after -= 1
            if fault.after >= 0:
                return None
            if fault.kind != "stall":
                self._fault = None
        fault.struck.set()
        return fault

    def _altered(self, messages: Iterator[bytes], method: str, way: Way) -> Iterator[bytes]:
        for data in messages:
            fault = self._due(method, way)
            if fault is None:
                yield data
                continue
            if fault.kind == "reorder":
                following = next(messages, None)
                yield from (other for other in (following, data) if other is not None)
            elif fault.kind == "stall":
                fault.healed.wait()
            elif fault.kind == "delay":
                time.sleep(0.3)
                yield data
            else:
                yield from ALTERED[fault.kind](data)


def flipped(data: bytes) -> bytes:
    """One bit of the middle, or of what there is."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] if data else b"\4"


ALTERED: dict[str, Callable[[bytes], list[bytes]]] = {
    "drop": lambda data: [],
    "duplicate": lambda data: [data, data],
    "truncate": lambda data: [data[: len(data) // 2]],
    "corrupt": lambda data: [flipped(data)],
}
