"""What a server says of itself and of its links to whom it tells its state: for `ditto doctor`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import grpc
import torch

import ditto
from ditto.errors import DittoError
from ditto.models.description import FORMAT
from ditto.net.processor import features, usable_cores
from ditto.net.transport import connect
from ditto.ring.kernels import chosen
from ditto.wire import dealer_pb2, party_pb2

AGE_S = 10.0  # how old what is said of a link may be
CHECK_S = 1.0


def about() -> dealer_pb2.About:
    """Measures nothing: a server that multiplies chose its kernels when it started."""
    return dealer_pb2.About(
        version=ditto.__version__, description_format=FORMAT, time=time.time(),
        kernels=[dealer_pb2.Kernel(bits=bits, name=name) for bits, name in sorted(chosen.items())],
        threads=torch.get_num_threads(), cores=usable_cores(), features=features(),
    )  # fmt: skip


class Links:
    """How far the servers are that this one calls.

    Whoever may ask can have it make one health check of each in AGE_S seconds, however often it asks: nobody reaches a
    server harder through another one than by itself.
    """

    def __init__(self, channels: Mapping[str, grpc.Channel], received: Mapping[str, Callable[[], float]]) -> None:
        """`received`, by role: bytes a second that came from there, as far as known."""
        self._channels, self._received, self._lock = dict(channels), received, threading.Lock()
        self._said: tuple[float, list[party_pb2.Link]] | None = None

    def state(self) -> list[party_pb2.Link]:
        with self._lock:
            if self._said is None or time.monotonic() - self._said[0] > AGE_S:
                links = [self._link(role, channel) for role, channel in self._channels.items()]
                links += [party_pb2.Link(role=role) for role in self._received if role not in self._channels]
                for link in links:
                    link.received = self._received.get(link.role, float)()
                self._said = time.monotonic(), links
            return self._said[1]

    def _link(self, role: str, channel: grpc.Channel) -> party_pb2.Link:
        try:
            return party_pb2.Link(role=role, round_trip=round_trip(channel, role))
        except DittoError as error:
            return party_pb2.Link(role=role, error=str(error))


def round_trip(channel: grpc.Channel, role: str) -> float:
    """Seconds of a health check; the connection is made before. Raises what `connect` does."""
    connect(channel, role, CHECK_S)
    began = time.perf_counter()
    connect(channel, role, CHECK_S)
    return time.perf_counter() - began
