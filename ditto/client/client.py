"""The client's side: share a model, ask a question on shares, put the answer together."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import grpc
import torch

from ditto.client import ranges
from ditto.client.messages import ask_of, chunks, terms_of, whole
from ditto.client.progress import Progress
from ditto.client.publication import Registration, SharedModel
from ditto.client.report import Report
from ditto.client.sent import Sent
from ditto.client.status import activity
from ditto.engine.program import Program, Wire
from ditto.engine.sharing import answer_type, reveal, share
from ditto.errors import (
    BadCheckpoint,
    BadShare,
    DittoError,
    IntegrityError,
    JobMismatch,
    PeerAbsent,
    PeerLost,
    ReuseError,
    UnknownModel,
    UsageError,
)
from ditto.models import Description, Plan, parse
from ditto.models.compiled import program_for, weights_of
from ditto.names import PARTIES
from ditto.net.config import ClientConfig, Tls
from ditto.net.pools import Watchdog
from ditto.net.transport import connect, from_rpc_error, open_channel
from ditto.ring import unpack
from ditto.ring.prg import new_seed
from ditto.wall import Wall
from ditto.wire import control_pb2, control_pb2_grpc, party_pb2, party_pb2_grpc

Inputs = dict[str, torch.Tensor]  # ring integers by name
Outputs = dict[str, torch.Tensor]
RENEWALS = 5  # of a question whose model got another description meanwhile


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


@contextlib.contextmanager
def _calling(peer: str, running: bool = False) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer, running) from None


class Client:
    """Talks to the coordinator (control) and to both parties (shares). Use it as a context manager."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._channels = {
            role: open_channel(
                config.peers.of(role), role, config.tls, config.role, config.max_message_mb, config.silence_s
            )
            for role in ("coordinator", *PARTIES)
        }
        self._control = control_pb2_grpc.CoordinatorStub(self._channels["coordinator"])
        self._parties = [party_pb2_grpc.PartyStub(self._channels[role]) for role in PARTIES]
        self._pool = ThreadPoolExecutor(2)
        self._watchdog = Watchdog()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown(wait=False)
        for channel in self._channels.values():
            channel.close()

    def _within(self, seconds: float) -> float:
        """The deadline of a call that should take less than a step of a job."""
        return min(seconds, self._config.step_timeout_s)

    def _connect(self, *roles: str) -> None:
        for role in roles:
            connect(self._channels[role], role, self._config.connect_timeout_s)

    def reach(self) -> None:
        """Wait for the coordinator. Raises PeerAbsent."""
        self._connect("coordinator")

    # Models -------------------------------------------------------------------------------------

    def list_models(self) -> list[SharedModel]:
        """The shared models that the caller owns or may ask, by name."""
        self._connect("coordinator")
        found = [SharedModel(m.description, m.owner) for m in self._listed()]
        for model in found:
            parse(model.text)
        return found

    def _listed(self, page_size: int = 0) -> Iterator[control_pb2.Model]:
        token = ""
        while True:
            ask = control_pb2.ListModelsRequest(page_token=token, page_size=page_size)
            with _calling("coordinator"):
                reply = self._control.ListModels(ask, timeout=30)
            yield from reply.models
            if not (token := reply.next_page_token):
                return

    def get_model(self, name: str) -> Description:
        """The description of one shared model. Raises UnknownModel, NotAllowed."""
        return self.shared(name).description

    def shared(self, name: str) -> SharedModel:
        """The same, and whose it is, as the coordinator says. Raises IntegrityError where it gives another model's."""
        found = self._model(name)
        model = SharedModel(found.description, found.owner)
        if model.name != name:
            raise IntegrityError(f"asked for {name}, the coordinator gave {model.name}", peer="coordinator")
        return model

    def public_part(self, name: str) -> Iterator[control_pb2.PublicPiece]:
        """As it comes, nothing checked: `ditto.client.public.fetch` does. Raises ClusterError where there is none."""
        self._connect("coordinator")
        call = self._control.GetPublic(control_pb2.GetPublicRequest(model=name), timeout=self._config.step_timeout_s)
        try:
            with _calling("coordinator"):
                yield from call
        finally:
            call.cancel()

    @property
    def tls(self) -> Tls:
        return self._config.tls

    def _model(self, name: str) -> control_pb2.Model:
        self._connect("coordinator")
        with _calling("coordinator"):
            return self._control.GetModel(control_pb2.GetModelRequest(model=name), timeout=self._within(30))

    def share_model(
        self, description: Description, weights: dict[str, torch.Tensor], files: Mapping[str, bytes] | None = None
    ) -> None:
        """Split the encoded weights between the parties; the caller's model of the same name is replaced. `files` are
        the tokenizer's that the description means: with them, whoever is granted the model can ask it.

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
            self._share(registration, wires, weights)
        except ReuseError:  # it was activated by half, and its identifier is burnt
            self._share(registration, wires, weights)

    def _share(self, registration: Registration, wires: dict[str, Wire], weights: dict[str, torch.Tensor]) -> None:
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
            for key, wire in wires.items():
                for chunk in chunks(key, wire, share(key, weights[key], wire, seed)):
                    yield party_pb2.PutModelRequest(chunk=chunk)

        self._connect("coordinator", *PARTIES)
        drop = party_pb2.RemoveModelRequest(model=name, only=share_id)
        # 1
        try:
            for role, stub, requests in zip(PARTIES, self._parties, (seeded, packed), strict=True):
                with _calling(role):
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
            with _calling("coordinator", running=True):
                self._control.RegisterModel(requests(), timeout=1800)
        except PeerLost as error:
            if error.peer != "coordinator":
                raise
            self._connect("coordinator")
            with _calling("coordinator", running=True):
                self._control.RegisterModel(requests(), timeout=1800)

    def _remove(self, request: party_pb2.RemoveModelRequest) -> int:
        """At both parties, also when one fails; how many sharings there were. Raises the first party's error."""
        calls = [stub.RemoveModel.future(request, timeout=60) for stub in self._parties]
        for call in calls:
            call.exception()
        removed = 0
        for role, call in zip(PARTIES, calls, strict=True):
            with _calling(role):
                removed += call.result().removed
        return removed

    def remove_model(self, name: str) -> None:
        """Have both parties, and through them the dealer, forget a model, then the coordinator. Can be repeated after
        a failure. Raises UnknownModel, NotAllowed for another's."""
        self._connect("coordinator", *PARTIES)
        removed = self._remove(party_pb2.RemoveModelRequest(model=name))
        with _calling("coordinator"):
            reply = self._control.UnregisterModel(control_pb2.UnregisterModelRequest(model=name), timeout=30)
        if not removed and not reply.known:
            raise UnknownModel(f"no model {name!r} is shared")

    def grant_model(self, name: str, to: str, revoke: bool = False) -> None:
        """Let another client, by its certificate's name, ask a model; or, with `revoke`, no longer. At both parties, by
        themselves: the coordinator has no say. Raises UnknownModel, NotAllowed for another's."""
        self._connect(*PARTIES)
        request = party_pb2.GrantModelRequest(model=name, to=to, revoke=revoke)
        for role, stub in zip(PARTIES, self._parties, strict=True):
            with _calling(role):
                stub.GrantModel(request, timeout=30)

    def status(self) -> dict[str, Any]:
        self._connect("coordinator")
        with _calling("coordinator"):
            reply = self._control.Status(control_pb2.StatusRequest(), timeout=30)
        processes = [
            {"role": p.role, "address": p.address, "serving": p.serving, "error": p.error} for p in reply.processes
        ]
        return {"processes": processes, "queued": reply.queued, "running": reply.running} | activity(reply)

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
    ) -> InferResult:
        """Run one job. `inputs` encodes the question for the compiled program; `on_event` follows the layers; with
        `guard` the report says whether values left their calibrated ranges. `meant` and `sent` as in `run`."""
        plan = Plan(batch, seq, guard=guard)
        return self.run(model, plan, lambda stage, program, before: inputs(program), on_event, meant, sent)

    def run(
        self,
        model: str,
        plan: Plan,
        inputs: Callable[[int, Program, Outputs], Inputs | None],
        on_event: Callable[[dict[str, Any]], None] | None = None,
        meant: Description | None = None,
        sent: Sent | None = None,
    ) -> InferResult:
        """Run one job stage by stage. `inputs` encodes a stage's question, from the outputs of the stage before (none
        for the first); None ends the job early. The result holds the last outputs; `on_event` follows the layers.

        The model may be shared again before the job begins. If its description is another one then, the question is
        encoded anew and the job waits anew, RENEWALS times at most; JobMismatch after that, or if the owner is another.
        Whose question was made for one description names it as `meant`: JobMismatch for any other. `sent` notes what
        each party is sent of the question.
        """
        found, left = self._model(model), RENEWALS
        while True:
            if meant is not None and parse(found.description) != meant:
                raise JobMismatch(f"{model} was shared again, as another version, since it was looked up: ask again")
            try:
                return self._run(found, plan, inputs, on_event, sent)
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
        sent: Sent | None,
    ) -> InferResult:
        wall = Wall()
        plan = replace(plan, hold_mb=found.hold_mb or plan.hold_mb)  # as the servers are configured
        program = program_for(found.description, plan)
        wall.lap("program")
        encoded = inputs(0, program, {})
        if encoded is None:
            raise UsageError("nothing to ask")
        wall.lap("sharing")
        self._connect(*PARTIES)
        wall.lap("connection")
        terms = terms_of(found, plan, program)
        call = self._control.RunJob(ask_of(terms))
        progress = Progress(len(program.layers), plan.stages)
        report, job, marks = Report(), "", list[str]()
        outputs: Outputs = {}
        try:
            with _calling("coordinator", running=True):
                for message in self._events(call):
                    progress.check(message)
                    kind = message.WhichOneof("event")
                    event: dict[str, Any] = {"event": kind}
                    if kind == "accepted":
                        wall.lap("queue")
                        job, terms.share_id = message.accepted.job, message.accepted.share_id
                        event |= {"job": job, "layers": list(message.accepted.layers)}
                        self._start(job, terms, 0, program, encoded, sent)
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
                        outputs = self._fetch(job, stage, program)
                        wall.lap("reveal")
                        marks += ranges.take_marks(program, outputs, stage)
                        if stage + 1 < plan.stages:
                            # all later stages take and give the same types
                            program = program_for(found.description, plan, 1)
                            asked = inputs(stage + 1, program, outputs)
                            progress.ended = asked is None
                            self._start(job, terms, stage + 1, program, asked, sent)
                            wall.lap("sharing")
                    elif kind == "done":
                        wall.lap("coordination")
                        report.finish(message.done)
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

    def _events(self, call: Any) -> Iterator[control_pb2.JobEvent]:
        """What the coordinator says of a job. It says something in every step, and while the job waits in the queue:
        PeerLost when it does not."""
        longest = self._config.step_timeout_s + self._config.connect_timeout_s
        while True:
            try:
                with self._watchdog.within(longest, call):
                    message = next(call, None)
            except grpc.RpcError as error:
                if "Locally cancelled" not in (getattr(error, "details", lambda: "")() or ""):
                    raise
                raise PeerLost(f"coordinator said nothing for {longest:g} s", peer="coordinator") from None
            if message is None:
                return
            yield message

    def _start(
        self, job: str, terms: party_pb2.JobTerms, stage: int, program: Program, inputs: Inputs | None,
        sent: Sent | None,
    ) -> None:  # fmt: skip
        """Bring a stage's inputs, or end the job before it."""
        if inputs is not None:
            self._upload(job, terms, stage, program, inputs, sent)
        request = control_pb2.StartJobRequest(job=job, stage=stage, end=inputs is None)
        self._control.StartJob(request, timeout=self._within(30))

    def _upload(
        self, job: str, terms: party_pb2.JobTerms, stage: int, program: Program, inputs: Inputs, sent: Sent | None
    ) -> None:
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
                with _calling(PARTIES[party], running=True):
                    self._parties[party].PutInput(noted, timeout=self._within(120))

        list(self._pool.map(send, (0, 1)))

    def _fetch(self, job: str, stage: int, program: Program) -> Outputs:
        def fetch(party: int, name: str, wire: Wire) -> torch.Tensor:
            with _calling(PARTIES[party], running=True):
                request = party_pb2.FetchOutputRequest(job=job, name=name, stage=stage)
                data = whole(self._parties[party].FetchOutput(request, timeout=self._within(120)), name, wire, party)
            return unpack(data, wire.ring, tuple(wire.shape))

        outputs = {}
        for name, wire in ((name, answer_type(wire)) for name, wire in program.outputs.items()):
            first, second = self._pool.map(fetch, (0, 1), (name, name), (wire, wire))
            outputs[name] = reveal((first, second), wire)
        return outputs
