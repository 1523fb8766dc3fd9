"""The coordinator: registers models, queues jobs, drives both parties layer by layer, reports what each layer cost."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from functools import partial

import grpc
import structlog

from ditto.errors import CertificateError, ClusterError, DittoError, NotAllowed, ReuseError, UsageError
from ditto.models.description import parse
from ditto.names import PARTIES, check_id, check_name
from ditto.net.config import CoordinatorConfig
from ditto.net.identity import caller, certificate
from ditto.net.messages import plan_of
from ditto.net.metrics import CoordinatorMetrics
from ditto.net.tracing import OFF, Claims, Tracing, received
from ditto.net.transport import Roles, connect, open_channel, short
from ditto.service.about import about, round_trip
from ditto.service.driving import Driver
from ditto.service.job_run import Account, JobRun
from ditto.service.limits import admit_job, admit_model, need_of, need_to_activate
from ditto.service.pages import page
from ditto.service.pairs import Pair, Pairs
from ditto.service.parties_view import PartiesView, check_request
from ditto.service.public_parts import PublicParts
from ditto.service.registered import Registered, RegisteredModels
from ditto.service.stock_keeper import StockKeeper
from ditto.service.turns import Turns
from ditto.wire import control_pb2, control_pb2_grpc, dealer_pb2, dealer_pb2_grpc, party_pb2

log = structlog.get_logger()
_METHODS = (
    "RegisterModel", "UnregisterModel", "ListModels", "GetModel", "GetPublic", "Status", "RunJob", "StartJob", "Deal",
)  # fmt: skip
ROLES: Roles = {name: frozenset({"client"}) for name in _METHODS}


def _message(entry: Registered) -> control_pb2.Model:
    return control_pb2.Model(**entry.model_dump(exclude={"public"}))


class CoordinatorService(control_pb2_grpc.CoordinatorServicer):
    def __init__(self, config: CoordinatorConfig, tracing: Tracing = OFF) -> None:
        self._config, self._tracing, self._traces = config, tracing, Claims()
        self._dealer_channel = open_channel(
            config.peers.dealer, "dealer", config.tls, config.role, config.max_message_mb, config.silence_s
        )
        self._dealer = dealer_pb2_grpc.DealerStub(self._dealer_channel)
        self._pairs = Pairs(config)
        self._keepers = self._pairs.keepers.stubs
        self._account = Account()
        self._turns = Turns(
            config.jobs_at_once,
            config.all_jobs,
            config.queue_limit,
            config.max_jobs,
            self._account.pace,
            self._pairs.up,
        )
        self._pairs.watch(self._turns.look)
        self._lock = threading.Lock()
        self._runs: dict[str, JobRun] = {}
        self._view = PartiesView(self._keepers, config.connect_timeout_s)
        self._models = RegisteredModels(config.data_dir / "models")
        self._stock = StockKeeper(config, self._keepers, self._turns, self._models, self._connect_pair)
        self._driver = Driver(config, self._turns, self._models, self._connect_pair, self._stock)
        self._public = PublicParts(config.data_dir, config.max_public_mb)
        self._public.sweep(self._models.published)
        self.metrics = CoordinatorMetrics()
        self.metrics.queued.set_function(lambda: self._turns.state().waiting)
        self.metrics.running.set_function(lambda: len(self._turns.state().running))
        self.metrics.pairs.set_function(lambda: len(self._pairs.up()))
        self.metrics.aside.set_function(lambda: self._turns.state().aside)
        self.metrics.models.set_function(lambda: len(self._models))

    # Models -------------------------------------------------------------------------------------

    def GetModel(self, request: control_pb2.GetModelRequest, context: grpc.ServicerContext) -> control_pb2.Model:
        client = str(caller(context))
        model = self._models.get(request.model, client)
        self._view.check(model, client)
        found = _message(model)
        found.hold_mb = self._config.hold_mb
        return found

    def GetPublic(
        self, request: control_pb2.GetPublicRequest, context: grpc.ServicerContext
    ) -> Iterator[control_pb2.PublicPiece]:
        """To its owner, by these records, and to whom a party's grants allow: without a party, to nobody else."""
        client = str(caller(context))
        model = self._models.get(request.model, client)
        self._view.check(model, client, sure=client != model.owner)
        if not model.public:
            raise ClusterError(
                f"{model.model} has no public part: it was shared by an earlier version, or without a tokenizer. "
                f"Its owner, {model.owner}, imports it and shares it again", peer="coordinator",
            )  # fmt: skip
        yield from self._public.pieces(model.public)

    def ListModels(
        self, request: control_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> control_pb2.ListModelsReply:
        """What the caller owns, by the coordinator's records, and what it may ask besides, by a party's: without a
        party, the former only."""
        client = str(caller(context))
        asked = self._view.may_ask(client)
        models = [entry for entry in self._models.all() if entry.owner == client or entry.share_id in asked]
        given, after = page(
            models, lambda m: m.model, lambda m: _message(m).ByteSize(), request.page_token, request.page_size
        )
        return control_pb2.ListModelsReply(models=map(_message, given), next_page_token=after)

    def RegisterModel(
        self, request_iterator: Iterator[control_pb2.RegisterModelRequest], context: grpc.ServicerContext
    ) -> control_pb2.RegisterModelReply:
        """Have the parties activate a sharing, and let it serve its name. Can be repeated after a failure.

        1. Nothing is asked of the parties for what this server would not list; its public part, if one comes, is on
           the disk.
        2. Its turn. Jobs run beside it: each has named the sharing that served when it was opened, and the parties
           keep that one's weights for it. Nothing is activated beside it: two attempts at one sharing would each wait
           for the other at another party. The call ends when no job is being opened on what served before: its owner
           removes that one next.
        3. What both parties have activated is not opened again: an earlier call failed after that. What only one has
           cannot be: the share is gone there. ReuseError; the owner shares the model anew, under another identifier.
        4. Else both activate it. Whatever an earlier attempt opened is opened once more with the same masks and the
           same shares, hence the same: the dealer gives a seed for these two shares only.
        """
        first = next(request_iterator, control_pb2.RegisterModelRequest())
        model, owner = first.model, str(caller(context))
        name, share_id = check_name(model.model), check_id(model.share_id)
        # 1
        self._models.check_owner(name, owner, self._config.max_models)
        admit_model(model.description, self._config, self._config.role)
        if parse(model.description).name != name:
            raise UsageError(f"a description of another model than {name}")
        public = ""
        if first.HasField("public"):
            pieces = (request.data for request in request_iterator)
            public = self._public.receive(model, first.public, certificate(context), pieces, owner)
        entry = Registered(model=name, share_id=share_id, description=model.description, owner=owner, public=public)
        try:
            before = self._register(entry, context)
        except BaseException:
            self._public.remove(public)
            raise
        self._public.remove(before.public if before else "")
        log.info("model registered", model=name, share=short(share_id), owner=owner, public=bool(public))
        return control_pb2.RegisterModelReply()

    def _register(self, entry: Registered, context: grpc.ServicerContext) -> Registered | None:
        attempt = secrets.token_hex(16)
        run = JobRun(attempt, self._keepers, self._config.step_timeout_s)
        context.add_callback(run.cancel)
        self._turns.enter(attempt, entry.owner, need_to_activate(entry.description), alone=True)
        try:
            # 2
            run.wait_turn(self._turns)
            self._connect_pair(0)
            self._activate(run, entry)
            before = self._models.put(entry)
            self._models.settle(entry, self._config.step_timeout_s)
            run.done = True
        except DittoError:
            run.close("activation failed")
            raise
        finally:
            self._turns.leave(attempt)
        return before

    def _activate(self, run: JobRun, entry: Registered) -> None:
        # 3
        check = check_request(entry, entry.owner)
        replies = run.both(lambda stub, timeout: stub.CheckModel.future(check, timeout=timeout))
        active = [reply.active for reply in replies]
        if all(active):
            return
        if any(active):
            raise ReuseError("an activation of this sharing failed half way; share the model again", peer="coordinator")
        # 4
        ask = party_pb2.ActivateModelRequest(
            model=entry.model, share_id=entry.share_id, attempt=run.name, owner=entry.owner,
            description_digest=check.description_digest,
        )  # fmt: skip
        run.both(lambda stub, timeout: stub.ActivateModel.future(ask, timeout=timeout))

    def UnregisterModel(
        self, request: control_pb2.UnregisterModelRequest, context: grpc.ServicerContext
    ) -> control_pb2.UnregisterModelReply:
        owner = str(caller(context))
        gone = self._models.remove(request.model, owner)
        if gone is not None:
            self._public.remove(gone.public)
            log.info("model unregistered", model=request.model, owner=owner)
        return control_pb2.UnregisterModelReply(known=gone is not None)

    def Status(self, request: control_pb2.StatusRequest, context: grpc.ServicerContext) -> control_pb2.StatusReply:
        turns = self._turns.state()
        processes = [
            control_pb2.ProcessStatus(role="coordinator", address=self._config.peers.coordinator, serving=True)
        ]
        for role, channel in (*self._pairs.keepers.channels.items(), ("dealer", self._dealer_channel)):
            status = control_pb2.ProcessStatus(role=role, address=self._config.peers.of(role), serving=True)
            try:
                status.round_trip = round_trip(channel, role)
            except DittoError as error:
                status.serving, status.error = False, str(error)
            processes.append(status)
        own = self._models.of(str(caller(context)))
        answering = [status.role for status in processes if status.serving and status.role in PARTIES]
        for status in processes:
            if status.role in answering and (said := self._view.about(status.role)):
                status.about.CopyFrom(said)
        faults, stock = self._view.held(own, answering)
        dealer = self._inventory([entry.model for entry in own])
        processes += self._pairs.workers()
        with self._lock:
            running = [self._runs[name].job if name in self._runs else name for name in turns.running]
        # other clients see enough of a job's name to recognise their own
        return control_pb2.StatusReply(
            processes=processes, queued=turns.waiting, running=map(short, running), aside=turns.aside,
            throughput=self._account.state(), dealer=dealer, faults=faults, stock=stock,
            about=about(),  # right after the dealer's: their clocks are compared
        )  # fmt: skip

    def _inventory(self, own: list[str]) -> dealer_pb2.InventoryReply | None:
        try:
            return self._dealer.Inventory(dealer_pb2.InventoryRequest(models=own), timeout=1.0)
        except (grpc.RpcError, CertificateError):  # the dealer's row of the status says why
            return None

    # Jobs ---------------------------------------------------------------------------------------

    def _connect_pair(self, number: int) -> Pair:
        pair = self._pairs.connect(number)
        connect(self._dealer_channel, "dealer", self._config.connect_timeout_s)
        return pair

    def StartJob(
        self, request: control_pb2.StartJobRequest, context: grpc.ServicerContext
    ) -> control_pb2.StartJobReply:
        with self._lock:
            run = next((run for run in self._runs.values() if run.job == request.job), None)
        if run is not None and run.client != str(caller(context)):
            raise NotAllowed("this job belongs to somebody else")
        if run is None or request.stage != run.stage:
            raise ClusterError("no such job waits for these inputs")
        run.ended = request.end
        run.started.set()
        return control_pb2.StartJobReply()

    def RunJob(
        self, request: control_pb2.RunJobRequest, context: grpc.ServicerContext
    ) -> Iterator[control_pb2.JobEvent]:
        """Run one job in its turn.

        What the client means is what is listed, is admitted, and no party objects: said before the job waits. The rest
        is in Driver.
        """
        client, plan = str(caller(context)), plan_of(request.plan)
        model = self._driver.meant(request, client)
        program = admit_job(model.description, plan, request.fingerprint, self._config, self._config.role)
        self._view.check(model, client)
        name = self._stock.name_for(model, plan, request.fingerprint)
        run = JobRun(name, {}, self._config.step_timeout_s, client)
        run.span = self._tracing.start(
            "job", self._traces.of(received(context), client), job=short(run.name), model=model.model,
            preset=parse(model.description).preset, batch=plan.batch, padded_length=plan.seq, tokens=plan.tokens,
        )  # fmt: skip
        reason, outcome = "the client ended the job", "cancelled"
        structlog.contextvars.bind_contextvars(job=short(run.name))
        log.info("job started", model=request.model, **vars(plan))
        with self._lock:
            self._runs[run.name] = run
        try:
            self._turns.enter(run.name, run.client, need_of(model.description, plan))
            if not context.add_callback(run.cancel):
                run.cancel()
            yield from self._driver.events(run, request, program, plan)
            if run.ended:
                run.close("")
            run.done = True
            reason, outcome = "", "done"
        except DittoError as error:
            if not run.cancelled.is_set():
                reason, outcome = str(error), error.code.lower()
                self._pairs.doubt(run.pair, error)
            raise
        except Exception:
            reason, outcome = "internal error", "internal"
            raise
        finally:
            if not run.done:
                run.done = True
                with contextlib.suppress(DittoError):
                    run.close(reason)
            beside = len(self._turns.state().running) - 1
            self._turns.leave(run.name)
            self._stock.leave(run.name)
            with self._lock:
                self._runs.pop(run.name, None)
            self._account.add(outcome, run.seconds, run.took, max(0, beside))
            self._ended(run, request.model, outcome, reason)

    def _ended(self, run: JobRun, model: str, outcome: str, reason: str) -> None:
        self.metrics.jobs.labels(outcome).inc()
        if outcome == "done":
            self.metrics.stocked.inc(run.stocked)
            for phase, seconds in run.seconds.items():
                self.metrics.seconds.labels(phase).observe(seconds)
        run.span.note(outcome=outcome, rounds=max((t.rounds for t in run.traffic), default=0))
        run.span.end("" if outcome == "done" else outcome.upper())
        counts = {
            f"{role}_{field.name}": value
            for role, traffic in zip(PARTIES, run.traffic, strict=False)
            for field, value in traffic.ListFields()
        }
        seconds_by_phase = {f"{phase}_seconds": round(seconds, 4) for phase, seconds in run.seconds.items()}
        # the job by name: a stream that its client left may be ended by another thread
        log.info(
            "job ended", job=short(run.job), model=model, outcome=outcome, reason=reason or None, stock=run.stocked,
            **seconds_by_phase, **counts,
        )  # fmt: skip

    def Deal(self, request: control_pb2.DealRequest, context: grpc.ServicerContext) -> Iterator[control_pb2.DealEvent]:
        """Lay down correlations of jobs to come, for who may ask the model. The first checks are RunJob's."""
        client, plan = str(caller(context)), plan_of(request.plan)
        model = self._driver.meant(request, client)
        admit_job(model.description, plan, request.fingerprint, self._config, self._config.role)
        self._view.check(model, client)
        meant = partial(self._driver.meant, request, client)
        yield from self._stock.deal(meant, plan, request.fingerprint, client, request.count, context)

    def close(self) -> None:
        self._stock.close()
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            run.cancel()
        self._pairs.close()
        self._dealer_channel.close()
