"""Every gRPC method: the servicer called in this process, with a changed request or a changed stream of requests.

An input is who calls (one byte) and the messages, packed. Streams also come in another order, repeated, or cut off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from copy import copy
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError, Message

from ditto.client.messages import ask_of, chunks, deal_of, terms_of
from ditto.engine.plan import Plan
from ditto.engine.sharing import seeded_share
from ditto.errors import DittoError
from ditto.models.compiled import program_for, weights_of
from ditto.models.description import digest_of
from ditto.net.messages import ledger_to_message, to_message
from ditto.wire import control_pb2, dealer_pb2, party_pb2
from fuzz.protobuf import changed
from fuzz.source import Source, pack, unpack
from fuzz.target import Finding, Target
from fuzz.world import (
    ATTEMPT,
    JOB,
    MODEL,
    NEW,
    OWNER,
    PLAN,
    SEED,
    SHARE,
    WORDS,
    World,
    model,
    pem,
    registration,
    roles_of,
    world,
)  # fmt: skip

Check = Callable[[World, str, list[bytes]], None]


def _model(share_id: str = SHARE) -> control_pb2.Model:
    return control_pb2.Model(model=MODEL, share_id=share_id, description=world().text, owner=OWNER)


@cache
def requests(service: str, method: str) -> tuple[Message, ...]:
    """Valid ones, in order."""
    plan, fingerprint, digest = to_message(PLAN), world().program.fingerprint, digest_of(world().text)
    step = party_pb2.StepRequest(job=JOB)
    found: dict[str, Message] = {
        "UnregisterModel": control_pb2.UnregisterModelRequest(model=MODEL),
        "GetModel": control_pb2.GetModelRequest(model=MODEL),
        "GetPublic": control_pb2.GetPublicRequest(model=MODEL),
        "Status": control_pb2.StatusRequest(),
        "StartJob": control_pb2.StartJobRequest(job=JOB),
        "RunJob": ask_of(terms_of(_model(), PLAN, world().program)),
        "ActivateModel": party_pb2.ActivateModelRequest(
            model=MODEL, share_id=NEW, attempt=ATTEMPT, owner=OWNER, description_digest=digest
        ),
        "CheckModel": party_pb2.CheckModelRequest(model=MODEL, share_id=SHARE, client=OWNER, description_digest=digest),
        "RemoveModel": party_pb2.RemoveModelRequest(model=MODEL, keep=SHARE),
        "GrantModel": party_pb2.GrantModelRequest(model=MODEL, to="bob"),
        "OpenJob": party_pb2.OpenJobRequest(
            job=JOB,
            model=MODEL,
            share_id=SHARE,
            plan=plan,
            fingerprint=fingerprint,
            client=OWNER,
            description_digest=digest,
        ),
        "AskKeeper": party_pb2.AskKeeperRequest(share_id=SHARE, copies=[SHARE, NEW]),
        "FetchShare": party_pb2.FetchShareRequest(share_id=SHARE),
        "CloseJob": party_pb2.CloseJobRequest(job=JOB, reason="no more"),
        "FetchOutput": party_pb2.FetchOutputRequest(job=JOB, name=next(iter(world().program.outputs))),
        "ModelSeed": dealer_pb2.ModelSeedRequest(model=MODEL, share_id=NEW, description=world().text, digest="0" * 64),
        "ForgetModel": dealer_pb2.ForgetModelRequest(share_id=SHARE),
        "Correlations": dealer_pb2.CorrelationsRequest(
            job=ATTEMPT,
            model=MODEL,
            share_id=SHARE,
            plan=to_message(Plan(1, 1)),
            fingerprint=program_for(world().text, Plan(1, 1)).fingerprint,
        ),
        "Inventory": dealer_pb2.InventoryRequest(models=[MODEL]),
        "TakeStock": dealer_pb2.TakeStockRequest(job=JOB, share_id=SHARE),
        "Stock": party_pb2.StockRequest(
            job=ATTEMPT,
            model=MODEL,
            share_id=SHARE,
            plan=to_message(Plan(1, 1)),
            fingerprint=program_for(world().text, Plan(1, 1)).fingerprint,
            client=OWNER,
            description_digest=digest,
        ),
        "Deal": deal_of(terms_of(_model(), PLAN, world().program), 2),
        "Prepare": step,
        "Run": step,
    }
    if method == "ListModels":
        return (control_pb2.ListModelsRequest() if service == "Coordinator" else party_pb2.PartyModelsRequest(),)
    if method == "PutModel":
        return _put_model()
    if method == "RegisterModel":
        return tuple(registration().requests(NEW))
    if method == "PutInput":
        return _put_input()
    return (found[method],)


def _put_model() -> tuple[Message, ...]:
    header = party_pb2.ModelHeader(model=MODEL, share_id=NEW, description=world().text)
    pieces = [
        party_pb2.PutModelRequest(chunk=chunk)
        for name, wire in weights_of(world().text).items()
        for chunk in chunks(name, wire, model()[1][name])
    ]
    return party_pb2.PutModelRequest(header=header), *pieces


def _input_headers() -> list[party_pb2.InputHeader]:
    terms = terms_of(_model(), PLAN, world().program)
    return [
        party_pb2.InputHeader(job=JOB, name=name, ring=wire.ring, shape=list(wire.shape), terms=terms)
        for name, wire in world().program.inputs.items()
    ]


def _put_input() -> tuple[Message, ...]:
    header = _input_headers()[0]
    wire = world().program.inputs[header.name]
    pieces = [party_pb2.PutInputRequest(chunk=c) for c in chunks(header.name, wire, seeded_share("x", wire, SEED))]
    return party_pb2.PutInputRequest(header=header), *pieces


# What has to be there before a call ----------------------------------------------------------------


def _bring(world: World, path: str, message: Message, who: str) -> None:
    world.servers.serve(path, [message.SerializeToString()], pem(who))


def _open(world: World) -> None:
    _bring(world, "/ditto.v1.Party/OpenJob", requests("Party", "OpenJob")[0], "coordinator")


def _asked(world: World) -> None:
    """A job with its inputs."""
    _open(world)
    for header in _input_headers():
        header.seed = SEED
        _bring(world, "/ditto.v1.Party/PutInput", party_pb2.PutInputRequest(header=header), OWNER)


def _prepared(world: World) -> None:
    """Preparing takes most of a step's time: it is done once, and what it left is put back for each input."""
    jobs = world.party._jobs
    if kept := world.__dict__.get("prepared"):
        job, terms, box, states = kept
        for object_, state in states:
            object_.__dict__.update(_copied(state))
        jobs._jobs[JOB], jobs._terms[JOB], world.party.link._boxes[JOB] = job, terms, box
        jobs._room.open(JOB, job._need.waiting)
        return
    _asked(world)
    _bring(world, "/ditto.v1.Party/Prepare", party_pb2.StepRequest(job=JOB, rest=True), "coordinator")
    job = jobs._jobs[JOB]
    engine = job.stage(0).engine
    parts = (job, job._carried, job.stage(0), engine, engine.ledger, job.channel, job.channel._box)
    states = [(part, _copied(part.__dict__)) for part in parts]
    world.prepared = job, jobs._terms[JOB], job.channel._box, states  # type: ignore[attr-defined]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: copy(value) if isinstance(value, (dict, list, set)) else value for name, value in state.items()}


