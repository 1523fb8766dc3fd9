"""Valid documents, changed in a few places: JSON, text and bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from fuzz.source import Source

_DEEP = "@deep@"  # stands for a document nested deeper than any parser recurses
_NESTED = "[" * 50_000 + "]" * 50_000
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 65_536, 2**31, 2**63, 2**64, 10**30, 0.5, -0.5, 1e-320, 1e308,
    float("inf"), float("-inf"), float("nan"), "", "a", "0", "1", "\x00", "\ud800", "\u202e", "é", "../x", "/",
    "x" * 5000, "$HOME", [], {}, [[]], [0], {"": 0}, _DEEP,
)  # fmt: skip
SNIPPETS = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r", b"\t", b"\x85", b"\xe2\x80\xa8", b"-", b"0", b"9" * 400,
    b"\xed\xa0\x80", b"/" * 5000, b"[" * 5000, b"\x7f" * 16,
)  # fmt: skip
YAML = (
    b"&a [*a]", b"*a", b"!!python/object/apply:os.getpid []", b"2001-13-45", b"1_000", b"0x", b"!!binary x",
    b"? [a]\n: b", b"{" * 1500, b"<<: 1", b"!!int x", b"!!float x", b"!!timestamp x", b"!!set {a}",
    b"1:99999999999999999999",
    b".inf", b".nan", b"- " * 1500, b"\x00", b"\xff\xfe", b"? {a: b}", b"!!omap [1]", b"1e400", b"%YAML 9.9",
    b"---\n---", b"|", b"@", b"`",
)  # fmt: skip


def several(source: Source, once: Callable[[], None], most: int = 4) -> None:
    """One change, or a few."""
    once()
    for _ in range(most - 1):
        if source.ended:
            return
        once()


def flip(source: Source, data: bytes, snippets: tuple[bytes, ...] = SNIPPETS) -> bytes:
    """Bytes with one change: a bit, a snippet put in, a piece doubled, cut out, or cut off."""
    at = source.below(len(data) + 1)
    what = source.below(6)
    if what == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << source.below(8)]) + data[at + 1 :]
    if what == 1:
        return data[:at] + source.choice(snippets) + data[at:]
    end = at + source.below(33)
    if what == 2:
        return data[:end] + data[at:]
    if what == 3:
        return data[:at] + data[end:]
    if what == 4:
        return data[:at] + source.blob() + data[end:]
    return data[:at]


def flips(source: Source, data: bytes, snippets: tuple[bytes, ...] = SNIPPETS) -> bytes:
    def once() -> None:
        nonlocal data
        data = flip(source, data, snippets)

    several(source, once)
    return data


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Each value as what holds it and where."""
    found, waiting = [], [document]
    while waiting:
        holder = waiting.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, value in items:
            found.append((holder, key))
            if isinstance(value, dict | list) and value:
                waiting.append(value)
    return found


def change(source: Source, document: Any, values: tuple[Any, ...] = VALUES) -> Any:
    """A copy of a JSON document with a few changes of values, keys and rows."""
    root = [copy.deepcopy(document)]

    def once() -> None:
        holder, key = source.choice(_places(root))
        what = source.below(5)
        if what == 1:
            holder[key] = [holder[key]]
        elif what == 2 and holder is not root:
            del holder[key]
        elif what == 3:
            other, where = source.choice(_places(root))
            holder[key] = copy.deepcopy(other[where])
        elif what == 4 and isinstance(holder, dict):
            holder[source.choice(("", "a", "__proto__", "x" * 300, str(key).upper()))] = copy.deepcopy(holder[key])
        elif what == 4:
            holder.insert(key, copy.deepcopy(holder[key])) if holder is not root else None
        else:
            holder[key] = copy.deepcopy(source.choice(values))

    several(source, once)
    return root[0]


def as_json(source: Source, document: Any) -> bytes:
    """A changed document, or the text of one changed."""
    if source.one_in(4):
        return flips(source, json.dumps(document).encode())
    text = json.dumps(change(source, document)).replace(f'"{_DEEP}"', _NESTED)
    return text.encode()
