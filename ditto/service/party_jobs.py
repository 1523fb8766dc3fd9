"""The jobs of one party: opened once, stepped layer by layer, gone after the client fetched the answer."""

from __future__ import annotations

import threading
import time

import grpc
import structlog
import torch

from ditto.engine.job import Carried, PartyJob
from ditto.engine.ledger import Ledger, Phase, total
from ditto.engine.memory import held_by_layer
from ditto.engine.program import Program
from ditto.engine.recording import RecordedJob, Recorder
from ditto.engine.sharing import seeded_share
from ditto.engine.weights import PartyWeights
from ditto.errors import BadShare, ClusterError, ReplayedJob, StorageError
from ditto.models import Plan
from ditto.models.compiled import program_for
from ditto.models.description import digest_of, parse
from ditto.names import check_id
from ditto.net.config import PartyConfig
from ditto.net.link_channel import LinkChannel
from ditto.net.messages import ledger_to_message, plan_of, times_to_message
from ditto.net.metrics import PartyMetrics
from ditto.net.peerlink import PeerLink
from ditto.net.tracing import OFF, SILENT, Context, Span, Tracing
from ditto.net.transport import from_rpc_error, short
from ditto.ring.prg import SEED_BYTES
from ditto.service.assembly import Assembly
from ditto.service.copies import Copies
from ditto.service.limits import admit_job, need_of
from ditto.service.model_store import Entry, ModelStore
from ditto.service.recordings import Header, Recordings
from ditto.service.room import Room
from ditto.service.source import DealerSource, correlations
from ditto.service.stock import Stock, StockSource
from ditto.service.terms import Terms, binding
from ditto.wire import dealer_pb2, dealer_pb2_grpc, party_pb2

log = structlog.get_logger()


class Stage:
    """One stage of a job at this party: its program, its engine, its account, and what was fetched."""

    def __init__(self, program: Program, engine: PartyJob) -> None:
        self.program, self.engine = program, engine
        self.held = held_by_layer(program)
        self.outputs: dict[str, torch.Tensor] | None = None
        self.fetched: set[str] = set()


