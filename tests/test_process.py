"""What a server's process asks of the system before it serves."""

from __future__ import annotations

import resource

import pytest

from ditto.service import process


@pytest.mark.parametrize(
    "soft, hard, raised",
    [
        (1024, 20_000, 20_000),
        (1024, 524_288, 65_536),
        (1024, resource.RLIM_INFINITY, 65_536),
        (1024, 1024, None),
        (100_000, 524_288, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
    ],
)
def test_descriptors_are_raised_to_what_the_system_lets(
    soft: int, hard: int, raised: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never lowered, and never beyond the hard limit, which only root may."""
    asked: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: asked.append((what, limits)))
    process._raise_descriptors()
    assert asked == ([] if raised is None else [(resource.RLIMIT_NOFILE, (raised, hard))])
