"""The jobs of one party: opened once, stepped layer by layer, gone after the client fetched the answer."""

from __future__ import annotations

import threading
import time

import structlog
import torch

from ditto.config import PartyConfig
from ditto.errors import BadShare, ClusterError, ReplayedJob
from ditto.ledger import Ledger
from ditto.metrics import PartyMetrics
from ditto.peerlink import LinkChannel, PeerLink
from ditto.prg import SEED_BYTES
from ditto.program import Program
from ditto.runtime import PartyJob
from ditto.service.model_store import Assembly, ModelStore
from ditto.service.programs import check_id, program_for
from ditto.service.source import DealerSource
from ditto.sharing import seeded_share
from ditto.transport import short
from ditto.wire import dealer_pb2, dealer_pb2_grpc, party_pb2

log = structlog.get_logger()


class Job:
    """One job: its program, the link, the dealer's stream and what was fetched. Steps hold `lock`."""

    def __init__(self, name: str, program: Program, channel: LinkChannel, source: DealerSource) -> None:
        self.name, self.program, self.channel, self.source = name, program, channel, source
        self.ledger = Ledger()
        self.lock = threading.Lock()
        self.engine: PartyJob | None = None
        self.outputs: dict[str, torch.Tensor] | None = None
        self.fetched: set[str] = set()
        self.seconds = {"offline": 0.0, "online": 0.0}
        self.used = time.monotonic()

    def running(self) -> PartyJob:
        if self.engine is None:
            raise ClusterError(f"job {self.name} is not open yet")
        self.used = time.monotonic()
        return self.engine

    def step(self, phase: str, layer: int) -> tuple[float, list[dict[str, object]]]:
        """Prepare ("offline") or run ("online") one layer; seconds and the rows that it added."""
        if layer >= len(self.program.layers):
            raise ClusterError(f"the program has {len(self.program.layers)} layers, no layer {layer}")
        with self.lock:
            engine, start = self.running(), time.perf_counter()
            if phase == "offline":
                engine.prepare(layer)
            else:
                engine.run(layer)
                if layer == len(self.program.layers) - 1:
                    self.outputs = engine.outputs()
            seconds = time.perf_counter() - start
            self.seconds[phase] += seconds
            self.used = time.monotonic()
            return seconds, self.ledger.to_json(phase, layer)

    def input(self, header: party_pb2.InputHeader) -> Assembly | None:
        """Check an announced share; set it at once when a seed stands for it, else return what collects it."""
        assembly = Assembly(header.name, self.program.inputs.get(header.name), header.ring, tuple(header.shape))
        if not header.seed:
            return assembly
        if len(header.seed) != SEED_BYTES:
            raise BadShare(f"{header.name}: a seed of {len(header.seed)} bytes")
        wire = assembly.wire
        self.set_input(header.name, seeded_share(header.name, wire, header.seed))
        return None

    def set_input(self, name: str, share: torch.Tensor) -> None:
        with self.lock:
            self.running().set_input(name, share)

    def traffic(self) -> party_pb2.Traffic:
        """What this party sent and received for the job so far, counted at the frame."""
        link, dealer = self.channel, self.source
        return party_pb2.Traffic(
            rounds=link.rounds, dealt=dealer.received, dealt_framing=dealer.framing,
            payload_sent=link.payload_sent, framing_sent=link.framing_sent,
            payload_received=link.payload_received, framing_received=link.framing_received,
        )  # fmt: skip

    def times(self, layer: int) -> party_pb2.LayerTimes:
        """When this party ran a layer, round by round."""
        times = self.ledger.times[layer]
        rounds = [party_pb2.Round(**vars(opening)) for opening in times.rounds]
        return party_pb2.LayerTimes(**(vars(times) | {"rounds": rounds}))

    def close(self, reason: str) -> None:
        self.channel.close(reason)
        self.source.close(reason or "the job is done")


class Jobs:
    """All open jobs, and the names of all that ever were: a name is used once."""

    def __init__(
        self,
        config: PartyConfig,
        store: ModelStore,
        link: PeerLink,
        dealer: dealer_pb2_grpc.DealerStub,
        metrics: PartyMetrics,
    ) -> None:
        self._config, self._store, self._link, self._dealer, self._metrics = config, store, link, dealer, metrics
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._used: set[str] = set()
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    def open(self, request: party_pb2.OpenJobRequest) -> None:
        check_id(request.job)
        with self._lock:
            if request.job in self._used:
                raise ReplayedJob(f"job {request.job} was used before", peer=self._config.role)
        entry = self._store.entry(request.share_id)
        program = program_for(entry.spec, request.batch, request.seq, request.fingerprint)
        weights = self._store.weights(request.share_id)
        with self._lock:
            if request.job in self._used:
                raise ReplayedJob(f"job {request.job} was used before", peer=self._config.role)
            self._used.add(request.job)
        channel = self._link.open(request.job)
        correlations = dealer_pb2.CorrelationsRequest(
            job=request.job, model=entry.model, share_id=request.share_id,
            batch=request.batch, seq=request.seq, fingerprint=request.fingerprint,
        )  # fmt: skip
        source = DealerSource(self._dealer, correlations, self._config.step_timeout_s, self._metrics)
        job = Job(request.job, program, channel, source)
        with self._lock:
            self._jobs[request.job] = job
        log.info("job started", job=short(request.job), model=entry.model, batch=request.batch, seq=request.seq)
        try:
            seed = source.seed()
            job.engine = PartyJob(program, self._config.index, request.job, seed, weights, channel, source, job.ledger)
        except Exception:
            self.close(request.job, "opening failed")
            raise

    def get(self, name: str) -> Job:
        with self._lock:
            job = self._jobs.get(name)
        if job is None:
            raise ClusterError(f"{self._config.role} has no open job {name[:40]!r}", peer=self._config.role)
        return job

    def close(self, name: str, reason: str = "") -> None:
        """Forget a job; with a reason it counts as given up and whoever waits in it fails."""
        with self._lock:
            self._used.add(name)
            job = self._jobs.pop(name, None)
        if job is not None:
            job.close(reason)
            outcome = "aborted" if reason else "done"
            self._metrics.jobs.labels(outcome).inc()
            log.info(
                "job ended", job=short(name), outcome=outcome, reason=reason or None,
                **{f"{phase}_seconds": round(seconds, 4) for phase, seconds in job.seconds.items()},
                **{count.name: value for count, value in job.traffic().ListFields()},
            )  # fmt: skip

    def _sweep(self) -> None:
        while True:
            time.sleep(1.0)
            now = time.monotonic()
            with self._lock:
                idle = [
                    name
                    for name, job in self._jobs.items()
                    if now - job.used > self._config.idle_timeout_s and not job.lock.locked()
                ]
            for name in idle:
                self.close(name, "nothing happened for too long")

    def close_all(self) -> None:
        with self._lock:
            names = list(self._jobs)
        for name in names:
            self.close(name, f"{self._config.role} stops")
