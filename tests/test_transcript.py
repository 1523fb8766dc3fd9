"""What arrives is what was sent, or an error says what is not: on the link between the parties and on the dealer's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine import QueueSource, both
from prometheus_client import CollectorRegistry

from ditto.engine.channel import MemoryChannel, compare_transcripts
from ditto.engine.job import DealerJob, PartyJob
from ditto.engine.ledger import Ledger
from ditto.engine.program import Builder, Program
from ditto.engine.weights import DealerWeights, PartyWeights
from ditto.errors import BY_CODE, BadShare, ClusterError, DittoError, IntegrityError, PeerLost
from ditto.models import Description, Plan, compile_stage, encode_inputs, random_batch, random_model
from ditto.net.emulation import Link
from ditto.net.framing import dealt_digest, frame_digest
from ditto.net.link_channel import LinkChannel
from ditto.net.metrics import LinkMetrics, PartyMetrics
from ditto.net.outbox import Outbox
from ditto.net.peerlink import PeerLink, _frames, message_digests
from ditto.net.transport import CHUNK
from ditto.ring import cast
from ditto.ring.prg import new_seed
from ditto.service.job_run import _vagueness
from ditto.service.party_jobs import Job
from ditto.service.room import Room
from ditto.service.source import DealerSource
from ditto.transcript import DIGEST, Transcript, digest
from ditto.wire import dealer_pb2, party_pb2

Alter = Callable[[party_pb2.Frame], None]
Order = Callable[[Iterator[party_pb2.Frame]], Iterator[party_pb2.Frame]]


def untouched(frame: party_pb2.Frame) -> None:
    pass


@contextmanager
def links(alter: Alter = untouched, order: Order = iter) -> Iterator[tuple[LinkChannel, LinkChannel]]:
    """One job's channels over two ends in this process."""
    with linked(alter, order) as ends:
        yield ends[0].open("job"), ends[1].open("job")


@contextmanager
def linked(alter: Alter = untouched, order: Order = iter) -> Iterator[list[PeerLink]]:
    """Two ends of a link in this process. `alter` may change what party 0 sends, `order` which frames of it arrive, and
    when."""
    ends = [PeerLink(f"party{i}", f"party{1 - i}", 5.0, 20.0, metrics=LinkMetrics(CollectorRegistry())) for i in (0, 1)]
    outs = [Outbox() for _ in ends]
    for end, out in zip(ends, outs, strict=True):
        end._attach(out)

    def carried(party: int) -> Iterator[party_pb2.Frame]:
        for sent in _frames(outs[party], Link(None), ends[party].metrics):
            frame = party_pb2.Frame.FromString(sent.SerializeToString())
            if party == 0:
                alter(frame)
            yield frame

    for party in (0, 1):
        arrives = order(carried(party)) if party == 0 else carried(party)
        threading.Thread(target=ends[1 - party]._pump, args=(arrives, outs[1 - party]), daemon=True).start()
    try:
        yield ends
    finally:
        for end in ends:
            end.stop()


def once(label: str, change: Alter) -> Alter:
    """Change the first frame of one label."""
    left = [change]

    def alter(frame: party_pb2.Frame) -> None:
        if left and frame.label == label:
            left.pop()(frame)

    return alter


def flip(name: str) -> Alter:
    """Change one bit of a field."""

    def change(frame: party_pb2.Frame) -> None:
        value = getattr(frame, name)
        if isinstance(value, bytes):
            at = len(value) // 2
            setattr(frame, name, value[:at] + bytes([value[at] ^ 4]) + value[at + 1 :])
        elif isinstance(value, str):
            setattr(frame, name, chr(ord(value[0]) ^ 4) + value[1:] if value else "?")
        else:
            setattr(frame, name, value ^ 2)

    return change


def errors_of(channels: tuple[LinkChannel, LinkChannel], work: Callable[[LinkChannel, int], Any]) -> list[DittoError]:
    """What each party ends with; one that fails closes its job, as a step does."""
    errors: list[Any] = [None, None]

    def run(party: int) -> None:
        try:
            work(channels[party], party)
        except DittoError as error:
            errors[party] = error
            channels[party].close("failed")

    both(run)
    return errors


# One frame -------------------------------------------------------------------------------------------


