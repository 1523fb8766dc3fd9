"""What a changed message becomes at either end, without a cluster: seals, the order of events, pieces of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import grpc
import pytest

from ditto.client.messages import whole
from ditto.client.progress import Progress
from ditto.engine.program import Wire
from ditto.errors import IntegrityError
from ditto.net.certs import init_certs
from ditto.net.config import Tls
from ditto.net.seal import SEALED, seal, sealing, unseal, unsealing
from ditto.net.transport import build_server, from_rpc_error, open_channel
from ditto.wire import control_pb2, party_pb2

EVENT = control_pb2.JobEvent
METHODS = ("/ditto.v1.PeerLink/Exchange", "/ditto.v1.Dealer/Correlations", "/grpc.health.v1.Health/Check")


def test_every_bit_and_every_cut_is_seen() -> None:
    whole = seal("m request", party_pb2.OpenJobRequest(job="0" * 32, model="m").SerializeToString())
    assert unseal("m request", whole) == whole[:-SEALED]
    flips = [whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :] for i in range(len(whole)) for bit in range(8)]
    for changed in (*flips, *(whole[:n] for n in range(len(whole))), whole + b"\0", whole[1:]):
        with pytest.raises(IntegrityError):
            unseal("m request", changed)
    for head in ("m reply", "n request"):
        with pytest.raises(IntegrityError):
            unseal(head, whole)


def test_what_has_digests_of_its_own_has_no_seal() -> None:
    ways = [(method, way) for method in METHODS for way in ("request", "reply")]
    message = party_pb2.Frame(job="0" * 32, digest=bytes(16), data=b"data")
    encoded = message.SerializeToString()
    plain = [pair for pair in ways if sealing(*pair, party_pb2.Frame.SerializeToString)(message) == encoded]
    assert plain == [pair for pair in ways if pair != (METHODS[1], "request")]
    assert all(unsealing(*pair, party_pb2.Frame.FromString)(encoded) for pair in plain)


def test_a_sealed_message_is_one_to_another_version() -> None:
    """Which refuses it for its version, and has to read it for that."""
    request = party_pb2.OpenJobRequest(job="0" * 32)
    read = party_pb2.OpenJobRequest.FromString(seal("m request", request.SerializeToString()))
    read.DiscardUnknownFields()
    assert read == request


class Echo(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    certs = tmp_path_factory.mktemp("certs")
    init_certs(certs, [], client="alice")

    def tls(role: str) -> Tls:
        return Tls(ca=certs / "ca.pem", cert=certs / f"{role}.pem", key=certs / f"{role}.key")

    server, port = build_server("127.0.0.1:0", tls("dealer"), "dealer", {"Echo": frozenset({"client"})})
    server.add_generic_rpc_handlers((Echo(),))
    server.start()
    with open_channel(f"127.0.0.1:{port}", "dealer", tls("client"), "client") as channel:
        yield SimpleNamespace(channel=channel)
    server.stop(0).wait(5)


def test_a_message_passes_and_a_changed_one_does_not(echo: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a real server: the request, then the reply."""
    assert echo.channel.unary_unary("/test/Echo")(b"whole", timeout=10) == b"whole"
    asked = echo.channel.unary_unary("/test/Echo", lambda m: m, lambda m: b"")

    def changed(way: str, head: str, data: bytes) -> bytes:
        whole = seal(head, data)
        return whole[:-1] + bytes([whole[-1] ^ 1]) if head.endswith(way) else whole

    for way, words in (("request", "arrived there"), ("reply", "arrived from there")):
        monkeypatch.setattr("ditto.net.seal.seal", partial(changed, way))
        with pytest.raises(grpc.RpcError) as caught:
            asked(b"whole" * 99, timeout=10)
        error = from_rpc_error(caught.value, "dealer")
        assert isinstance(error, IntegrityError) and words in str(error) and error.peer == "dealer"


# A job's events ----------------------------------------------------------------------------------------


def layer(index: int, online: bool) -> EVENT:
    phase = party_pb2.PHASE_ONLINE if online else party_pb2.PHASE_OFFLINE
    return EVENT(layer=control_pb2.LayerDone(layer=index, phase=phase))


def stage(index: int) -> EVENT:
    return EVENT(stage=control_pb2.StageDone(stage=index))


QUEUED, ACCEPTED, DONE = (EVENT(**{k: {}}) for k in ("queued", "accepted", "done"))
JOB = [QUEUED, QUEUED, ACCEPTED, layer(0, False), layer(0, True), layer(1, False), layer(1, True), stage(0)]
JOB += [layer(2, False), layer(2, True), stage(1), DONE]  # two layers, two stages


def follow(events: list[EVENT], ended: bool = False) -> None:
    progress = Progress(2, 2)
    for event in events:
        progress.check(event)
        progress.ended = ended and event == stage(0)
    progress.check_end()


def test_the_order_of_a_job() -> None:
    follow(JOB)
    follow(JOB[2:])
    follow([*JOB[:8], DONE], ended=True)


@pytest.mark.parametrize("at", range(2, len(JOB)))
def test_a_lost_a_double_and_a_swapped_event(at: int) -> None:
    swapped = [*JOB[: at - 1], JOB[at], JOB[at - 1], *JOB[at + 1 :]]
    for events in (JOB[:at] + JOB[at + 1 :], [*JOB[: at + 1], *JOB[at:]], JOB[:at], swapped):
        with pytest.raises(IntegrityError) as caught:
            follow(events)
        assert caught.value.peer == "coordinator"
    with pytest.raises(IntegrityError):
        follow([*JOB[:at], EVENT()])


# An answer in pieces -----------------------------------------------------------------------------------


def test_pieces_of_an_answer() -> None:
    wire = Wire("y", 16, 0, (6,), 1.0)
    pieces = [party_pb2.TensorChunk(name="y", offset=at, data=bytes([at] * 4)) for at in (0, 4, 8)]
    assert whole(pieces, "y", wire, 0) == bytes([0] * 4 + [4] * 4 + [8] * 4)
    for wrong in (pieces[:2], pieces[1:], pieces + pieces[2:], [pieces[1], pieces[0], pieces[2]]):
        with pytest.raises(IntegrityError) as caught:
            whole(wrong, "y", wire, 1)
        assert caught.value.peer == "party1"
