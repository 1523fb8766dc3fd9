"""Counters of one server, and the optional HTTP endpoint from which Prometheus reads them.

Each process has a registry of its own. Labels are roles, phases, directions and outcomes: never a job, a model, an
address or anything of an input. The counts are kept with or without the endpoint.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from ditto.errors import BY_CODE, ConfigError
from ditto.names import PARTIES

_LAYER = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
_JOB = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 900)


class Metrics:
    """What every server counts. `outcomes`: how a job can end there; they are there from the start, at 0, since of a
    series that begins with its first event no rate is known."""

    outcomes: tuple[str, ...] = ("done", "aborted")

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Counter(
            "ditto_jobs", "Jobs that ended: done, cancelled, or the code of the error.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        for outcome in self.outcomes:
            self.jobs.labels(outcome)
        self.models = self._gauge("ditto_models", "Models that this process knows.")

    def _gauge(self, name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(name, help_, labels, registry=self.registry)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(name, help_, labels, registry=self.registry)

    def _seconds(self, name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help_, ["phase"], registry=self.registry, buckets=buckets)


class CoordinatorMetrics(Metrics):
    outcomes = ("done", "cancelled", *(code.lower() for code in BY_CODE))

    def __init__(self) -> None:
        super().__init__()
        self.queued = self._gauge("ditto_queue_length", "Jobs and activations that wait for their turn.")
        self.running = self._gauge("ditto_running", "Jobs and activations that run.")
        self.aside = self._gauge("ditto_aside", "Jobs that stand aside until their client's inputs are there.")
        self.pairs = self._gauge("ditto_pairs_up", "Pairs of the parties' workers that are given jobs.")
        self.stocked = self._counter("ditto_stocked_jobs", "Jobs that were done from stock.")
        self.seconds = self._seconds(
            "ditto_job_seconds", "Seconds of a done job in one phase, summed over its layers; the slower party's.", _JOB
        )


class LinkMetrics:
    """One party's end of the peer link, counted frame by frame; activations of models count as well as jobs."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.up = Gauge("ditto_peer_link_up", "1 while the stream to the other party stands.", registry=registry)
        self.rounds = Counter("ditto_rounds", "Messages exchanged with the other party.", registry=registry)
        moved = Counter(
            "ditto_peer_bytes", "Bytes of frames on the peer link, framing apart from payload.", ["direction", "part"],
            registry=registry,
        )  # fmt: skip
        self._sent, self._received = (
            (moved.labels(direction, "payload"), moved.labels(direction, "framing")) for direction in ("out", "in")
        )

    def sent(self, payload: int, framing: int) -> None:
        self._sent[0].inc(payload)
        self._sent[1].inc(framing)

    def received(self, payload: int, framing: int) -> None:
        self._received[0].inc(payload)
        self._received[1].inc(framing)


class PartyMetrics(Metrics):
    def __init__(self) -> None:
        super().__init__()
        self.link = LinkMetrics(self.registry)
        self.held = self._gauge("ditto_held_bytes", "What the jobs that are open hold at most, as predicted.")
        self.seconds = self._seconds("ditto_layer_seconds", "Seconds of one layer in one phase at this party.", _LAYER)
        dealt = self._counter("ditto_dealer_bytes", "Bytes of correlations received from the dealer.", "part")
        self._dealt = dealt.labels("payload"), dealt.labels("framing")
        self.stock_jobs = self._gauge("ditto_stock_jobs", "Jobs whose correlations are in stock.")
        self.stock_bytes = self._gauge("ditto_stock_bytes", "Bytes that they take on the disk.")
        self.taken = self._counter("ditto_stock_taken", "Jobs whose correlations were taken from stock.")

    def dealt(self, payload: int, framing: int) -> None:
        self._dealt[0].inc(payload)
        self._dealt[1].inc(framing)


class DealerMetrics(Metrics):
    def __init__(self) -> None:
        super().__init__()
        self.waiting = self._gauge("ditto_waiting_bytes", "Correlations dealt and not sent yet.", "party")
        self.held = self._gauge("ditto_held_bytes", "What the jobs that are open hold at most, as predicted.")
        dealt = self._counter("ditto_dealt_bytes", "Bytes of correlations sent to a party.", "party", "part")
        self._dealt = [(dealt.labels(role, "payload"), dealt.labels(role, "framing")) for role in PARTIES]

    def dealt(self, party: int, payload: int, framing: int) -> None:
        self._dealt[party][0].inc(payload)
        self._dealt[party][1].inc(framing)


def serve(listen: str | None, me: str, registry: CollectorRegistry) -> Callable[[], None]:
    """Serve a registry over HTTP, when there is an address; returns what ends it."""
    if listen is None:
        return lambda: None
    host, _, port = listen.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{me} cannot serve metrics on {listen}: {reason}") from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(1.0)

    return stop