def test_messages_pass_whole() -> None:
    payloads = [b"", b"x", bytes(CHUNK), bytes(2 * CHUNK + 1)]
    with links() as channels:

        def work(channel: LinkChannel, party: int) -> None:
            for i, payload in enumerate(payloads):
                assert channel.exchange(f"m{i}", payload) == payload
            compare_transcripts(channel, party, "end")

        assert errors_of(channels, work) == [None, None]
        sent, received = (channels[0].transcript.value(kind) for kind in ("sent", "received"))
        assert (received, sent) == tuple(channels[1].transcript.value(kind) for kind in ("sent", "received"))


def test_a_message_in_pieces() -> None:
    """Each is there as soon as it is sent, and their digests are what a replay has of the message."""
    pieces = [b"first", bytes(CHUNK + 1), b"last"]
    sizes = [len(piece) for piece in pieces]
    with links() as channels:
        streams = [channel.stream("s", sizes) for channel in channels]
        for i, piece in enumerate(pieces):
            for stream in streams:
                stream.send(piece)
            assert [bytes(stream.take()) for stream in streams] == [piece] * 2, i
        assert errors_of(channels, lambda channel, party: compare_transcripts(channel, party, "end")) == [None, None]
        assert [channel.rounds for channel in channels] == [2, 2]
    transcript = Transcript()
    transcript.add("sent", "s", message_digests("job", 0, "s", b"".join(pieces), sizes))
    with links() as channels:
        stream = channels[0].stream("s", sizes)
        for piece in pieces:
            stream.send(piece)
        assert channels[0].transcript.value("sent") == transcript.value("sent")


@pytest.mark.parametrize(
    ("label", "sizes", "error", "text"),
    [("other", [4, 4], DittoError, "opens 's'"), ("s", [4, 5], BadShare, "8 bytes from the peer, expected 9")],
)
def test_a_message_in_other_pieces(label: str, sizes: list[int], error: type[DittoError], text: str) -> None:
    with links() as channels:
        stream = channels[0].stream("s", [4, 4])
        stream.send(b"1234")
        stream.send(b"5678")
        other = channels[1].stream(label, sizes)
        with pytest.raises(error, match=text):
            other.take()


@pytest.mark.parametrize("field", ["data", "label", "total", "offset"])
def test_a_changed_piece_ends_the_job(field: str) -> None:
    """The first one is there and good; the changed one is never handed out."""
    left = [2]

    def second(frame: party_pb2.Frame) -> None:
        left[0] -= 1
        if not left[0]:
            flip(field)(frame)

    with links(second) as channels:
        mine, theirs = (channel.stream("s", [5, 6]) for channel in channels)
        for piece in (b"first", b"other."):
            mine.send(piece)
        assert theirs.take() == b"first"
        with pytest.raises(IntegrityError, match="round 0"):
            theirs.take()


@pytest.mark.parametrize("size", [100, 2 * CHUNK + 1])
@pytest.mark.parametrize("field", ["data", "label", "sequence", "offset", "total", "abort", "digest", "job"])
def test_a_changed_bit_ends_the_job(field: str, size: int) -> None:
    """Whichever field it is in: the receiver names label and round, and nobody waits for what will not come."""
    with links(once("7/qkv", flip(field))) as channels:
        got: list[bytes] = []

        def work(channel: LinkChannel, party: int) -> None:
            channel.exchange("6/open", b"first")
            theirs = channel.exchange("7/qkv", bytes(size))
            if party == 1:
                got.append(theirs)
            channel.exchange("8/next", b"last")

        sender, receiver = errors_of(channels, work)
    assert isinstance(receiver, IntegrityError) and not got
    assert receiver.peer == "party0" and "round" in str(receiver)
    assert field == "label" or "'7/qkv'" in str(receiver)
    assert field == "sequence" or "round 1:" in str(receiver)
    assert isinstance(sender, PeerLost if field == "job" else ClusterError)  # a link that loses jobs' names is ended


def lost(frames: Iterator[party_pb2.Frame]) -> Iterator[party_pb2.Frame]:
    yield next(frames)
    next(frames)
    yield from frames


def doubled(frames: Iterator[party_pb2.Frame]) -> Iterator[party_pb2.Frame]:
    yield next(frames)
    second = next(frames)
    yield from (second, second)
    yield from frames


