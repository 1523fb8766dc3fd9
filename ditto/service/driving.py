"""A job from its turn to its end: what the coordinator asks of both parties, and what the client hears of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import structlog

from ditto.engine.ledger import Phase
from ditto.engine.program import Program
from ditto.models import Plan
from ditto.models.description import digest_of
from ditto.names import PARTIES
from ditto.net.config import CoordinatorConfig
from ditto.net.messages import check_reply, phase_to_message, to_message
from ditto.service.ahead import Preparing, Work, works_of
from ditto.service.job_run import JobRun
from ditto.service.pairs import Pair
from ditto.service.registered import Registered, RegisteredModels
from ditto.service.stock_keeper import StockKeeper
from ditto.service.turns import Turns
from ditto.wire import control_pb2, party_pb2

Events = Iterator[control_pb2.JobEvent]


class Driver:
    """Drives jobs, each on the pair of workers that its turn gave it, in the thread of its call."""

    def __init__(
        self, config: CoordinatorConfig, turns: Turns, models: RegisteredModels, connect: Callable[[int], Pair],
        stock: StockKeeper,
    ) -> None:  # fmt: skip
        """`connect`: make sure that this pair and the dealer answer. Raises PeerAbsent."""
        self._config, self._turns, self._models, self._connect, self._stock = config, turns, models, connect, stock

    def meant(self, request: control_pb2.RunJobRequest | control_pb2.DealRequest, client: str) -> Registered:
        """The sharing that serves now, if it is what a client means. Raises UnknownModel, JobMismatch."""
        model = self._models.get(request.model, client)
        model.check_meant(request.owner, request.description_digest)
        return model

    def events(self, run: JobRun, request: control_pb2.RunJobRequest, program: Program, plan: Plan) -> Events:
        """All that happens to a job that has asked for its turn.

        1. Its turn.
        2. The sharing that serves the model now is taken: a later one than when the job asked, perhaps, but of the same
           owner and with the same description, or the job ends with JobMismatch. Both parties open the job on it; from
           then on it takes nothing away from the job that another one is activated, or that this one is dropped.
        3. The client is told which it is: its inputs name it, so that each party checks it against its own.
        """
        # 1
        with run.span.child("queue"):
            for place in run.places(self._turns, self._config.step_timeout_s):
                yield control_pb2.JobEvent(queued=control_pb2.Queued(position=place))
        pair = run.pair = self._turns.pair(run.name)
        workers = self._connect(pair)
        run.stubs, run.where = workers.stubs, workers.where
        # 2
        with self._models.opening(request.model, run.client) as model:
            model.check_meant(request.owner, request.description_digest)
            ask = party_pb2.OpenJobRequest(
                job=run.name, model=model.model, share_id=model.share_id,
                plan=to_message(plan), fingerprint=request.fingerprint, client=run.client,
                description_digest=digest_of(model.description),
            )  # fmt: skip
            with run.span.child("open"):
                self._stock.open(run, ask)
        run.begun = True
        # 3
        accepted = control_pb2.Accepted(
            job=run.job, layers=program.layers, share_id=model.share_id, worker=pair, addresses=workers.addresses,
            stock=run.stocked,
        )  # fmt: skip
        yield control_pb2.JobEvent(accepted=accepted)
        self._await_client(run)
        yield from self._work(run, works_of(run.job, model.description, plan), 0 if request.in_turns else plan.hold)

    def _work(self, run: JobRun, works: Sequence[Work], hold: int) -> Events:
        """Prepare one piece of work after another, and run it; the next is prepared meanwhile.

        1. A later stage waits for its inputs. It is prepared by then, or while the client makes up its mind.
        2. The client may want no further one.
        """
        start, stage = time.perf_counter(), 0
        prepare: Callable[[Work], control_pb2.JobEvent] = lambda work: self._step(run, work, "offline")  # noqa: E731
        with Preparing(works, hold, prepare, run.break_off) as preparing:
            for work in works:
                if work.stage != stage:
                    # 1
                    run.stage = work.stage
                    run.started.clear()
                    yield control_pb2.JobEvent(stage=control_pb2.StageDone(stage=stage))
                    stage, prepared = work.stage, preparing.take()
                    self._await_client(run)
                    # 2
                    if run.ended:
                        break
                else:
                    prepared = preparing.take()
                yield prepared
                with preparing.running():
                    done = self._step(run, work, "online")
                yield done
            else:
                yield control_pb2.JobEvent(stage=control_pb2.StageDone(stage=stage))
        run.took = time.perf_counter() - start
        yield control_pb2.JobEvent(done=control_pb2.Done(seconds=run.took, traffic=run.traffic))

    def _await_client(self, run: JobRun) -> None:
        config = self._config
        with run.span.child("wait for inputs", stage=run.stage):
            run.await_client(self._turns, config.give_way_s, config.start_timeout_s, config.idle_timeout_s)

    def _step(self, run: JobRun, work: Work, phase: Phase) -> control_pb2.JobEvent:
        """One phase of a piece of work at both parties. Raises what failed, and DittoError for a reply that does not
        say what the step cost."""
        step = work.request
        with (
            structlog.contextvars.bound_contextvars(layer=work.layer),
            run.span.child(f"{phase} {work.name}", phase=phase, layer=work.layer, stage=work.stage) as span,
        ):
            if phase == "offline":
                replies = run.both(lambda stub, timeout: stub.Prepare.future(step, timeout=timeout, **span.carried))
            else:
                replies = run.both(lambda stub, timeout: stub.Run.future(step, timeout=timeout, **span.carried))
        for role, reply in zip(PARTIES, replies, strict=True):
            check_reply(reply, phase, role)
        seconds = max(reply.seconds for reply in replies)
        run.seconds[phase] += seconds
        run.traffic = [reply.traffic for reply in replies]
        done = control_pb2.LayerDone(
            layer=work.layer, name=work.name, phase=phase_to_message(phase), stage=work.stage, seconds=seconds,
            ledgers=[reply.ledger for reply in replies],
            times=[reply.times for reply in replies if reply.HasField("times")],
        )  # fmt: skip
        return control_pb2.JobEvent(layer=done)
