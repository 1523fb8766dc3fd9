"""Where things lie on a line: spans, axes, and brackets with names that do not overlap.

Places and lengths are fractions of the line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

WIDTH = 800  # pixels that a timeline has at least (page.css says so): what fits is reckoned with this
LETTER = 6.4  # of them for one letter
Anchor = Literal["start", "middle", "end"]  # SVG's: which point of a text lies at its place


@dataclass(frozen=True)
class Span:
    at: float
    wide: float


@dataclass(frozen=True)
class Scale:
    """Moments from `start`, on a line that stands for `full` seconds."""

    start: float
    full: float

    def span(self, start: float, end: float) -> Span:
        return Span((start - self.start) / self.full, max((end - start) / self.full, 0.0))


@dataclass(frozen=True)
class Tick:
    at: float
    anchor: Anchor
    seconds: float


def axis(start: float, end: float) -> list[Tick]:
    """At most eight round steps between `start` and `end` seconds; none if no time lies between them."""
    full = end - start
    if full <= 0:
        return []
    power = 10 ** math.floor(math.log10(full / 8))
    step = next(power * k for k in (1, 2, 5, 10) if full / (power * k) <= 8)
    ticks = []
    for i in range(math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9) + 1):
        at = (i * step - start) / full
        ticks.append(Tick(at, "start" if at < 0.02 else "end" if at > 0.95 else "middle", i * step))
    return ticks


# Brackets -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A stretch of the line, and what is there."""

    start: float
    end: float
    name: str

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class Bracket:
    """A mark below the line with as much of its name as has room, on one of the lines of text."""

    start: float
    end: float
    at: float
    anchor: Anchor
    line: int
    text: str


@dataclass(frozen=True)
class Brackets:
    lines: int
    items: list[Bracket]


def brackets(marks: list[Mark]) -> Brackets:
    """Names take turns on two lines where one is too narrow for all of them."""
    lines = 1 if _names(marks, 1) == [mark.name for mark in marks] else 2
    items = []
    for i, (mark, text) in enumerate(zip(marks, _names(marks, lines), strict=True)):
        at, anchor = _place(mark.middle, text)
        items.append(Bracket(mark.start, mark.end, at, anchor, i % lines, text))
    return Brackets(lines, items)


def _place(middle: float, text: str) -> tuple[float, Anchor]:
    """In the middle of its mark, or against the end of the line where it would stick out."""
    if len(text) * LETTER / 2 <= WIDTH * min(middle, 1 - middle):
        return middle, "middle"
    return (0.0, "start") if middle < 0.5 else (1.0, "end")


def _names(marks: list[Mark], lines: int) -> list[str]:
    """What can be shown of each name if they take turns on this number of lines."""
    shown = []
    for i, mark in enumerate(marks):
        first, last = i < lines, i + lines >= len(marks)  # of those on its line
        left = 0.0 if first else (marks[i - lines].middle + mark.middle) / 2
        right = 1.0 if last else (mark.middle + marks[i + lines].middle) / 2
        before, after = mark.middle - left, right - mark.middle
        leans = (first and before < after) or (last and after < before)  # on the edge
        room = before + after if leans else 2 * min(before, after)
        shown.append(_shortened(mark.name, WIDTH * room))
    return shown


def _shortened(name: str, room: float) -> str:
    """The name, or what of it has room: the number at its end, its first word, its first letters, nothing."""
    words = name.split(" ")
    short = words[-1] if words[-1].isdigit() else words[0]
    fitting = (s for s in (name, short, f"{name[:3]}.") if len(s) * LETTER < room)
    return next(fitting, "")
