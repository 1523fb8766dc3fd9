"""Kinds of tokens (digits, punctuation, scripts, …): which of a vocabulary's do texts have?"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

from ditto.models.tokenizer import Tokenizer

FEWEST = 10  # tokens of a kind: what has fewer is left out
OF_BYTES = "\N{REPLACEMENT CHARACTER}"  # a token that is no whole character


def kind_of(token: str) -> str:
    """By its first letter or digit, else by its first character."""
    token = token.removeprefix("##").strip()
    if not token:
        return "white space"
    first = next((c for c in token if c.isalnum()), token[0])
    if first == OF_BYTES:
        return "bytes"
    if first.isnumeric():
        return "digits"
    if first.isalpha():
        script = unicodedata.name(first, "other").split()[0].lower()
        if script == "latin":
            return "capitals" if first.isupper() else "latin" if first.isascii() else "accented"
        return script.split("-")[0]
    return "punctuation" if unicodedata.category(first).startswith("P") else "symbols"


def kinds_of(tokenizer: Tokenizer) -> dict[int, str]:
    """Of each token that is no special one, the kinds of at least FEWEST tokens."""
    special = tokenizer.special
    found = {i: kind_of(tokenizer.decode([i])) for i in range(tokenizer.size) if i not in special}
    counts = Counter(found.values())
    fewest = min(FEWEST, max(counts.values(), default=0))
    return {i: kind for i, kind in found.items() if counts[kind] >= fewest}


def kinds_met(kinds: dict[int, str], ids: Iterable[int]) -> set[str]:
    """Those of these tokens."""
    return {kinds[i] for i in set(ids) if i in kinds}
