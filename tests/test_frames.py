"""The closed form of framing equals what protobuf encodes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from ditto.net.bulk import Bulk, Dealt, decoder
from ditto.net.emulation import Link, Network
from ditto.net.framing import PREFIX, around_dealt, around_frame
from ditto.net.metrics import LinkMetrics
from ditto.net.outbox import Outbox
from ditto.net.peerlink import PeerLink, _frames
from ditto.net.transport import CHUNK
from ditto.transcript import DIGEST
from ditto.wire import dealer_pb2, party_pb2

NUMBERS = st.integers(0, 2**63)


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=9), NUMBERS, NUMBERS, NUMBERS, st.binary())
def test_a_frame(job: str, label: str, abort: str, sequence: int, total: int, offset: int, data: bytes) -> None:
    head = party_pb2.Frame(job=job, label=label, abort=abort, sequence=sequence, total=total, digest=bytes(DIGEST))
    whole = party_pb2.Frame(data=data, offset=offset)
    whole.MergeFrom(head)
    assert around_frame(head, offset, len(data)) == whole.ByteSize() - len(data) + PREFIX


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_message_of_the_dealer(seed: bytes, data: bytes) -> None:
    reply = dealer_pb2.CorrelationsReply(seed=seed, data=data, digest=bytes(DIGEST))
    whole = reply.ByteSize()
    reply.ClearField("data")
    assert around_dealt(Dealt(reply, data)) == whole - len(data) + PREFIX


MESSAGES = st.builds(
    party_pb2.Frame,
    job=st.text(max_size=9),
    sequence=NUMBERS,
    total=NUMBERS,
    data=st.binary(max_size=300),
    digest=st.binary(),
)


@given(MESSAGES, st.binary(max_size=200))
def test_data_apart_is_the_same_message(message: party_pb2.Frame, other: bytes) -> None:
    """Encoded apart it is one that protobuf reads, and read apart it is one that protobuf wrote: `data` in the midst,
    last, twice, or absent."""
    head = party_pb2.Frame()
    head.CopyFrom(message)
    head.ClearField("data")
    apart = Bulk(head, memoryview(message.data)).SerializeToString()
    assert party_pb2.Frame.FromString(apart) == message
    twice = apart + party_pb2.Frame(data=other).SerializeToString()
    for encoded in (apart, message.SerializeToString(), twice):
        read, want = decoder(party_pb2.Frame)(encoded), party_pb2.Frame.FromString(encoded)
        assert bytes(read.data) == want.data
        want.ClearField("data")
        assert read.head == want
    view = decoder(party_pb2.Frame)(apart).data
    assert not message.data or (isinstance(view, memoryview) and view.obj is apart), "no copy"


@given(MESSAGES, st.data())
def test_what_protobuf_refuses_is_refused(message: party_pb2.Frame, data: st.DataObject) -> None:
    whole = bytearray(message.SerializeToString() or b"\0")
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    encoded = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        want = party_pb2.Frame.FromString(encoded)
    except DecodeError:
        with pytest.raises(DecodeError):
            decoder(party_pb2.Frame)(encoded)
        return
    read = decoder(party_pb2.Frame)(encoded)
    assert bytes(read.data) == want.data
    want.ClearField("data")
    assert read.head == want


def test_what_send_counts_is_what_the_stream_carries() -> None:
    registry, out = CollectorRegistry(), Outbox()
    link = PeerLink("party0", "party1", metrics=LinkMetrics(registry))
    link._attach(out)
    payloads = [b"", b"x", bytes(CHUNK), bytes(2 * CHUNK + 1)]
    counted = sum(link.send("0" * 32, i, "label", payload)[0] for i, payload in enumerate(payloads))
    out.put(None)
    frames = list(_frames(out, Link(None), link.metrics))
    assert [len(frame.data) for frame in frames] == [0, 1, CHUNK, CHUNK, CHUNK, 1]
    payload = sum(map(len, payloads))
    assert sum(len(frame.SerializeToString()) + PREFIX for frame in frames) == payload + counted
    for part, expected in (("payload", payload), ("framing", counted)):
        labels = {"direction": "out", "part": part}
        assert registry.get_sample_value("ditto_peer_bytes_total", labels) == expected


# Several jobs on one stream -----------------------------------------------------------------------


def box(*messages: tuple[float, str, int]) -> Outbox:
    """Messages of so many pieces: when they were queued, and whose they are. The last piece is one byte."""
    out = Outbox()
    for number, (queued, job, pieces) in enumerate(messages):
        payload = bytes([number]) * ((pieces - 1) * CHUNK + 1)
        digests = b"".join(bytes([number, piece]) * (DIGEST // 2) for piece in range(pieces))
        out.put((queued, party_pb2.Frame(job=job, sequence=number, total=len(payload)), payload, digests))
    out.put(None)
    return out


def taken(out: Outbox, *leaves: float) -> list[tuple[str, int, int]]:
    """Job, message and piece, in order; the time at which each leaves, the last one for all that follow."""
    found, times = [], [0.0, *leaves]
    while item := out.get(lambda: times.pop(0) if times[1:] else times[0]):
        _, head, data, digest = item
        piece = head.offset // CHUNK
        assert digest == bytes([head.sequence, piece]) * (DIGEST // 2) and set(bytes(data)) == {head.sequence}
        assert len(data) == min(CHUNK, head.total - head.offset)
        found.append((head.job, head.sequence, piece))
    return found


def test_a_large_message_holds_back_no_other_job_by_more_than_a_piece() -> None:
    out = box((0.0, "a", 3), (0.0, "b", 1), (0.0, "a", 1), (0.0, "c", 2))
    order = [("a", 0, 0), ("b", 1, 0), ("c", 3, 0), ("a", 0, 1), ("c", 3, 1), ("a", 0, 2), ("a", 2, 0)]
    assert taken(out) == order


def test_a_link_that_lags_does_not_wait_for_what_comes_later() -> None:
    """The emulated link sends at 0, 1, 2 … what its sender hands over later: what b queued at 1.5 has its turn at 2."""
    out = box((0.0, "a", 4), (1.5, "b", 2))
    assert taken(out, 1.0, 2.0, 3.0, 4.0) == [
        ("a", 0, 0),
        ("a", 0, 1),
        ("b", 1, 0),
        ("a", 0, 2),
        ("b", 1, 1),
        ("a", 0, 3),
    ]
    assert taken(box((2.0, "b", 1), (1.0, "a", 1))) == [("a", 1, 0), ("b", 0, 0)]  # nothing is there: what comes first


def test_an_emulated_link_carries_as_much_for_two_jobs_as_for_one() -> None:
    """When the last piece arrives does not depend on whose it is, nor on how late the sender gets round to it."""
    network = Network(bandwidth_mbps=80.0, rtt_ms=50.0)  # 10 MB a second

    def last(*jobs: str) -> float:
        now = 0.0
        link, out = Link(network, lambda: now), box(*((0.0, job, 4) for job in jobs))
        while item := out.get(link.leaves):
            now = link.arrival(item[0], len(item[2]))
        return now

    assert last("a", "b", "c") == pytest.approx(last("a", "a", "a"))
    assert last("a", "b", "c") == pytest.approx(3 * (3 * CHUNK + 1) / 1e7 + 0.025)
