"""The client's side: share a model, ask a question on shares, put the answer together."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import grpc
import torch

from ditto.client import ranges
from ditto.client.flight import MOST, Ending
from ditto.client.manager import Manager, calling
from ditto.client.messages import ask_of, chunks, deal_of, terms_of, whole
from ditto.client.progress import Progress
from ditto.client.publication import Registration
from ditto.client.report import Report
from ditto.client.sent import Sent
from ditto.engine.program import Program, Wire
from ditto.engine.sharing import answer_type, reveal, share
from ditto.errors import (
    BadCheckpoint,
    BadShare,
    ClusterError,
    DittoError,
    JobMismatch,
    PeerAbsent,
    PeerLost,
    ReuseError,
    UsageError,
)
from ditto.models import Description, Plan, parse
from ditto.models.compiled import program_for, weights_of
from ditto.names import PARTIES
from ditto.net.config import ClientConfig
from ditto.net.pools import Watchdog
from ditto.net.telemetry import tracing_of
from ditto.net.tracing import Span
from ditto.net.transport import short
from ditto.ring import unpack
from ditto.ring.prg import new_seed
from ditto.wall import Wall
from ditto.wire import control_pb2, party_pb2, party_pb2_grpc

Inputs = dict[str, torch.Tensor]  # ring integers by name
Outputs = dict[str, torch.Tensor]
Parties = list[party_pb2_grpc.PartyStub]  # those workers that run the job
PATIENCE = 3.0  # seconds, for why a job ended
RENEWALS = 5  # of a question whose model got another description meanwhile


def _cancelled_here(error: grpc.RpcError) -> bool:
    """Has this client's watchdog ended the call?"""
    return "Locally cancelled" in (getattr(error, "details", lambda: "")() or "")


@dataclass
class InferResult:
    """Reconstructed outputs as signed int64, and what the job cost, in all, by layer and by operation.

    `report["parts"]` are the seconds of `wall_seconds` by what the client did or waited for (`ditto.wall`);
    `report["owner"]` is whose model answered; both parties have checked it against their own records. It also
    says whether all values stayed in their calibrated ranges (`in_range`, null where the plan has no guard), and where
    not (`out_of_range_layers`).
    """

    outputs: dict[str, torch.Tensor]
    report: dict[str, Any]


