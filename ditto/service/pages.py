"""Lists a page at a time: one reply is of bounded size, whatever the list's length."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from ditto.errors import UsageError

T = TypeVar("T")
MOST = 100  # entries of a page
NBYTES = 1 << 20  # of a page, unless its only entry is larger
TOKEN = 200  # characters


def page(
    entries: Iterable[T], key: Callable[[T], str], nbytes: Callable[[T], int], token: str, wanted: int
) -> tuple[list[T], str]:
    """The entries after `token`, by their key, and the token of the page after; empty where there is no more.

    A token is the last key that was given. So an entry that stays while others come and go is given once, and no
    state is kept between two pages. `wanted` is how many entries are asked for, 0 for as many as fit. Raises UsageError
    for a token that is none.
    """
    if len(token) > TOKEN:
        raise UsageError("no token of a page")
    most = min(wanted, MOST) or MOST
    given: list[T] = []
    size = 0
    for entry in sorted((entry for entry in entries if key(entry) > token), key=key):
        size += nbytes(entry)
        if len(given) == most or (given and size > NBYTES):
            return given, key(given[-1])
        given.append(entry)
    return given, ""
