"""The client's side: share a model, ask a question on shares, put the answer together."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import torch

from ditto.client.status import activity, traffic
from ditto.engine.program import Program, Wire
from ditto.engine.sharing import reveal, share
from ditto.errors import BadCheckpoint, BadShare, DittoError, UsageError
from ditto.models import Plan
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
    """Reconstructed outputs as signed int64, and what the job cost, in all, by layer and by operation."""

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

    def list_models(self) -> list[dict[str, Any]]:
        """The public specs of the shared models."""
        self._connect("coordinator")
        with _calling("coordinator"):
            reply = self._control.ListModels(control_pb2.ListModelsRequest(), timeout=30)
        return [json.loads(m.spec_json) | {"name": m.model} for m in reply.models]

    def get_model(self, name: str) -> dict[str, Any]:
        """The public spec of one shared model. Raises UnknownModel."""
        spec: dict[str, Any] = json.loads(self._model(name).spec_json)
        return spec

    def _model(self, name: str) -> control_pb2.Model:
        self._connect("coordinator")
        with _calling("coordinator"):
            return self._control.GetModel(control_pb2.GetModelRequest(model=name), timeout=30)

    def share_model(self, spec: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        """Split the encoded weights between the parties; a model of the same name is replaced."""
        spec_json, name = json.dumps(spec, sort_keys=True), str(spec["name"])
        wires = weights_of(spec_json)
        for key, wire in wires.items():
            if key not in weights or tuple(weights[key].shape) != tuple(wire.shape):
                raise BadCheckpoint(f"weight {key} of shape {tuple(wire.shape)} is missing or misshapen")
        share_id, seed = secrets.token_hex(16), new_seed()
        header = party_pb2.ModelHeader(model=name, share_id=share_id, spec_json=spec_json)

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
        model = control_pb2.Model(model=name, share_id=share_id, spec_json=spec_json)
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
    ) -> InferResult:
        """Run one job. `inputs` encodes the question for the compiled program; `on_event` follows the layers."""
        return self.run(model, Plan(batch, seq), lambda stage, program, before: inputs(program), on_event)

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
        program = program_for(found.spec_json, plan)
        encoded = inputs(0, program, {})
        if encoded is None:
            raise UsageError("nothing to ask")
        self._connect(*PARTIES)
        started = time.perf_counter()
        request = control_pb2.RunJobRequest(
            model=model, share_id=found.share_id, plan=to_message(plan), fingerprint=program.fingerprint
        )
        call = self._control.RunJob(request)
        report, job = Report(program), ""
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
                        if stage + 1 < plan.stages:
                            # all later stages take and give the same types
                            program = program_for(found.spec_json, plan, 1)
                            self._start(job, stage + 1, program, inputs(stage + 1, program, outputs))
                    elif kind == "done":
                        event["seconds"] = report.seconds = message.done.seconds
                        report.traffic = dict(zip(PARTIES, map(traffic, message.done.traffic), strict=False))
                    if on_event is not None:
                        on_event(event)
        finally:
            call.cancel()
        result = report.to_json()
        result |= {"job": job, "wall_seconds": time.perf_counter() - started}
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


def _phase() -> dict[str, Any]:
    return {
        "online": {"seconds": 0.0, "waiting": 0.0, "rounds": 0, "bytes_sent": [0, 0]},
        "offline": {"seconds": 0.0, "bytes_to_party": [0, 0]},
    }


def _slower(ledgers: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Seconds and waiting of the party whose rows took longer."""
    sums = [{key: sum(row.get(key, 0.0) for row in rows) for key in ("seconds", "waiting")} for rows in ledgers]
    return max(sums, key=lambda sum_: sum_["seconds"], default={})


@dataclass
class Report:
    """Adds up the ledgers of both parties. Seconds, and the waiting in them, are the slower party's; rounds are the
    same on both sides."""

    program: Program
    seconds: float = 0.0
    traffic: dict[str, Any] = field(default_factory=dict)  # by party, counted at the frame
    times: list[tuple[int, str, Sequence[party_pb2.LayerTimes]]] = field(default_factory=list)  # online, by party
    total: dict[str, Any] = field(default_factory=_phase)
    layers: dict[int, dict[str, Any]] = field(default_factory=dict)
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, done: control_pb2.LayerDone) -> dict[str, Any]:
        if done.times:
            self.times.append((done.layer, done.name, done.times))
        layer = self.layers.setdefault(done.layer, {"layer": done.layer, "name": done.name} | _phase())
        ledgers = [json.loads(text) for text in done.ledgers]
        for account in (self.total, layer):
            account[done.phase]["seconds"] += done.seconds
            if done.phase == "online":
                account["online"]["waiting"] += _slower(ledgers).get("waiting", 0.0)
        for operation in dict.fromkeys(row["operation"] for rows in ledgers for row in rows):
            pair: list[dict[str, Any]] = [
                next((r for r in rows if r["operation"] == operation), {}) for rows in ledgers
            ]
            by_operation = self.operations.setdefault(operation, {"operation": operation} | _phase())
            by_operation[done.phase]["seconds"] += max(r.get("seconds", 0.0) for r in pair)
            if done.phase == "online":
                by_operation["online"]["waiting"] += _slower([[r] for r in pair]).get("waiting", 0.0)
            for account in (self.total, layer, by_operation):
                figures = account[done.phase]
                if done.phase == "online":
                    figures["rounds"] += max(r.get("rounds", 0) for r in pair)
                for party, row in enumerate(pair):
                    if done.phase == "online":
                        figures["bytes_sent"][party] += row.get("bytes_sent", 0)
                    else:
                        figures["bytes_to_party"][party] += row.get("bytes_from_dealer", 0)
        return {
            "layer": done.layer, "name": done.name, "phase": done.phase, "seconds": done.seconds, "parties": ledgers,
            **layer[done.phase],
        }  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {
            **self.total, "seconds": self.seconds, "layers": list(self.layers.values()),
            "operations": list(self.operations.values()), "traffic": self.traffic, "jobs": 1,
            "rounds_timeline": self.timeline(),
        }  # fmt: skip

    def timeline(self) -> dict[str, Any]:
        """Every round of the party that was online longer, by its clock alone: seconds since it began the first layer
        online, to the microsecond. Rounds are columns, since there may be more than a thousand."""
        online = [sum(times[party].seconds for _, _, times in self.times) for party in range(len(PARTIES))]
        party = online.index(max(online))
        return {"party": party, "layers": [_layer_times(i, name, times[party]) for i, name, times in self.times]}


def _layer_times(layer: int, name: str, times: party_pb2.LayerTimes) -> dict[str, Any]:
    return {
        "layer": layer,
        "name": name,
        "offline": {"start": round(times.offline_start, 6), "seconds": round(times.offline_seconds, 6)},
        "online": {"start": round(times.start, 6), "seconds": round(times.seconds, 6)},
        "rounds": {
            "operation": [r.operation for r in times.rounds],
            "start": [round(r.start, 6) for r in times.rounds],
            "waiting": [round(r.waiting, 6) for r in times.rounds],
            "bytes_sent": [r.bytes_sent for r in times.rounds],
        },
    }
