"""Ledgers as messages, and the report that the client adds up from them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ditto.client.report import Report, slower
from ditto.engine.ledger import Ledger, Phase, Row, total
from ditto.errors import DittoError
from ditto.net.messages import check_reply, ledger_of, ledger_to_message, phase_to_message
from ditto.wire import control_pb2, party_pb2


def row(operation: str, seconds: float, phase: Phase = "online", layer: int | None = 0, **counts: Any) -> Row:
    return Row(phase=phase, layer=layer, operation=operation, seconds=seconds, **counts)


def step(phase: Phase, first: list[Row], second: list[Row], /, **fields: Any) -> control_pb2.LayerDone:
    ledgers = [ledger_to_message(rows) for rows in (first, second)]
    return control_pb2.LayerDone(**({"phase": phase_to_message(phase), "ledgers": ledgers} | fields))


# Messages -----------------------------------------------------------------------------------------


def test_a_ledger_arrives_as_it_was_sent() -> None:
    """Rows of a layer, and the same with layers added up."""
    ledger = Ledger()
    for layer in (0, 1):
        ledger.add("offline", layer, "gelu", seconds=0.5, bytes_from_dealer=1 << 40)
        ledger.add("online", layer, "gelu", seconds=0.25, waiting=0.125, rounds=2, bytes_sent=1 << 33)
        ledger.add("online", layer, "softmax", seconds=1.0)
    ledger.add("online", 1, "gelu", seconds=0.25, rounds=1)
    sent = ledger.rows("online", 1)
    assert [(r.layer, r.operation, r.rounds, r.seconds) for r in sent] == [(1, "gelu", 3, 0.5), (1, "softmax", 0, 1.0)]
    summed = ledger.by_operation("online")
    assert [(r.layer, r.operation, r.rounds, r.seconds) for r in summed] == [
        (None, "gelu", 5, 0.75), (None, "softmax", 0, 2.0),
    ]  # fmt: skip
    for rows in (sent, summed):
        message = party_pb2.Ledger.FromString(ledger_to_message(rows).SerializeToString())
        assert ledger_of(message, "online", "party0") == rows
    dealt = ledger_of(ledger_to_message(ledger.by_operation("offline")), "offline", "party0")
    assert (total(dealt).bytes_from_dealer, ledger.total("online").seconds) == (1 << 41, 2.75)
    assert [("layer" in r.to_json(), "waiting" in r.to_json()) for r in (*sent[:1], *summed[:1])] == [
        (True, True), (False, True),
    ]  # fmt: skip


ROWS = {
    "of another phase": [row("a", 1.0, phase="offline")],
    "without an operation": [row("", 1.0)],
    "twice": [row("a", 1.0), row("b", 1.0), row("a", 1.0)],
    "less than no time": [row("a", -0.5)],
    "no number": [row("a", math.nan)],
    "without end": [row("a", 1.0, waiting=math.inf)],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_that_make_no_sense_are_refused(rows: list[Row]) -> None:
    message = ledger_to_message(rows)
    with pytest.raises(DittoError, match="party1 sent") as found:
        ledger_of(message, "online", "party1")
    assert found.value.peer == "party1"
    with pytest.raises(DittoError, match="party1 sent"):
        check_reply(party_pb2.StepReply(ledger=message), "online", "party1")
    report = Report()
    with pytest.raises(DittoError, match="coordinator sent"):
        report.add(step("online", [row("a", 1.0)], rows))
    assert report == Report(), "nothing of it was counted"


def test_a_row_of_no_phase_is_refused() -> None:
    for phase in (party_pb2.PHASE_UNSPECIFIED, 7):
        message = party_pb2.Ledger(rows=[party_pb2.LedgerRow(phase=phase, operation="a")])
        with pytest.raises(DittoError, match="no known phase"):
            ledger_of(message, "online", "party1")


def test_a_reply_has_a_ledger() -> None:
    check_reply(party_pb2.StepReply(ledger=party_pb2.Ledger()), "offline", "party1")
    with pytest.raises(DittoError, match="party1 sent no ledger of its offline work") as found:
        check_reply(party_pb2.StepReply(seconds=1.0), "offline", "party1")
    assert found.value.peer == "party1"
    times = party_pb2.LayerTimes(rounds=[party_pb2.Round(operation="a", start=math.nan)])
    with pytest.raises(DittoError, match="moment"):
        check_reply(party_pb2.StepReply(ledger=party_pb2.Ledger(), times=times), "online", "party1")


@pytest.mark.parametrize(
    "wrong",
    [
        {"ledgers": []},
        {"ledgers": [party_pb2.Ledger()]},
        {"phase": party_pb2.PHASE_UNSPECIFIED},
        {"seconds": math.nan},
        {"seconds": -1.0},
        {"times": [party_pb2.LayerTimes()]},
        {"times": [party_pb2.LayerTimes(), party_pb2.LayerTimes(start=math.inf)]},
        {"times": [party_pb2.LayerTimes(), party_pb2.LayerTimes(seconds=-1.0)]},
    ],
)
def test_a_step_without_both_parties_measurements_is_refused(wrong: dict[str, Any]) -> None:
    report = Report()
    with pytest.raises(DittoError, match="coordinator sent") as found:
        report.add(step("online", [row("a", 1.0)], [row("a", 1.0)], **wrong))
    assert found.value.peer == "coordinator"
    assert report == Report()


# The client's report ------------------------------------------------------------------------------


def test_waiting_is_the_slower_partys() -> None:
    quick = [row("a", 1.0, waiting=0.9), row("b", 1.0, waiting=0.1)]
    slow = [row("a", 0.5, waiting=0.2), row("b", 2.0, waiting=0.3)]
    spent = slower([total(quick), total(slow)])
    assert (spent.seconds, spent.waiting) == (2.5, 0.5)
    report = Report()
    report.add(step("online", quick, slow, layer=0, name="x", seconds=2.6))
    result = report.to_json()
    assert result["online"]["waiting"] == result["layers"][0]["online"]["waiting"] == 0.5
    assert [op["online"]["waiting"] for op in result["operations"]] == [0.9, 0.3]


def times(start: float, seconds: float, waiting: float) -> party_pb2.LayerTimes:
    opening = party_pb2.Round(operation="gelu", start=start + 0.1234567, waiting=waiting, bytes_sent=30)
    return party_pb2.LayerTimes(
        offline_start=start - 0.5, offline_seconds=0.25, start=start, seconds=seconds, rounds=[opening]
    )


def sequence() -> list[control_pb2.LayerDone]:
    """A layer whose operations differ between the parties, a layer without offline work, a later stage."""
    token = {"layer": 2, "name": "token 2", "stage": 1}
    return [
        step(
            "offline", [row("gelu", 0.5, "offline", bytes_from_dealer=100)],
            [row("gelu", 0.25, "offline", bytes_from_dealer=40), row("qkv", 0.5, "offline", bytes_from_dealer=7)],
            layer=0, name="embeddings", seconds=0.875,
        ),
        step(
            "online", [row("gelu", 0.5, waiting=0.25, rounds=2, bytes_sent=10), row("add", 0.125)],
            [row("gelu", 0.25, waiting=0.125, rounds=2, bytes_sent=11), row("qkv", 1.0, rounds=1, bytes_sent=5)],
            layer=0, name="embeddings", seconds=1.5, times=[times(0.0, 0.75, 0.25), times(40.0, 1.5, 0.125)],
        ),
        step("offline", [], [], layer=1, name="layer 0", seconds=0.0625),
        step(
            "online", [row("qkv", 2.0, layer=1, waiting=0.5, rounds=3, bytes_sent=20)],
            [row("qkv", 2.0, layer=1, waiting=0.75, rounds=3, bytes_sent=21)],
            layer=1, name="layer 0", seconds=2.25, times=[times(1.0, 2.0, 0.5), times(42.0, 1.0, 0.5)],
        ),
        step("offline", [], [row("qkv", 0.25, "offline", None, bytes_from_dealer=3)], seconds=0.25, **token),
        step(
            "online", [row("qkv", 0.5, layer=None, waiting=0.125, rounds=4, bytes_sent=2)],
            [row("qkv", 0.25, layer=None, waiting=0.0625, rounds=4, bytes_sent=2)], seconds=0.5, **token,
        ),
    ]  # fmt: skip


def account(online: tuple[float, float, int, list[int]], offline: tuple[float, list[int]]) -> dict[str, Any]:
    return {
        "online": dict(zip(("seconds", "waiting", "rounds", "bytes_sent"), online, strict=True)),
        "offline": dict(zip(("seconds", "bytes_to_party"), offline, strict=True)),
    }


def moments(start: float, seconds: float, waiting: float, sent: float) -> dict[str, Any]:
    return {
        "offline": {"start": start - 0.5, "seconds": 0.25},
        "online": {"start": start, "seconds": seconds},
        "rounds": {"operation": ["gelu"], "start": [sent], "waiting": [waiting], "bytes_sent": [30]},
    }


def traffic(sent: int, dealt: int) -> dict[str, Any]:
    return {
        "rounds": 9, "sent": {"payload": sent, "framing": 0}, "received": {"payload": 0, "framing": 0},
        "from_dealer": {"payload": dealt, "framing": 1},
    }  # fmt: skip


def test_the_document_of_a_fixed_sequence() -> None:
    """Every field, and their order: `--json` prints them so."""
    report = Report()
    events = [report.add(done) for done in sequence()]
    counts = [party_pb2.Traffic(rounds=9, payload_sent=p + 30, dealt=p, dealt_framing=1) for p in (1, 2)]
    report.finish(control_pb2.Done(seconds=5.5, traffic=counts))
    want = {
        **account((4.25, 0.75, 10, [32, 39]), (1.1875, [100, 50])),
        "seconds": 5.5,
        "layers": [
            {"layer": 0, "name": "embeddings"} | account((1.5, 0.125, 3, [10, 16]), (0.875, [100, 47])),
            {"layer": 1, "name": "layer 0"} | account((2.25, 0.5, 3, [20, 21]), (0.0625, [0, 0])),
            {"layer": 2, "name": "token 2"} | account((0.5, 0.125, 4, [2, 2]), (0.25, [0, 3])),
        ],
        "operations": [
            {"operation": "gelu"} | account((0.5, 0.25, 2, [10, 11]), (0.5, [100, 40])),
            {"operation": "qkv"} | account((3.5, 0.625, 8, [22, 28]), (0.75, [0, 10])),
            {"operation": "add"} | account((0.125, 0.0, 0, [0, 0]), (0.0, [0, 0])),
        ],
        "traffic": {"party0": traffic(31, 1), "party1": traffic(32, 2)},
        "jobs": 1,
        "stock": False,
        "stocked_jobs": 0,
        "rounds_timeline": {
            "party": 0,
            "layers": [
                {"layer": 0, "name": "embeddings"} | moments(0.0, 0.75, 0.25, 0.123457),
                {"layer": 1, "name": "layer 0"} | moments(1.0, 2.0, 0.5, 1.123457),
            ],
        },
    }
    assert json.dumps(report.to_json()) == json.dumps(want)
    online = {"seconds": 1.5, "waiting": 0.125, "rounds": 3, "bytes_sent": [10, 16]}
    parties = events[1].pop("parties")
    assert events[1] == {"layer": 0, "name": "embeddings", "phase": "online"} | online
    assert parties[1][1] == {
        "phase": "online", "layer": 0, "operation": "qkv", "seconds": 1.0, "waiting": 0.0, "rounds": 1,
        "bytes_sent": 5, "bytes_from_dealer": 0,
    }  # fmt: skip
    assert [("layer" in rows[0]) for rows in events[5]["parties"]] == [False, False]
