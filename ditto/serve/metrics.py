"""What `ditto serve` counts, for Prometheus: requests, jobs, rounds, bytes. Labels: routes and models, never texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from ditto.serve.turns import Turns

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 900)


class Metrics:
    def __init__(self, turns: Turns) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "ditto_serve_requests", "Requests that were answered, by route and HTTP status.", ["route", "status"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "ditto_serve_request_seconds", "From a request's first byte to its answer's last.", ["route"],
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        here = Gauge("ditto_serve_requests_here", "Requests that ask a model, or wait to.", registry=registry)
        here.set_function(lambda: turns.held)
        running = Gauge("ditto_serve_jobs_running", "Jobs under way.", registry=registry)
        running.set_function(lambda: turns.running)
        self._jobs = self._of_model("ditto_serve_jobs", "Jobs that were done.", registry)
        self._texts = self._of_model("ditto_serve_texts", "Texts that these jobs answered.", registry)
        self._astray = self._of_model(
            "ditto_serve_out_of_range_jobs", "Jobs in which values left their calibrated range.", registry
        )
        self._rounds = self._of_model("ditto_serve_rounds", "Messages that the parties exchanged for them.", registry)
        self._bytes = self._of_model(
            "ditto_serve_bytes", "Bytes of them: online between the parties, dealt.", registry, "phase"
        )
        self._phases = self._of_model(
            "ditto_serve_job_seconds", "Seconds of them, the slower party's.", registry, "phase"
        )

    @staticmethod
    def _of_model(name: str, help_: str, registry: CollectorRegistry, *labels: str) -> Counter:
        return Counter(name, help_, ["model", *labels], registry=registry)

    def job(self, model: str, report: dict[str, Any], texts: int) -> None:
        """A job's report (`ditto.client.client.InferResult`). `model` is shared: nobody makes labels up."""
        online, offline = report["online"], report["offline"]
        self._jobs.labels(model).inc()
        self._texts.labels(model).inc(texts)
        self._astray.labels(model).inc(report["in_range"] is False)
        self._rounds.labels(model).inc(online["rounds"])
        self._bytes.labels(model, "online").inc(sum(online["bytes_sent"]))
        self._bytes.labels(model, "offline").inc(sum(offline["bytes_to_party"]))
        self._phases.labels(model, "online").inc(online["seconds"])
        self._phases.labels(model, "offline").inc(offline["seconds"])

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)