def _answered(world: World) -> None:
    """Whose first stage has run: kept from input to input, since nothing that a fetch does ends it."""
    job = getattr(world, "answered", None)
    if job is None:
        _prepared(world)
        _bring(world, "/ditto.v1.Party/Run", party_pb2.StepRequest(job=JOB, rest=True), "coordinator")
        world.answered = job = world.party._jobs._jobs[JOB], world.party._jobs._terms[JOB]  # type: ignore[attr-defined]
    world.party._jobs._jobs[JOB], world.party._jobs._terms[JOB] = job


def _shared(world: World) -> None:
    """A second sharing, not active yet."""
    _bring(world, "/ditto.v1.Party/PutModel", _seeded(), OWNER)


def _seeded() -> party_pb2.PutModelRequest:
    header = party_pb2.ModelHeader(model=MODEL, share_id=NEW, description=world().text, seed=SEED)
    return party_pb2.PutModelRequest(header=header)


BEFORE: dict[str, Callable[[World], None]] = {
    "ActivateModel": _shared, "Prepare": _asked, "Run": _prepared, "CloseJob": _open, "PutInput": _open,
    "FetchOutput": _answered,
}  # fmt: skip


# Checks --------------------------------------------------------------------------------------------


def _call(service: str, method: str) -> Check:
    path = f"/ditto.v1.{service}/{method}"

    def check(world: World, who: str, messages: list[bytes]) -> None:
        BEFORE.get(method, lambda _: None)(world)
        if method not in ("Prepare", "Run"):
            world.servers.serve(path, messages, pem(who))
            return
        for message in messages:  # steps, one after another
            world.servers.serve(path, [message], pem(who))

    return check


