"""The client's side: share a model, ask a question on shares, put the answer together."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import torch

from ditto.client import ranges
from ditto.client.report import Report
from ditto.client.status import activity
from ditto.engine.program import Program, Wire
from ditto.engine.sharing import reveal, share
from ditto.errors import BadCheckpoint, BadShare, DittoError, UsageError
from ditto.models import Description, Plan, parse
from ditto.models.compiled import program_for, weights_of
from ditto.names import PARTIES
from ditto.net.config import ClientConfig
from ditto.net.messages import to_message
from ditto.net.transport import CHUNK, connect, from_rpc_error, open_channel
from ditto.ring import pack, unpack
from ditto.ring.prg import new_seed
from ditto.wire import control_pb2, control_pb2_grpc, party_pb2, party_pb2_grpc

Inputs = dict[str, torch.Tensor]  # ring integers by name
Outputs = dict[str, torch.Tensor]


@dataclass
class InferResult:
    """Reconstructed outputs as signed int64, and what the job cost, in all, by layer and by operation.

    The report says, too, whether all values stayed in their calibrated ranges (`in_range`, null where the plan has no
    guard), and where not (`out_of_range_layers`).
    """

    outputs: dict[str, torch.Tensor]
    report: dict[str, Any]


@contextlib.contextmanager
def _calling(peer: str, running: bool = False) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer, running) from None


def _chunks(name: str, wire: Wire, share: torch.Tensor) -> Iterator[party_pb2.TensorChunk]:
    data = pack(share, wire.ring)
    for offset in range(0, len(data) or 1, CHUNK):
        yield party_pb2.TensorChunk(
            name=name, ring=wire.ring, shape=list(wire.shape), offset=offset, total=len(data),
            data=data[offset : offset + CHUNK],
        )  # fmt: skip


class Client:
    """Talks to the coordinator (control) and to both parties (shares). Use it as a context manager."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._channels = {
            role: open_channel(config.peers.of(role), role, config.tls, config.role, config.max_message_mb)
            for role in ("coordinator", *PARTIES)
        }
        self._control = control_pb2_grpc.CoordinatorStub(self._channels["coordinator"])
        self._parties = [party_pb2_grpc.PartyStub(self._channels[role]) for role in PARTIES]
        self._pool = ThreadPoolExecutor(2)

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

    def _connect(self, *roles: str) -> None:
        for role in roles:
            connect(self._channels[role], role, self._config.connect_timeout_s)

    # Models -------------------------------------------------------------------------------------

    def list_models(self) -> list[Description]:
        """The descriptions of the shared models."""
        self._connect("coordinator")
        with _calling("coordinator"):
            reply = self._control.ListModels(control_pb2.ListModelsRequest(), timeout=30)
        return [parse(m.description) for m in reply.models]

    def get_model(self, name: str) -> Description:
        """The description of one shared model. Raises UnknownModel."""
        return parse(self._model(name).description)

    def _model(self, name: str) -> control_pb2.Model:
        self._connect("coordinator")
        with _calling("coordinator"):
            return self._control.GetModel(control_pb2.GetModelRequest(model=name), timeout=30)

    def share_model(self, description: Description, weights: dict[str, torch.Tensor]) -> None:
        """Split the encoded weights between the parties; a model of the same name is replaced."""
        text, name = description.text(), description.name
        wires = weights_of(text)
        for key, wire in wires.items():
            if key not in weights or tuple(weights[key].shape) != tuple(wire.shape):
                raise BadCheckpoint(f"weight {key} of shape {tuple(wire.shape)} is missing or misshapen")
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
                for chunk in _chunks(key, wire, share(key, weights[key], wire, seed)):
                    yield party_pb2.PutModelRequest(chunk=chunk)

        self._connect("coordinator", *PARTIES)
        for role, stub, requests in zip(PARTIES, self._parties, (seeded, packed), strict=True):
            with _calling(role):
                stub.PutModel(requests(), timeout=1800)
        model = control_pb2.Model(model=name, share_id=share_id, description=text)
        with _calling("coordinator"):
            self._control.RegisterModel(control_pb2.RegisterModelRequest(model=model), timeout=1800)

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
    ) -> InferResult:
        """Run one job. `inputs` encodes the question for the compiled program; `on_event` follows the layers; with
        `guard` the report says whether values left their calibrated ranges."""
        return self.run(model, Plan(batch, seq, guard=guard), lambda stage, program, before: inputs(program), on_event)

    def run(
        self,
        model: str,
        plan: Plan,
        inputs: Callable[[int, Program, Outputs], Inputs | None],
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> InferResult:
        """Run one job stage by stage. `inputs` encodes a stage's question, from the outputs of the stage before (none
        for the first); None ends the job early. The result holds the last outputs; `on_event` follows the layers."""
        found = self._model(model)
        program = program_for(found.description, plan)
        encoded = inputs(0, program, {})
        if encoded is None:
            raise UsageError("nothing to ask")
        self._connect(*PARTIES)
        started = time.perf_counter()
        request = control_pb2.RunJobRequest(
            model=model, share_id=found.share_id, plan=to_message(plan), fingerprint=program.fingerprint
        )
        call = self._control.RunJob(request)
        report, job, marks = Report(), "", list[str]()
        outputs: Outputs = {}
        try:
            with _calling("coordinator", running=True):
                for message in call:
                    kind = message.WhichOneof("event")
                    event: dict[str, Any] = {"event": kind}
                    if kind == "accepted":
                        job = message.accepted.job
                        event |= {"job": job, "layers": list(message.accepted.layers)}
                        self._start(job, 0, program, encoded)
                    elif kind == "queued":
                        event["position"] = message.queued.position
                    elif kind == "layer":
                        event |= report.add(message.layer)
                    elif kind == "stage":
                        event["stage"] = stage = message.stage.stage
                        outputs = self._fetch(job, stage, program)
                        marks += ranges.take_marks(program, outputs, stage)
                        if stage + 1 < plan.stages:
                            # all later stages take and give the same types
                            program = program_for(found.description, plan, 1)
                            self._start(job, stage + 1, program, inputs(stage + 1, program, outputs))
                    elif kind == "done":
                        report.finish(message.done)
                        event["seconds"] = report.seconds
                    if on_event is not None:
                        on_event(event)
        finally:
            call.cancel()
        result = report.to_json()
        result |= {"job": job, "wall_seconds": time.perf_counter() - started} | ranges.fields(plan.guard, marks)
        return InferResult(outputs, result)

    def _start(self, job: str, stage: int, program: Program, inputs: Inputs | None) -> None:
        """Bring a stage's inputs, or end the job before it."""
        if inputs is not None:
            self._upload(job, stage, program, inputs)
        request = control_pb2.StartJobRequest(job=job, stage=stage, end=inputs is None)
        self._control.StartJob(request, timeout=30)

    def _upload(self, job: str, stage: int, program: Program, inputs: Inputs) -> None:
        missing = program.inputs.keys() ^ inputs.keys()
        if missing:
            raise BadShare(f"inputs do not match the program: {', '.join(sorted(missing))}")
        seed = new_seed()
        shares = {name: share(name, inputs[name], wire, seed) for name, wire in program.inputs.items()}

        def requests(party: int, name: str, wire: Wire) -> Iterator[party_pb2.PutInputRequest]:
            header = party_pb2.InputHeader(job=job, name=name, ring=wire.ring, shape=list(wire.shape), stage=stage)
            if party == 0:
                header.seed = seed
            yield party_pb2.PutInputRequest(header=header)
            if party == 1:
                for chunk in _chunks(name, wire, shares[name]):
                    yield party_pb2.PutInputRequest(chunk=chunk)

        def send(party: int) -> None:
            for name, wire in program.inputs.items():
                with _calling(PARTIES[party], running=True):
                    self._parties[party].PutInput(requests(party, name, wire), timeout=120)

        list(self._pool.map(send, (0, 1)))

    def _fetch(self, job: str, stage: int, program: Program) -> Outputs:
        def fetch(party: int, name: str, wire: Wire) -> torch.Tensor:
            with _calling(PARTIES[party], running=True):
                request = party_pb2.FetchOutputRequest(job=job, name=name, stage=stage)
                data = b"".join(chunk.data for chunk in self._parties[party].FetchOutput(request, timeout=120))
            if len(data) != wire.nbytes:
                raise DittoError(f"{PARTIES[party]} sent {len(data)} bytes of {name}, expected {wire.nbytes}")
            return unpack(data, wire.ring, tuple(wire.shape))

        outputs = {}
        for name, wire in program.outputs.items():
            first, second = self._pool.map(fetch, (0, 1), (name, name), (wire, wire))
            outputs[name] = reveal((first, second), wire)
        return outputs
