"""Lists a page at a time, and the identifiers that a party never forgets."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from ditto.errors import LimitExceeded, ReuseError, UsageError
from ditto.service import pages
from ditto.service.pages import page
from ditto.service.share_ids import ShareIds


def read(names: list[str], nbytes: int, wanted: int = 0) -> list[list[str]]:
    found, token = list[list[str]](), ""
    while not found or token:
        given, token = page(names, str, lambda _: nbytes, token, wanted)
        found.append(given)
    return found


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250])
def test_every_entry_once_and_no_page_is_large(count: int) -> None:
    names = [f"model-{i:03}" for i in range(count)]
    for wanted in (0, 7, 10_000):
        most = wanted if wanted == 7 else pages.MOST
        found = read(names[::-1], 1, wanted)
        assert [name for one in found for name in one] == names and all(len(one) <= most for one in found)
        assert len(found) == max(1, -(-count // most))


def test_a_page_ends_where_it_has_enough_bytes() -> None:
    names = [f"{i}" for i in range(9)]
    assert [len(one) for one in read(names, pages.NBYTES // 4)] == [4, 4, 1]
    assert [len(one) for one in read(names, 3 * pages.NBYTES)] == [1] * 9


def test_what_comes_and_goes_between_two_pages() -> None:
    given, token = page(["b", "d", "f"], str, len, "", 2)
    assert given == ["b", "d"]
    assert page(["a", "e", "f", "g"], str, len, token, 2) == (["e", "f"], "f")
    with pytest.raises(UsageError):
        page(["a"], str, len, "x" * 1000, 0)


# Identifiers -------------------------------------------------------------------------------------


def ids(root: Path, each: int = 3) -> ShareIds:
    return ShareIds(root, "party0", each)


def test_each_owner_uses_up_so_many(tmp_path: Path) -> None:
    """Over restarts, and whatever became of the sharings: what one client can leave in the directory is bounded."""
    for _ in range(3):
        ids(tmp_path).take(secrets.token_hex(16), "client/alice")
    found = ids(tmp_path)
    dropped = next(tmp_path.iterdir()).name
    found.drop(dropped)
    found.told(dropped)
    with pytest.raises(LimitExceeded, match=r"client/alice has put 3 sharings.*max_sharings"):
        ids(tmp_path).take(secrets.token_hex(16), "client/alice")
    assert len(list(tmp_path.iterdir())) == 3
    ids(tmp_path).take(secrets.token_hex(16), "client/bob")


@pytest.mark.parametrize("content", [b"", b"x", bytes(200), None])
def test_whatever_a_file_holds_it_burns_its_identifier(content: bytes | None, tmp_path: Path) -> None:
    """Empty files are an older version's. What this party did not write, or wrote for another identifier (None), is set
    aside, and counts for nobody."""
    own, other = secrets.token_hex(16), secrets.token_hex(16)
    ids(tmp_path).take(own, "client/alice")
    (tmp_path / other).write_bytes((tmp_path / own).read_bytes() if content is None else content)
    for _ in range(2):
        found = ids(tmp_path, 2)
        for share_id in (own, other):
            with pytest.raises(ReuseError):
                found.take(share_id, "client/alice")
    assert len(list(tmp_path.glob("*.damaged"))) == (content != b"")
    found.take(secrets.token_hex(16), "client/alice")


def test_an_older_version_s_files(tmp_path: Path) -> None:
    """Empty ones, taken and dropped: both stay burnt, and the dealer is told of the drop."""
    taken, dropped, unknown = (secrets.token_hex(16) for _ in range(3))
    for name in (taken, dropped, f"{dropped}.dropped"):
        (tmp_path / name).write_bytes(b"")
    found = ids(tmp_path)
    assert found.untold() == [dropped]
    found.told(dropped)
    found.drop(unknown)
    found = ids(tmp_path)
    assert found.untold() == [unknown]
    for share_id in (taken, dropped, unknown):
        with pytest.raises(ReuseError):
            found.take(share_id, "client/alice")
