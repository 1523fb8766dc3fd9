"""The closed form of framing equals what protobuf encodes."""

from __future__ import annotations

from queue import SimpleQueue as Queue

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from ditto.net.emulation import Link
from ditto.net.framing import PREFIX, around_dealt, around_frame
from ditto.net.metrics import LinkMetrics
from ditto.net.peerlink import Frame, PeerLink, _frames
from ditto.net.transport import CHUNK
from ditto.transcript import DIGEST
from ditto.wire import dealer_pb2

NUMBERS = st.integers(0, 2**63)


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=9), NUMBERS, NUMBERS, NUMBERS, st.binary())
def test_a_frame(job: str, label: str, abort: str, sequence: int, total: int, offset: int, data: bytes) -> None:
    head = Frame(job=job, label=label, abort=abort, sequence=sequence, total=total, digest=bytes(DIGEST))
    whole = Frame(data=data, offset=offset)
    whole.MergeFrom(head)
    assert around_frame(head, offset, len(data)) == whole.ByteSize() - len(data) + PREFIX


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_message_of_the_dealer(seed: bytes, data: bytes) -> None:
    reply = dealer_pb2.CorrelationsReply(seed=seed, data=data, digest=bytes(DIGEST))
    assert around_dealt(reply) == reply.ByteSize() - len(data) + PREFIX


def test_what_send_counts_is_what_the_stream_carries() -> None:
    registry, out = CollectorRegistry(), Queue()
    link = PeerLink("party0", "party1", metrics=LinkMetrics(registry))
    link._attach(out)
    payloads = [b"", b"x", bytes(CHUNK), bytes(2 * CHUNK + 1)]
    counted = sum(link.send("0" * 32, i, "label", payload)[0] for i, payload in enumerate(payloads))
    out.put(None)
    frames = list(_frames(out, Link(None), link.metrics))
    assert [len(frame.data) for frame in frames] == [0, 1, CHUNK, CHUNK, CHUNK, 1]
    payload = sum(map(len, payloads))
    assert sum(frame.ByteSize() + PREFIX for frame in frames) == payload + counted
    for part, expected in (("payload", payload), ("framing", counted)):
        labels = {"direction": "out", "part": part}
        assert registry.get_sample_value("ditto_peer_bytes_total", labels) == expected