class Job:
    """One job: its plan and stages, the link and the dealer's stream.

    Stages come one after another; the last two are kept, so that an answer can be fetched while the next is prepared.
    A layer may be prepared while one before it runs: each phase has a lock of its own, a third guards what both know.
    """

    def __init__(
        self,
        name: str,
        description: str,
        plan: Plan,
        party: int,
        channel: LinkChannel,
        source: DealerSource | StockSource,
        room: Room,
        span: Span = SILENT,
    ) -> None:
        self.name, self.plan, self.channel, self.source, self.span = name, plan, channel, source, span
        self._room, self._need = room, need_of(description, plan)
        self._lock = threading.Lock()
        self._phases: dict[Phase, threading.Lock] = {"offline": threading.Lock(), "online": threading.Lock()}
        self.seconds: dict[Phase, float] = {"offline": 0.0, "online": 0.0}
        self.used = time.monotonic()
        self._description, self._party = description, party
        self._keys: tuple[bytes, PartyWeights] | None = None
        self._stages: list[Stage | None] = []
        self._carried = Carried()
        self._first = 0
        self._recorder: Recorder | None = None
        self._closed = ""  # why, once it is

    def begin(self, seed: bytes, weights: PartyWeights, recorder: Recorder | None = None, bound: str = "") -> None:
        """From here on stages can be entered: `seed` is this party's of the job. `recorder` takes what it sees. `bound`
        is what the other party has to mean by the job's name, too (`binding`)."""
        self._carried.terms = bound
        self._keys, self._recorder = (seed, weights), recorder
        if recorder and self._closed:
            recorder.end(self._closed, self.channel.transcript)

    def stage(self, index: int) -> Stage:
        """A stage that was entered and not left yet. Raises ClusterError."""
        stage = self._stages[index] if index < len(self._stages) else None
        if stage is None:
            raise ClusterError(f"job {self.name} is not at stage {index}")
        return stage

    @property
    def busy(self) -> bool:
        return any(lock.locked() for lock in self._phases.values())

    def _enter(self, index: int) -> Stage:
        """The same, entering the next one if it is that; the caller holds `lock`."""
        if self._keys is None:
            raise ClusterError(f"job {self.name} is not open yet")
        self.used = time.monotonic()
        if index == len(self._stages) < self.plan.stages:
            seed, weights = self._keys
            program = program_for(self._description, self.plan, index)
            mine = program, self._party, self.name, seed, weights, self.channel, self.source, Ledger()
            if self._recorder is None:
                engine = PartyJob(*mine, self._first, self._carried)
            else:
                engine = RecordedJob(self._recorder, index, *mine, self._first, self._carried)
            self._first += len(program.steps)
            self._stages.append(Stage(program, engine))
            if index >= 2:
                self._stages[index - 2] = None
        return self.stage(index)

    def step(
        self, phase: Phase, request: party_pb2.StepRequest, until: float | None = None, parent: Context | None = None
    ) -> party_pb2.StepReply:
        """Prepare ("offline") or run ("online") one layer, or it and the rest: seconds and the rows that were added.
        Nothing is awaited beyond `until` (time.monotonic). `parent`: the coordinator's span of this step."""
        with self._phases[phase]:
            with self._lock:
                stage = self._enter(request.stage)
            count = len(stage.program.layers)
            if request.layer >= count:
                raise ClusterError(f"the program has {count} layers, no layer {request.layer}")
            if phase == "offline":
                self.source.until = until
            if phase == "online" or request.layer:  # from here on it is more than what waits for the client
                self._room.change(self.name, self._need.party)
            if phase == "online" or (request.stage, request.layer) == (0, 0):  # what is agreed on with the other party
                self.channel.until = until
            name = f"token {request.stage + 1}" if request.rest else stage.program.layers[request.layer]
            span = self.span.child(f"{phase} {name}", parent, phase=phase, layer=request.layer, stage=request.stage)
            engine, start = stage.engine, time.perf_counter()
            last = count if request.rest else request.layer + 1
            with span:
                for layer in range(request.layer, last):
                    if phase == "online":
                        engine.run(layer)
                    else:
                        self._check_ahead(stage, request.stage, layer)
                        engine.prepare(layer)
                if phase == "online" and last == count:
                    stage.outputs = engine.outputs()
                    self._rest(request.stage + 1)
                seconds = time.perf_counter() - start
                ledger = engine.ledger
                rows = ledger.by_operation(phase) if request.rest else ledger.rows(phase, request.layer)
                spent = total(rows)
                span.note(
                    rounds=spent.rounds, bytes_sent=spent.bytes_sent, bytes_from_dealer=spent.bytes_from_dealer,
                    waiting_seconds=spent.waiting,
                )  # fmt: skip
                span.end(seconds=seconds)
            self.seconds[phase] += seconds
            self.used = time.monotonic()
            reply = party_pb2.StepReply(seconds=seconds, traffic=self.traffic())
            reply.ledger.CopyFrom(ledger_to_message(rows))
            if phase == "online" and not request.rest:
                reply.times.CopyFrom(times_to_message(ledger.times[request.layer]))
            return reply

    def _rest(self, stages: int) -> None:
        """So many stages are done: no more is held than until the client's next inputs, or an answer until it fetches
        it. The latter does not count: nobody is refused because another one is slow to fetch."""
        self._room.change(self.name, self._need.waiting if stages < self.plan.stages else 0)

    def _check_ahead(self, stage: Stage, index: int, layer: int) -> None:
        """Raises ClusterError for a layer of the first stage that would hold too much beside those that have not run.
        A later stage is small, and prepared as a whole."""
        running = stage.engine.ended
        if index == 0 and layer > running and sum(stage.held[running : layer + 1]) > self.plan.hold:
            raise ClusterError(f"layer {layer} is prepared while layer {running} has not run: more than hold_mb")

    def input(self, header: party_pb2.InputHeader) -> Assembly | None:
        """Check an announced share; set it at once when a seed stands for it, else return what collects it."""
        with self._lock:
            program = self._enter(header.stage).program
        assembly = Assembly(header.name, program.inputs.get(header.name), header.ring, tuple(header.shape))
        if not header.seed:
            return assembly
        if len(header.seed) != SEED_BYTES:
            raise BadShare(f"{header.name}: a seed of {len(header.seed)} bytes")
        self.set_input(header.stage, header.name, seeded_share(header.name, assembly.wire, header.seed))
        return None

    def set_input(self, stage: int, name: str, share: torch.Tensor) -> None:
        with self._lock:
            self._enter(stage).engine.set_input(name, share)

    def left(self, index: int) -> bool:
        """Was the last answer fetched whole?"""
        stage = self.stage(index)
        return index == self.plan.stages - 1 and stage.fetched >= stage.program.outputs.keys()

    def traffic(self) -> party_pb2.Traffic:
        """What this party sent and received for the job so far, counted at the frame."""
        link, dealer = self.channel, self.source
        return party_pb2.Traffic(
            rounds=link.rounds, dealt=dealer.received, dealt_framing=dealer.framing,
            payload_sent=link.payload_sent, framing_sent=link.framing_sent,
            payload_received=link.payload_received, framing_received=link.framing_received,
        )  # fmt: skip

    def close(self, reason: str) -> None:
        self.channel.close(reason)
        self.source.close(reason or "the job is done")
        self._closed = reason or "closed while it was opened"
        if self._recorder is not None:
            self._recorder.end(reason, self.channel.transcript)
        self._carried.values.clear()
        self._carried.masks.clear()