def _run_job(world: World, who: str, messages: list[bytes]) -> None:
    """Messages: the request; StartJob before each stage; what party 0 answers to a step."""
    run, start, step = (*messages, b"", b"", b"")[:3]
    servers, service = world.servers, world.coordinator
    try:
        reply = party_pb2.StepReply.FromString(step)
    except DecodeError:
        reply = party_pb2.StepReply()
    events = servers.found["/ditto.v1.Coordinator/RunJob"]
    service._pairs.keepers.stubs = scripted(reply)  # type: ignore[assignment]

    def began() -> None:
        for run in list(service._runs.values()):
            try:
                sent = control_pb2.StartJobRequest.FromString(start)
                sent.job = sent.job.replace(JOB, run.name)
                servers.serve("/ditto.v1.Coordinator/StartJob", [sent.SerializeToString()], pem(who))
            except (DittoError, DecodeError):
                pass
            run.started.set()  # what never starts is waited for, and that takes long

    class Watched:
        """Each event has the client act."""

        request_streaming, response_streaming = False, True
        unary_unary = stream_unary = stream_stream = None
        request_deserializer, response_serializer = events.request_deserializer, events.response_serializer

        @staticmethod
        def unary_stream(request: Message, context: object):  # type: ignore[no-untyped-def]
            for event in events.unary_stream(request, context):
                yield event
                if event.WhichOneof("event") in ("accepted", "stage"):
                    began()

    servers.found["/ditto.v1.Coordinator/Watched"] = Watched
    servers.serve("/ditto.v1.Coordinator/Watched", [run], pem(who), most=1 + len(run) % 40)


def scripted(reply: party_pb2.StepReply) -> dict[str, object]:
    """Both parties, who agree to everything; party 0's account of a step is `reply`."""
    from fuzz.inside import Future

    class Stub:
        def __init__(self, role: str) -> None:
            self._role = role

        def __getattr__(self, method: str) -> object:
            step = reply if self._role == "party0" else _account()
            answers = {"Prepare": step, "Run": step}
            return type("Call", (), {"future": lambda _, ask, timeout=0: Future(lambda: answers.get(method))})()

    return {role: Stub(role) for role in ("party0", "party1")}


@cache
def _account() -> party_pb2.StepReply:
    from ditto.engine.ledger import Ledger

    ledger = Ledger()
    ledger.add("online", 0, "open", seconds=0.1, rounds=1, bytes_sent=8)
    times = party_pb2.LayerTimes(seconds=0.1, rounds=[party_pb2.Round(operation="open", waiting=0.1, bytes_sent=8)])
    rows = ledger_to_message(ledger.rows("online", 0))
    return party_pb2.StepReply(seconds=0.1, ledger=rows, times=times, traffic=party_pb2.Traffic(rounds=1))


