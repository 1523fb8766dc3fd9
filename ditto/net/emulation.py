"""Emulated networks: profiles, and the links that slow one machine down to them.

Shaped are the links whose bytes the measurements count: party to party, both ways, and dealer to each party. Not
shaped is what the client and the coordinator send and receive (control, shares of inputs and of models), nor the
requests that a party makes to the dealer: their cost is a constant of a job, whatever the program.

The sender shapes, since only its clock knows when a message was queued: it holds every frame back until the moment
at which the frame would have arrived, and only then gives it to gRPC. Frames keep their order, and a frame on its
way holds up none behind it, because each one's time counts from when it was queued.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ditto.errors import ConfigError
from ditto.net.documents import parse_yaml, read_yaml

_SPIN = 0.00006  # seconds: a sleep wakes up about this late, so the last of a wait polls the clock
_PR_SET_TIMERSLACK = 29
# What buffers on the way take in while the receiver does not read: this many seconds of sending, and of long links this
# many round trips. TCP sizes the buffers of both ends, and gRPC its window, as multiples of what is on its way; 7 to 17
# round trips were measured on 400 Mbit/s and 10 to 80 ms, none on a LAN (docs/benchmarks/network.md).
_STALL, _STALL_ROUND_TRIPS = 0.01, 8


class Network(BaseModel):
    """One profile, the same in both directions of every link; a bandwidth of None is unlimited."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str = "custom"
    bandwidth_mbps: float | None = Field(default=None, ge=1, le=1e6)  # 10^6 bits a second
    rtt_ms: float = Field(ge=0, le=10_000)  # there and back; a message takes half


def networks() -> list[str]:
    """The names of the built-in profiles."""
    files = resources.files("ditto.net").joinpath("networks").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def network(name_or_path: str | Path) -> Network:
    """A built-in profile by its name, or the YAML file at a path; a file without a name goes by its own."""
    path = Path(name_or_path)
    if str(name_or_path) in networks():
        built_in = resources.files("ditto.net").joinpath("networks", f"{name_or_path}.yaml")
        raw = parse_yaml(built_in.read_text(encoding="utf-8"), path)
    elif path.suffix in (".yaml", ".yml") or os.path.isfile(path):  # False for a name that no file can have
        raw = read_yaml(path)
    else:
        known = ", ".join(networks())
        raise ConfigError(f"no network profile {str(name_or_path)[:80]!r}: name one of {known}, or a YAML file")
    try:
        return Network.model_validate({"name": path.stem} | raw)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: " + "; ".join(lines)) from None


_precise = threading.local()


def _wake_precisely() -> None:
    """Ask the kernel once a thread to end its sleeps on time, where it can be asked (Linux, by default 50 us late).

    Without it the wait would have to poll, which takes the processor from the other parties of an emulated network.
    """
    if not getattr(_precise, "asked", False):
        _precise.asked = True
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


class Link:
    """One direction of one link: messages leave one after another and then travel for half a round trip.

    A message of B bytes queued at t has left at `free = max(t, free) + 8 B / bandwidth`; it arrives at
    `free + rtt / 2`. Times are seconds of `clock`. Any thread may call.
    """

    def __init__(self, network: Network | None, clock: Callable[[], float] = time.monotonic) -> None:
        rate, rtt = (network.bandwidth_mbps, network.rtt_ms) if network else (None, 0.0)
        self._clock = clock
        self._second_per_byte = 8 / (rate * 1e6) if rate else 0.0
        self._delay = rtt / 2000
        self._stall = max(_STALL, _STALL_ROUND_TRIPS * rtt / 1000)
        self._free = float("-inf")
        self._lock = threading.Lock()

    def arrival(self, queued: float, nbytes: int) -> float:
        """When a message queued at `queued` has arrived whole. Takes its place on the link."""
        with self._lock:
            self._free = max(queued, self._free) + nbytes * self._second_per_byte
            return self._free + self._delay

    def leaves(self) -> float:
        """When a message that is queued by then, and handed over now, begins to leave."""
        with self._lock:
            return max(self._free, self._clock() - self._delay)

    def hold(self, queued: float, nbytes: int) -> None:
        """Return when a message queued at `queued` has arrived."""
        due = self.arrival(queued, nbytes)
        _wake_precisely()
        while (left := due - self._clock()) > 0:
            time.sleep(max(left - _SPIN, 0))  # a sleep of 0 lets other threads run

    def sendable(self, queued: float) -> float:
        """When a stream's next message can have been queued, given that its receiver took the last one just now.

        A receiver that does not read fills what lies between and stops its sender. What fits there counts as sent in
        the meantime. Without a bound, all that waited would, and arrive in one burst, faster than the link.
        """
        return max(queued, self._clock() - self._delay - self._stall)