def swapped_frames(frames: Iterator[party_pb2.Frame]) -> Iterator[party_pb2.Frame]:
    yield next(frames)
    second, third = next(frames), next(frames)
    yield from (third, second)
    yield from frames


@pytest.mark.parametrize("size", [100, 3 * CHUNK])
@pytest.mark.parametrize("order", [lost, doubled, swapped_frames])
def test_frames_come_in_order(order: Order, size: int) -> None:
    """Of rounds, and of the pieces of a message. The receiver sees it with the next frame, before any deadline."""
    with links(order=order) as channels:

        def work(channel: LinkChannel, party: int) -> None:
            for i in range(4):
                channel.exchange(f"{i}/open", bytes(size if i else 1))

        began = time.monotonic()
        _, receiver = errors_of(channels, work)
    assert time.monotonic() - began < 15  # of the 20 of a message
    assert isinstance(receiver, IntegrityError) and receiver.peer == "party0" and "was to come" in str(receiver)


def test_the_client_is_told_of_the_change() -> None:
    told = [PeerLost("gone"), ClusterError("closed"), DittoError("?"), IntegrityError("changed")]
    assert isinstance(min(told, key=_vagueness), IntegrityError)
    assert BY_CODE[IntegrityError.code] is IntegrityError


def test_types_are_bound() -> None:
    """Parties that open different types of the same size are told so; neither reads the other's bytes as its own."""

    def opens(bits: int, length: int) -> Program:
        b = Builder()
        b.layer("layer")
        with b.label("operation"):
            b.output("y", b.open(b.input("x", bits, 0, (length,), 1.0))[0])
        return b.program

    channels, programs = MemoryChannel.pair(), (opens(16, 6), opens(32, 3))
    failed: list[str] = []

    def work(party: int) -> None:
        program, weights = programs[party], PartyWeights({}, party, new_seed(), {})
        job = PartyJob(program, party, "job", new_seed(), weights, channels[party], QueueSource(), Ledger())
        job.set_input("x", cast(torch.zeros(program.inputs["x"].shape, dtype=torch.int64), 16))
        job.prepare(0)
        try:
            job.run(0)
        except DittoError as error:
            failed.append(str(error))

    both(work)
    assert len(failed) == 2 and all("16:6" in text and "32:3" in text for text in failed)


def test_a_digest_sees_head_length_and_every_bit() -> None:
    data = bytes(range(40))
    changed = [data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :] for i in range(40) for bit in range(8)]
    digests = {digest("head", d) for d in [data, data + b"\0", data[:-1], b"", *changed]} | {digest("other", data)}
    assert len(digests) == 5 + len(changed) and {len(d) for d in digests} == {DIGEST}


# A whole job -----------------------------------------------------------------------------------------


def forged(frame: party_pb2.Frame) -> None:
    """Data changed with a digest to match: only the transcripts can tell."""
    flip("data")(frame)
    frame.digest = frame_digest(frame, frame.offset, frame.data)


def test_transcripts_tell_whose_message_changed() -> None:
    with links(once("7/qkv", forged)) as channels:

        def work(channel: LinkChannel, party: int) -> None:
            channel.exchange("7/qkv", bytes(100))
            compare_transcripts(channel, party, "stage 1")

        errors = errors_of(channels, work)
    for error in errors:
        assert isinstance(error, IntegrityError)
        assert "end of stage 1: party0 sent" in str(error)


@pytest.mark.parametrize("kind", ["sent", "received"])
def test_transcripts_see_order_and_label(kind: Any) -> None:
    def value(*messages: tuple[str, bytes]) -> bytes:
        transcript = Transcript()
        for label, data in messages:
            transcript.add(kind, label, data)
        return transcript.value(kind)

    a, b = ("a", bytes(16)), ("b", bytes(16))
    values = {value(), value(a), value(b), value(a, b), value(b, a), value(a, a), value(("ab", bytes(16)))}
    assert len(values) == 7


class Tampered(MemoryChannel):
    """Party 1's end: one message, or one piece of one, arrives changed."""

    at = -1
    rounds = 0

    def _receive(self, label: str) -> bytes:
        theirs = super()._receive(label)
        if self.rounds == self.at:
            theirs = bytes([theirs[0] ^ 1]) + theirs[1:]
        self.rounds += 1
        return theirs

    payload_received = framing_received = 0

    def close(self, reason: str = "") -> None:
        pass


