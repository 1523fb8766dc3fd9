"""A channel that outlives the certificate that it was opened with, and seals what goes over it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

import grpc

from ditto.errors import ClusterError
from ditto.net.seal import Coder, sealing, unsealing
from ditto.net.tls import Pems


class _Method:
    """One method of a channel that may be opened anew: each call goes over the newest."""

    def __init__(self, newest: Callable[[], grpc.Channel], kind: str, args: tuple[Any, ...], named: Any) -> None:
        self._newest, self._kind, self._args, self._named = newest, kind, args, named
        self._made: tuple[grpc.Channel | None, Any] = (None, None)

    def _now(self) -> Any:
        channel, method = self._made
        if (newest := self._newest()) is not channel:
            method = getattr(newest, self._kind)(*self._args, **self._named)
            self._made = (newest, method)
        return method

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._now()(*args, **named)

    def with_call(self, *args: Any, **named: Any) -> Any:
        return self._now().with_call(*args, **named)

    def future(self, *args: Any, **named: Any) -> Any:
        return self._now().future(*args, **named)


class Renewed(grpc.Channel):
    """A channel whose calls go over a new connection once the certificate files have changed.

    Calls under way stay on theirs: older connections are kept until the channel is closed.
    """

    def __init__(self, files: Callable[[], Pems], open: Callable[[Pems], grpc.Channel]) -> None:
        self._files, self._open, self._lock = files, open, threading.Lock()
        self._pems = files()
        self._channels = [open(self._pems)]
        self._closed = False

    def _newest(self) -> grpc.Channel:
        with self._lock:
            if self._closed:  # by a handler that outlives its server; grpc would crash for a method that is new to it
                raise ClusterError("this process stops: the connection is closed")
            if (pems := self._files()) is not self._pems:
                self._pems = pems
                self._channels.append(self._open(pems))
            return self._channels[-1]

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
        return _Method(self._newest, kind, (method, *sealed, *args), named)

    def unary_unary(self, *args: Any, **named: Any) -> Any:
        return self._method("unary_unary", *args, **named)

    def unary_stream(self, *args: Any, **named: Any) -> Any:
        return self._method("unary_stream", *args, **named)

    def stream_unary(self, *args: Any, **named: Any) -> Any:
        return self._method("stream_unary", *args, **named)

    def stream_stream(self, *args: Any, **named: Any) -> Any:
        return self._method("stream_stream", *args, **named)

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        self._newest().subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        for channel in self._channels:
            channel.unsubscribe(callback)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for channel in self._channels:
                channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
