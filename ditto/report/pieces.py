"""What the report's sections are made of: figures, bars, axes, tables. All text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

Bar = tuple[str, float, float, str]  # class, start, length, what to say about it


def size(n: float) -> str:
    """Bytes for people, in powers of ten as networks count."""
    for unit in ("B", "kB", "MB"):
        if n < 999.5:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} GB"


def data(value: float, shown: str) -> str:
    """A figure: the report's own number, and how it is shown."""
    return f'<data value="{value!r}">{escape(shown)}</data>'


def seconds(value: float) -> str:
    return data(value, f"{value:.2f}" if value >= 0.995 or value == 0 else f"{value:.3f}")


def milliseconds(value: float) -> str:
    """A figure in seconds, shown in milliseconds."""
    return data(value, f"{1000 * value:.2f}")


def nbytes(value: int) -> str:
    return data(value, size(value))


def count(value: int) -> str:
    return data(value, f"{value:,}")


def rect(kind: str, at: float, wide: float, top: float, tall: float, said: str = "") -> str:
    """A rectangle; `at` and `wide` are fractions of the line's width, `top` and `tall` pixels."""
    place = f'x="{100 * at:.3f}%" y="{top:g}" width="{100 * max(wide, 0):.3f}%" height="{tall:g}"'
    title = f"<title>{escape(said)}</title>" if said else ""
    return f'<rect class="{kind}" {place}>{title}</rect>'


def bar(parts: Iterable[Bar], full: float) -> str:
    """A cell with rectangles on a line that stands for 0 to `full`."""
    rects = (rect(kind, at / full, wide / full, 2, 12, said) if full else "" for kind, at, wide, said in parts)
    return f'<td class="bar"><svg width="100%" height="16">{"".join(rects)}</svg></td>'


def axis(start: float, end: float) -> str:
    """Seconds from `start` to `end` at round steps: marks of 18 pixels' height; nothing for no time at all."""
    full = end - start
    if full <= 0:
        return ""
    power = 10 ** math.floor(math.log10(full / 8))
    step = next(power * k for k in (1, 2, 5, 10) if full / (power * k) <= 8)
    marks = []
    for i in range(math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9) + 1):
        at = (i * step - start) / full
        anchor = "start" if at < 0.02 else "end" if at > 0.95 else "middle"
        marks.append(
            f'<line x1="{100 * at:.3f}%" x2="{100 * at:.3f}%" y1="0" y2="4"/>'
            f'<text x="{100 * at:.3f}%" y="15" text-anchor="{anchor}">{i * step:g} s</text>'
        )
    return f'<svg width="100%" height="18">{"".join(marks)}</svg>'


def table(name: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return f'<div class="wide"><table id="{name}">{head and f"<tr>{head}</tr>"}{"".join(rows)}</table></div>'


def row(label: str, cells: Iterable[str], kind: str = "") -> str:
    body = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{kind}"><td>{escape(label)}</td>{body}</tr>'


def keys(*pairs: tuple[str, str]) -> str:
    """A legend: (colour, what it stands for)."""
    boxes = (f'<span><b style="background: var(--{kind})"></b>{text}</span>' for kind, text in pairs)
    return f'<p class="soft keys">{" ".join(boxes)}</p>'