class Dealt(QueueSource):
    received = framing = 0


@pytest.fixture(scope="module")
def model() -> tuple[Description, dict[str, torch.Tensor]]:
    description, weights, _ = random_model("bert-tiny", 1, 16)
    return description, weights


@pytest.mark.parametrize("at", [None, 5])
def test_a_job_whose_transcripts_differ_has_no_answer(
    at: int | None, model: tuple[Description, dict[str, torch.Tensor]]
) -> None:
    """At both parties its last step fails, and no share of an output is there to be fetched."""
    description, weights = model
    seeds, masks, plan = (new_seed(), new_seed()), (new_seed(), new_seed()), Plan(1, 16)
    channels = Tampered.pair()
    ends: list[Any] = [Tampered(channel._out, channel._in) for channel in channels]
    room = Room(1 << 40, "party")
    jobs = [Job("job", description.text(), plan, i, ends[i], Dealt(), room) for i in (0, 1)]  # type: ignore[arg-type]
    program = compile_stage(description, plan)
    shares = ({n: cast(w, program.weights[n].ring) * (1 - i) for n, w in weights.items()} for i in (0, 1))
    held = [PartyWeights(program.weights, i, masks[i], mine) for i, mine in enumerate(shares)]
    both(lambda i: held[i].open_masked(ends[i]))
    if at is not None:
        ends[1].at = ends[1].rounds + at
    for party, data in DealerJob(program, "job", seeds, DealerWeights(program.weights, masks)).deal():
        jobs[party].source.pieces.put(data)  # type: ignore[attr-defined]
    encoded = encode_inputs(description, program, random_batch(1, 16))
    errors: list[BaseException] = []

    def work(i: int) -> None:
        jobs[i].begin(seeds[i], held[i])
        for name, x in encoded.items():
            jobs[i].set_input(0, name, x if i == 0 else x * 0)
        step = party_pb2.StepRequest(job="job", rest=True)
        jobs[i].step("offline", step)
        try:
            jobs[i].step("online", step)
        except DittoError as error:
            errors.append(error)

    both(work)
    done = [job.stage(0).outputs is not None for job in jobs]
    if at is None:
        assert not errors and all(done)
    else:
        assert [type(error) for error in errors] == [IntegrityError] * 2 and not any(done)


# The dealer's stream -----------------------------------------------------------------------------------


def stream(*changes: Callable[[list[dealer_pb2.CorrelationsReply]], Any]) -> DealerSource:
    seed, pieces = new_seed(), [b"first piece", b"second piece"]
    replies = [dealer_pb2.CorrelationsReply(seed=seed, digest=dealt_digest(0, seed, b""))]
    replies += [
        dealer_pb2.CorrelationsReply(data=data, digest=dealt_digest(place, b"", data))
        for place, data in enumerate(pieces, 1)
    ]
    for change in changes:
        change(replies)

    class Call(list[dealer_pb2.CorrelationsReply]):
        def cancel(self) -> None:
            pass

    stub: Any = SimpleNamespace(Correlations=lambda request: Call(replies))
    return DealerSource(stub, dealer_pb2.CorrelationsRequest(), 5.0, PartyMetrics())


def changed_data(replies: list[dealer_pb2.CorrelationsReply]) -> None:
    replies[2].data = b"Second piece"


def changed_seed(replies: list[dealer_pb2.CorrelationsReply]) -> None:
    replies[0].seed = bytes(16)


def swapped(replies: list[dealer_pb2.CorrelationsReply]) -> None:
    replies[1], replies[2] = replies[2], replies[1]


def test_a_whole_stream_of_the_dealer() -> None:
    source = stream()
    assert len(source.seed()) == 16 and bytes(source.take(23)) == b"first piecesecond piece"


@pytest.mark.parametrize("change", [changed_data, changed_seed, swapped])
def test_a_changed_piece_of_the_dealer(change: Any) -> None:
    source = stream(change)
    with pytest.raises(IntegrityError, match="piece") as caught:
        source.seed()
        source.take(23)
    assert caught.value.peer == "dealer"