class Client(Manager):
    """Also brings shares to both parties, and takes theirs. A context manager."""

    def __init__(self, config: ClientConfig, *, in_turns: bool = False) -> None:
        """`in_turns`: jobs prepare a layer, run it, and so on, instead of preparing the next while one runs. They take
        longer, and their phases' seconds are those that each takes by itself."""
        super().__init__(config)
        self._in_turns, self._tracing = in_turns, tracing_of(config)
        # Inputs go out one job after another: of two at once each would take the other's time, and be late.
        self._pool = ThreadPoolExecutor(2)
        self._fetching = ThreadPoolExecutor(2 * MOST)  # answers do not wait for inputs
        self._watchdog = Watchdog()

    def close(self) -> None:
        for pool in (self._pool, self._fetching):
            pool.shutdown(wait=False)
        super().close()
        self._tracing.close()

    def reach(self) -> None:
        """Wait for the coordinator. Raises PeerAbsent."""
        self._connect("coordinator")

    # Models -------------------------------------------------------------------------------------

    def share_model(
        self, description: Description, weights: dict[str, torch.Tensor], files: Mapping[str, bytes] | None = None,
        sent: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:  # fmt: skip
        """Split the encoded weights between the parties; the caller's model of the same name is replaced. `files` are
        the tokenizer's that the description means: with them, whoever is granted the model can ask it. `sent` hears of
        how many bytes are under way, of how many; then the parties open the masked weights.

        1. Each party gets its share, and with it notes the caller as the owner. If one refuses, the other drops its
           share again. Raises NotAllowed where the name is another's.
        2. The coordinator has the parties activate the sharing, which serves the name from then on.
        3. The parties drop the older sharings of the name, which nobody but their owner can ask for.

        Can be repeated after any failure; whatever is left of the earlier attempts goes with step 3. Jobs that wait run
        on the sharing that serves when their turn comes.
        """
        registration = Registration.of(description, files or {}, self.tls)
        wires = weights_of(registration.text)
        for key, wire in wires.items():
            if key not in weights or tuple(weights[key].shape) != tuple(wire.shape):
                raise BadCheckpoint(f"weight {key} of shape {tuple(wire.shape)} is missing or misshapen")
        try:
            self._share(registration, wires, weights, sent)
        except ReuseError:  # it was activated by half, and its identifier is burnt
            self._share(registration, wires, weights, sent)

    def _share(
        self, registration: Registration, wires: dict[str, Wire], weights: dict[str, torch.Tensor],
        sent: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        text, name = registration.text, registration.name
        share_id, seed = secrets.token_hex(16), new_seed()
        header = party_pb2.ModelHeader(model=name, share_id=share_id, description=text)

        def seeded() -> Iterator[party_pb2.PutModelRequest]:
            only = party_pb2.ModelHeader()
            only.CopyFrom(header)
            only.seed = seed
            yield party_pb2.PutModelRequest(header=only)

        def packed() -> Iterator[party_pb2.PutModelRequest]:
            yield party_pb2.PutModelRequest(header=header)
            done, of = 0, sum(wire.nbytes for wire in wires.values())
            for key, wire in wires.items():
                for chunk in chunks(key, wire, share(key, weights[key], wire, seed)):
                    yield party_pb2.PutModelRequest(chunk=chunk)
                    done += len(chunk.data)
                    sent(done, of)

        self._connect("coordinator", *PARTIES)
        drop = party_pb2.RemoveModelRequest(model=name, only=share_id)
        # 1
        try:
            for role, stub, requests in zip(PARTIES, self._parties, (seeded, packed), strict=True):
                with calling(role):
                    stub.PutModel(requests(), timeout=1800)
        except BaseException:
            with contextlib.suppress(DittoError):
                self._remove(drop)
            raise
        # 2
        try:
            self._register(lambda: registration.requests(share_id))
        except DittoError as error:
            # without the coordinator's word it may be what serves now; the next sharing replaces it then
            if error.peer != "coordinator" or not isinstance(error, PeerAbsent | PeerLost):
                with contextlib.suppress(DittoError):
                    self._remove(drop)
            raise
        # 3
        self._remove(party_pb2.RemoveModelRequest(model=name, keep=share_id))

    def _register(self, requests: Callable[[], Iterator[control_pb2.RegisterModelRequest]]) -> None:
        """Have a sharing activated; once more if the coordinator was lost, which may have had it done."""
        try:
            with calling("coordinator", running=True):
                self._control.RegisterModel(requests(), timeout=1800)
        except PeerLost as error:
            if error.peer != "coordinator":
                raise
            self._connect("coordinator")
            with calling("coordinator", running=True):
                self._control.RegisterModel(requests(), timeout=1800)

    # Inference ----------------------------------------------------------------------------------

    def infer(
        self,
        model: str,
        inputs: Callable[[Program], Inputs],
        batch: int,
        seq: int,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        guard: bool = False,
        meant: Description | None = None,
        sent: Sent | None = None,
        ending: Ending | None = None,
    ) -> InferResult:
        """Run one job. `inputs` encodes the question for the compiled program; `on_event` follows the layers; with
        `guard` the report says whether values left their calibrated ranges. `meant`, `sent` and `ending` as in
        `run`."""
        plan = Plan(batch, seq, guard=guard)
        return self.run(model, plan, lambda stage, program, before: inputs(program), on_event, meant, sent, ending)

    def run(
        self,
        model: str,
        plan: Plan,
        inputs: Callable[[int, Program, Outputs], Inputs | None],
        on_event: Callable[[dict[str, Any]], None] | None = None,
        meant: Description | None = None,
        sent: Sent | None = None,
        ending: Ending | None = None,
    ) -> InferResult:
        """Run one job stage by stage. `inputs` encodes a stage's question, from the outputs of the stage before (none
        for the first); None ends the job early. The result holds the last outputs; `on_event` follows the layers.

        The model may be shared again before the job begins. If its description is another one then, the question is
        encoded anew and the job waits anew, RENEWALS times at most; JobMismatch after that, or if the owner is another.
        Whose question was made for one description names it as `meant`: JobMismatch for any other. `sent` notes what
        each party is sent of the question. Jobs may run in several threads at once; another thread ends this one by
        `ending`: what is raised then is of no meaning.
        """
        ending = ending or Ending()
        found, left = self._model(model), RENEWALS
        while True:
            ending.check()
            if meant is not None and parse(found.description) != meant:
                raise JobMismatch(f"{model} was shared again, as another version, since it was looked up: ask again")
            about = parse(found.description)
            span = self._tracing.start(
                "ask", model=found.model, preset=about.preset, batch=plan.batch, padded_length=plan.seq,
                tokens=plan.tokens,
            )  # fmt: skip
            try:
                with span:
                    return self._run(found, plan, inputs, on_event, span, sent, ending)
            except JobMismatch as error:
                fresh = self._model(model)
                if error.peer != "coordinator" or fresh.owner != found.owner or not left:
                    raise
                found, left = fresh, left - 1

    def _run(
        self,
        found: control_pb2.Model,
        plan: Plan,
        inputs: Callable[[int, Program, Outputs], Inputs | None],
        on_event: Callable[[dict[str, Any]], None] | None,
        span: Span,
        sent: Sent | None,
        ending: Ending,
    ) -> InferResult:
        wall = Wall()
        plan = replace(plan, hold_mb=found.hold_mb or plan.hold_mb)  # as the servers are configured
        program = program_for(found.description, plan)
        wall.lap("program")
        with span.child("encode"):
            encoded = inputs(0, program, {})
        if encoded is None:
            raise UsageError("nothing to ask")
        wall.lap("sharing")
        self._connect(*PARTIES)
        wall.lap("connection")
        terms = terms_of(found, plan, program)
        call = self._control.RunJob(ask_of(terms, self._in_turns), **span.carried)
        ending.on(call.cancel)
        progress = Progress(len(program.layers), plan.stages)
        report, job, marks, parties = Report(), "", list[str](), self._parties
        outputs: Outputs = {}
        try:
            with calling("coordinator", running=True):
                for message in self._events(call):
                    progress.check(message)
                    kind = message.WhichOneof("event")
                    event: dict[str, Any] = {"event": kind}
                    if kind == "accepted":
                        wall.lap("queue")
                        job, terms.share_id = message.accepted.job, message.accepted.share_id
                        report.stock = message.accepted.stock
                        event |= {"job": job, "worker": message.accepted.worker}
                        event |= {"layers": list(message.accepted.layers), "stock": report.stock}
                        span.note(job=short(job))
                        with span.child("send inputs", stage=0), self._told(call):
                            parties = self._pair(message.accepted)
                            self._start(job, terms, 0, program, encoded, sent, parties, ending)
                        wall.lap("sharing")
                    elif kind == "queued":
                        event["position"] = message.queued.position
                        wall.lap("queue")
                    elif kind == "layer":
                        event |= report.add(message.layer)
                        wall.lap_of({event["phase"]: message.layer.seconds}, "coordination")
                    elif kind == "stage":
                        event["stage"] = stage = message.stage.stage
                        wall.lap("coordination")
                        with span.child("reveal", stage=stage):
                            outputs = self._fetch(job, stage, program, parties)
                        wall.lap("reveal")
                        marks += ranges.take_marks(program, outputs, stage)
                        if stage + 1 < plan.stages:
                            # all later stages take and give the same types
                            program = program_for(found.description, plan, 1)
                            asked = inputs(stage + 1, program, outputs)
                            progress.ended = asked is None
                            with span.child("send inputs", stage=stage + 1), self._told(call):
                                self._start(job, terms, stage + 1, program, asked, sent, parties, ending)
                            wall.lap("sharing")
                    elif kind == "done":
                        wall.lap("coordination")
                        report.finish(message.done)
                        span.note(rounds=report.total.online.rounds)
                        event["seconds"] = report.seconds
                    if on_event is not None:
                        on_event(event)
            progress.check_end()
        finally:
            call.cancel()
        spent = wall.document()
        result = report.to_json() | {"job": job, "owner": found.owner}
        result |= {"wall_seconds": spent["seconds"], "parts": spent["parts"]}
        result |= ranges.fields(plan.guard, marks)
        return InferResult(outputs, result)

    def deal(
        self, model: str, plan: Plan, count: int, on_laid: Callable[[dict[str, Any]], None] = lambda laid: None
    ) -> dict[str, Any]:
        """Have the correlations of `count` jobs of this plan dealt now, for jobs to come of whoever may ask the model.
        `on_laid` hears of each; how many there are now, and what they took. What is laid down stays if it is ended.

        Raises LimitExceeded where a party has no more room, or this client has laid down as much as it may."""
        found = self._model(model)
        plan = replace(plan, hold_mb=found.hold_mb or plan.hold_mb)
        call = self._control.Deal(deal_of(terms_of(found, plan, program_for(found.description, plan)), count))
        laid: dict[str, Any] = {"done": 0, "bytes": [0, 0], "seconds": 0.0}
        try:
            with calling("coordinator", running=True):
                for event in self._events(call):
                    if event.HasField("laid"):
                        each = event.laid
                        laid["done"] = each.done
                        laid["bytes"] = [a + b for a, b in zip(laid["bytes"], each.bytes, strict=False)]
                        laid["seconds"] += each.seconds
                        on_laid(laid)
        finally:
            call.cancel()
        return laid

    def _events(self, call: Any) -> Iterator[Any]:
        """What the coordinator says of a job. It says something in every step, and while the job waits in the queue:
        PeerLost when it does not."""
        longest = self._config.step_timeout_s + self._config.connect_timeout_s
        while True:
            try:
                with self._watchdog.within(longest, call):
                    message = next(call, None)
            except grpc.RpcError as error:
                if not _cancelled_here(error):
                    raise
                raise PeerLost(f"coordinator said nothing for {longest:g} s", peer="coordinator") from None
            if message is None:
                return
            yield message

    @contextlib.contextmanager
    def _told(self, call: Any) -> Iterator[None]:
        """A party says no more than that it has no such job: why, the coordinator may say, which ended it."""
        try:
            yield
        except ClusterError as error:
            try:
                with self._watchdog.within(PATIENCE, call):
                    for _ in call:
                        pass
            except grpc.RpcError as other:
                if not _cancelled_here(other):
                    raise
            raise error from None

    def _start(
        self, job: str, terms: party_pb2.JobTerms, stage: int, program: Program, inputs: Inputs | None,
        sent: Sent | None = None, parties: Parties | None = None, ending: Ending | None = None,
    ) -> None:  # fmt: skip
        """Bring a stage's inputs, or end the job before it."""
        if inputs is not None:
            self._upload(job, terms, stage, program, inputs, sent, parties or self._parties, ending or Ending())
        request = control_pb2.StartJobRequest(job=job, stage=stage, end=inputs is None)
        self._control.StartJob(request, timeout=self._within(30))

    def _upload(
        self, job: str, terms: party_pb2.JobTerms, stage: int, program: Program, inputs: Inputs, sent: Sent | None,
        parties: Parties, ending: Ending,
    ) -> None:  # fmt: skip
        missing = program.inputs.keys() ^ inputs.keys()
        if missing:
            raise BadShare(f"inputs do not match the program: {', '.join(sorted(missing))}")
        seed = new_seed()
        shares = {name: share(name, inputs[name], wire, seed) for name, wire in program.inputs.items()}
        if sent is not None:
            sent.begin(stage, terms, program.inputs)

        def requests(party: int, name: str, wire: Wire) -> Iterator[party_pb2.PutInputRequest]:
            header = party_pb2.InputHeader(
                job=job, name=name, ring=wire.ring, shape=list(wire.shape), stage=stage, terms=terms
            )
            if party == 0:
                header.seed = seed
            yield party_pb2.PutInputRequest(header=header)
            if party == 1:
                for chunk in chunks(name, wire, shares[name]):
                    yield party_pb2.PutInputRequest(chunk=chunk)

        def send(party: int) -> None:
            for name, wire in program.inputs.items():
                messages = requests(party, name, wire)
                noted = sent.noting(party, messages) if sent is not None else messages
                with calling(PARTIES[party], running=True):
                    ending.check()
                    call = parties[party].PutInput.future(noted, timeout=self._within(120))
                    ending.on(call.cancel)
                    call.result()

        list(self._pool.map(send, (0, 1)))

    def _fetch(self, job: str, stage: int, program: Program, parties: Parties) -> Outputs:
        def fetch(party: int, name: str, wire: Wire) -> torch.Tensor:
            with calling(PARTIES[party], running=True):
                request = party_pb2.FetchOutputRequest(job=job, name=name, stage=stage)
                data = whole(parties[party].FetchOutput(request, timeout=self._within(120)), name, wire, party)
            return unpack(data, wire.ring, tuple(wire.shape))

        outputs = {}
        for name, wire in ((name, answer_type(wire)) for name, wire in program.outputs.items()):
            first, second = self._fetching.map(fetch, (0, 1), (name, name), (wire, wire))
            outputs[name] = reveal((first, second), wire)
        return outputs
