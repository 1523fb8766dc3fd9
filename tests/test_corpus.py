"""What fuzzing found stays mended: each kept input again, and a few new ones for every target (`make fuzz`: many)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from fuzz.registry import TARGETS
from fuzz.source import Source, pack, unpack
from fuzz.target import Finding, Target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditto.service import coordinator_service, copies, pairs, party_service, stored

CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.fixture(scope="module", autouse=True)
def apart() -> Iterator[None]:
    """The cluster in this process leaves nothing to other tests: no log level, storage key or channel of its own."""
    before, storage = structlog.get_config(), stored._storage
    opened = [(module, module.open_channel) for module in (party_service, coordinator_service, pairs, copies)]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)
    stored._storage = storage
    for module, open_channel in opened:
        module.open_channel = open_channel  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once(path: Path) -> None:
    TARGETS[path.parent.name].replay(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_every_target(name: str) -> None:
    target = TARGETS[name]
    target(b"")

    @settings(
        max_examples=8 if target.slow else 50, database=None, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.binary(max_size=64))
    def inputs(data: bytes) -> None:
        target(data)

    inputs()


def test_every_kept_input_has_its_target() -> None:
    assert {path.parent.name for path in KEPT} <= TARGETS.keys()
    assert KEPT


def test_an_input_of_several_parts() -> None:
    parts = [b"", b"\x00" * 300, b"x"]
    assert unpack(pack(parts)) == parts
    for cut in range(len(pack(parts))):
        unpack(pack(parts)[:cut])


@pytest.mark.parametrize("error", [ValueError, RecursionError, MemoryError, KeyError])
def test_what_is_no_error_of_ours_is_a_finding(error: type[Exception]) -> None:
    def fail(given: bytes) -> None:
        raise error

    with pytest.raises(error):
        Target("failing", lambda source: source.take(9), fail)(b"")


def test_what_ends_a_thread_is_a_finding() -> None:
    import threading

    def fail(given: bytes) -> None:
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()

    with pytest.raises(Finding, match="ZeroDivisionError"):
        Target("thread", lambda source: b"", fail).replay(b"")


def test_what_does_not_end_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.target.SECONDS", 0.05)
    with pytest.raises(Finding, match="no end"):
        Target("slow", lambda source: b"", lambda given: [None for _ in iter(int, 1)]).replay(b"")


def test_choices_are_the_first_ones_after_the_end() -> None:
    source = Source(b"\x07")
    assert (source.below(5), source.choice("abc"), source.one_in(2), source.blob()) == (2, "a", False, b"")
    assert source.ended