class Jobs:
    """All open jobs, and the names of all that ever were: a name is used once."""

    def __init__(
        self,
        config: PartyConfig,
        store: ModelStore | Copies,
        link: PeerLink,
        dealer: dealer_pb2_grpc.DealerStub,
        metrics: PartyMetrics,
        tracing: Tracing = OFF,
    ) -> None:
        self._config, self._store, self._link, self._dealer, self._metrics = config, store, link, dealer, metrics
        self._tracing = tracing
        self._recordings = Recordings(config) if config.record else None
        self._room = Room(config.all_jobs, config.role)
        metrics.held.set_function(lambda: self._room.taken)
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._terms: dict[str, Terms] = {}  # of the same jobs
        self._used: set[str] = set()
        self._opening: set[str] = set()  # neither open yet nor closed
        self.stock = Stock(config, (entry.share_id for entry in store.entries()))
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    def open(self, request: party_pb2.OpenJobRequest, parent: Context | None = None) -> None:
        """`parent`: the coordinator's span of the job."""
        self.check_fresh(request.job, request.stocked)
        entry = self._store.entry(request.share_id)
        entry.check_asks(request.client)
        entry.check_description(request.description_digest, self._config.role)
        plan = plan_of(request.plan)
        admit_job(entry.description, plan, request.fingerprint, self._config, self._config.role)
        weights = self._store.weights(request.share_id)
        with self._lock:
            if request.job in self._used:
                raise ReplayedJob(f"job {request.job} was used before", peer=self._config.role)
            self._used.add(request.job)
            self._opening.add(request.job)
        try:
            self._room.open(request.job, need_of(entry.description, plan).waiting)
            self._begin(request, entry, plan, weights, parent)
        except Exception:
            self.close(request.job, "opening failed")
            raise

    def _begin(
        self, request: party_pb2.OpenJobRequest, entry: Entry, plan: Plan, weights: PartyWeights, parent: Context | None
    ) -> None:
        channel = self._link.open(request.job)
        span = self._tracing.start(
            "job", parent, job=short(request.job), model=entry.model, preset=parse(entry.description).preset,
            batch=plan.batch, padded_length=plan.seq, tokens=plan.tokens,
        )  # fmt: skip
        try:
            source = self._source(request, plan, span)
        except Exception:
            channel.close("opening failed")
            span.end("FAILED")
            raise
        job = Job(request.job, entry.description, plan, self._config.index, channel, source, self._room, span)
        terms = Terms(
            request.client, entry.model, entry.owner, entry.share_id, plan, request.fingerprint,
            digest_of(entry.description),
        )  # fmt: skip
        with self._lock:
            closed = request.job not in self._opening
            self._opening.discard(request.job)
            self._jobs[request.job], self._terms[request.job] = job, terms
        if closed:  # while it waited for what it needs
            raise ClusterError("the job was closed while it was opened", peer=self._config.role)
        log.info("job started", job=short(request.job), model=entry.model, **vars(plan))
        with span.child("wait for dealer"):
            seed = source.seed()
        bound = binding(entry.share_id, plan, request.fingerprint, request.stocked, source.dealing)
        job.begin(seed, weights, self._recorder(terms, entry.share_digest, request.job, seed, bound), bound)

    def check_fresh(self, job: str, stocked: bool = False) -> None:
        """Raises ReplayedJob for a name that is, or was, another job's."""
        check_id(job)
        with self._lock:
            if job in self._used:
                raise ReplayedJob(f"job {job} was used before", peer=self._config.role)
        if not stocked:
            self.stock.check_fresh(job)

    def _source(self, request: party_pb2.OpenJobRequest, plan: Plan, span: Span) -> DealerSource | StockSource:
        """A job's correlations: from the dealer, or what is in stock, which is used up by this."""
        if not request.stocked:
            return DealerSource(self._dealer, correlations(request), self._config.step_timeout_s, self._metrics, span)
        ask = dealer_pb2.TakeStockRequest(job=request.job, share_id=request.share_id)

        def release() -> None:
            try:
                self._dealer.TakeStock(ask, timeout=self._config.connect_timeout_s)
            except grpc.RpcError as error:
                raise from_rpc_error(error, "dealer") from None

        source = self.stock.take(request.job, (request.share_id, plan, request.fingerprint), release)
        self._metrics.taken.inc()
        return source

    def _recorder(self, terms: Terms, share_digest: str, job: str, seed: bytes, bound: str) -> Recorder | None:
        """Where the operator asks for recordings. Without a place to write to the job goes on all the same."""
        if self._recordings is None:
            return None
        header = Header(
            role=self._config.role, job=job, client=terms.client, model=terms.model, share_id=terms.share_id,
            share_digest=share_digest, files=self._store.marks(terms.share_id), plan=terms.plan,
            fingerprint=terms.fingerprint, bound=bound,
        )  # fmt: skip
        try:
            return self._recordings.begin(header, seed)
        except StorageError as error:
            log.error("job not recorded", job=short(job), reason=str(error))
            return None

    def get(self, name: str) -> Job:
        with self._lock:
            job = self._jobs.get(name)
        if job is None:
            raise ClusterError(f"{self._config.role} has no open job {name[:40]!r}", peer=self._config.role)
        return job

    def of_client(self, name: str, caller: str) -> Job:
        """The same, for the client that the job belongs to. Raises NotAllowed for any other."""
        job = self.get(name)
        self._terms_of(name).check_caller(caller, self._config.role)
        return job

    def check_terms(self, name: str, believed: party_pb2.JobTerms) -> None:
        """Raises JobMismatch, VersionMismatch unless a client means the job that runs here."""
        self._terms_of(name).check(believed, self._config.role)

    def _terms_of(self, name: str) -> Terms:
        with self._lock:
            terms = self._terms.get(name)
        if terms is None:
            raise ClusterError("the job was closed", peer=self._config.role)
        return terms

    def close(self, name: str, reason: str = "") -> None:
        """Forget a job; with a reason it counts as given up and whoever waits in it fails."""
        with self._lock:
            self._used.add(name)
            self._opening.discard(name)
            job = self._jobs.pop(name, None)
            self._terms.pop(name, None)
        self._room.give_back(name)
        self.stock.discard(name)
        if job is not None:
            job.close(reason)
            outcome = "aborted" if reason else "done"
            self._metrics.jobs.labels(outcome).inc()
            moved = job.traffic()
            job.span.note(outcome=outcome, rounds=moved.rounds, bytes_sent=moved.payload_sent)
            job.span.note(bytes_received=moved.payload_received, bytes_from_dealer=moved.dealt)
            job.span.end("ABORTED" if reason else "")
            log.info(
                "job ended", job=short(name), outcome=outcome, reason=reason or None,
                **{f"{phase}_seconds": round(seconds, 4) for phase, seconds in job.seconds.items()},
                **{count.name: value for count, value in moved.ListFields()},
                **job.channel.transcript.summary(),
            )  # fmt: skip

    def _sweep(self) -> None:
        while True:
            time.sleep(1.0)
            now = time.monotonic()
            with self._lock:
                idle = [
                    name
                    for name, job in self._jobs.items()
                    if now - job.used > self._config.idle_timeout_s and not job.busy
                ]
            for name in idle:
                self.close(name, "nothing happened for too long")

    def close_all(self) -> None:
        with self._lock:
            names = list(self._jobs)
        for name in names:
            self.close(name, f"{self._config.role} stops")
        if self._recordings is not None:
            self._recordings.close()