def _exchange(world: World, who: str, messages: list[bytes]) -> None:
    """Frames to party 0; whatever job they are for, a message is as long as it says, and all but the last are whole."""
    link = world.party.link
    channel, totals = link.open(JOB), dict[int, set[int]]()
    try:
        for frame in map(party_pb2.Frame.FromString, messages):
            totals.setdefault(frame.sequence, set()).add(frame.total)
    except DecodeError:
        return
    try:
        world.servers.serve("/ditto.v1.PeerLink/Exchange", messages, pem(who))
        for sequence, message in channel._box.messages.items():
            size = sum(map(len, message.pieces))
            if message.total not in totals.get(sequence, ()) or not size == message.received <= message.total:
                raise Finding(f"{size} bytes of a message of {message.total}, not of {totals.get(sequence)}")
            if size < message.total and sequence != channel._box.round:
                raise Finding(f"a message of {message.total} bytes ends after {size}")
    finally:
        link._attach(world.mirror)  # type: ignore[arg-type]


# Targets -------------------------------------------------------------------------------------------

SLOW = ("Correlations", "OpenJob", "Stock", "Prepare", "PutInput", "Run")
METHODS = {
    "Coordinator": (
        "RegisterModel", "UnregisterModel", "ListModels", "GetModel", "GetPublic", "Status", "RunJob", "StartJob",
        "Deal",
    ),
    "Party": (
        "PutModel", "ActivateModel", "CheckModel", "RemoveModel", "GrantModel", "ListModels", "OpenJob", "Prepare",
        "Run", "CloseJob", "Stock", "PutInput", "FetchOutput", "AskKeeper", "FetchShare",
    ),
    "PeerLink": ("Exchange",),
    "Dealer": ("ModelSeed", "ForgetModel", "Correlations", "TakeStock", "Inventory"),
}  # fmt: skip


def _valid(service: str, method: str, source: Source) -> list[Message]:
    if method == "Exchange":
        return _frames(source)
    if method == "RunJob":
        return [requests(service, method)[0], control_pb2.StartJobRequest(job=JOB), _account()]
    if method == "PutModel" and source.one_in(3):
        return [_seeded()]
    if method in ("Prepare", "Run"):
        return [party_pb2.StepRequest(job=JOB, layer=layer) for layer in range(3)]
    return list(requests(service, method))


def _frames(source: Source) -> list[Message]:
    """Of two messages, in pieces, with their digests: valid, or of a frame that was changed before they were taken."""
    from ditto.net.framing import frame_digest

    frames = []
    for sequence, pieces in enumerate((1, 3)):
        for offset in range(pieces):
            frames.append(party_pb2.Frame(
                job=JOB, sequence=sequence, label="open 8:4", offset=4 * offset, total=4 * pieces, data=b"data"
            ))  # fmt: skip
    if source.one_in(2):
        at = source.below(len(frames))
        with contextlib.suppress(DecodeError):
            frames[at] = party_pb2.Frame.FromString(changed(source, frames[at], WORDS))
    for frame in frames:
        frame.digest = frame_digest(frame, frame.offset, frame.data)
    return frames  # type: ignore[return-value]


def _build(service: str, method: str) -> Callable[[Source], bytes]:
    def build(source: Source) -> bytes:
        who = bytes([source.below(2)])
        messages = _valid(service, method, source)
        at = source.below(len(messages))
        data = [message.SerializeToString() for message in messages]
        data[at] = changed(source, messages[at], WORDS)
        if len(data) > 1 and source.one_in(3):
            other = source.below(len(data))
            what = source.below(4)
            if what == 0:
                data.insert(other, data[at])
            elif what == 1:
                data[at], data[other] = data[other], data[at]
            elif what == 2:
                del data[other]
            else:
                data = data[:other]
        return pack([who, *data])

    return build


def _target(service: str, method: str) -> Target:
    check: Check = {"RunJob": _run_job, "Exchange": _exchange}.get(method) or _call(service, method)
    callers = roles_of(service, method)

    def run(given: bytes) -> None:
        who, *messages = unpack(given) or [b""]
        here = world()
        try:
            check(here, callers[(who[0] if who else 0) % len(callers)], messages)
        finally:
            here.restore()

    return Target(f"{service}-{method}", _build(service, method), run, method in SLOW)


TARGETS = [_target(service, method) for service, methods in METHODS.items() for method in methods]
