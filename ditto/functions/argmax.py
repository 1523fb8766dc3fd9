"""The place of the largest entry of a row, by a tournament in which many meet at once."""

from __future__ import annotations

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import b2a, less, minus, mux
from ditto.ops import AddStarts, Affine, Combine, Differences, IsZero, Losses, Windows

FANS = (8, 32, 256)
RING = 32


def argmax(b: Builder, x: Wire, fans: tuple[int, ...] = FANS) -> Wire:
    """[x], [B, V] on any type -> [index of the largest entry of each row], [B] on (32, 0); of equals the first.

    Exact for |x| < 2^(l-2). At a level, n candidates in windows of k (the last overlaps: whoever meets twice
    ties with itself and keeps its place), k the next of `fans`, or n once that is at most the last of them:
    1. Open x, and i, the candidates' indices (public in the first level).
    2. d_pq = x_p - x_q for all pairs p < q of a window: opened, too. bit = [d_pq < 0] by `Compare`.
    3. losses_p on few bits by `B2A`, opened; hot_p = [losses_p = 0] by `IsZero`: one of each window.
    4. [x] <- sum_p hot_p x_p, [i] <- sum_p hot_p i_p, without a further round.
    For k = 2 the bit is hot_1 itself: [x] <- [x_0] - [bit d], [i] alike, and no 3. Rounds of a level: 1 + C + 2
    (k = 2: 1 + C), where C is those of `Compare`: 3 on rings of 10 to 17 bits, 4 up to 33.
    50,257 entries of 16 bits: 18 rounds, 0.50 MB online, 3.24 MB dealt; of 32 bits 21 rounds, 1.01 MB, 5.92 MB
    (so truncate first, where 16 bits are exact enough). Pairs alone, fans (2,): 64 rounds, 0.45 MB, 0.92 MB;
    (8,): 34, 0.41, 2.38; (16,): 24, 0.58, 4.22; (225,): 12, 5.83, 53.8.
    Raises RangeError where twice x's bound does not fit its ring. Values outside their bound can give any number,
    also one that is no index: who reconstructs it checks. (All pairs in one step, more to a meeting the fewer
    candidates are left: Valiant 1975.)
    """
    b.fits(x, 2)
    width = x.shape[1]
    if width == 1:
        zero = Affine(RING, 0)
        return b.emit(zero, [b.view(x, shape=x.shape[:1])], [(RING, 0, x.shape[:1], 0.0)])[0]
    index: Wire | None = None
    level = 0
    while (n := x.shape[1]) > 1:
        k = n if n <= fans[-1] else fans[min(level, len(fans) - 1)]
        x, index = (_pairs if k == 2 else _windows)(b, x, index, k, width - 1.0)
        level += 1
    assert index is not None
    return b.view(index, shape=x.shape[:1])


def _split(b: Builder, x: Wire, k: int) -> Wire:
    """[B, n] -> [B, windows, k]."""
    rows, n = x.shape
    return b.emit(Windows(k), [x], [(x.ring, x.frac, (rows, -(-n // k), k), x.bound)])[0]


def _differences(b: Builder, x: Wire) -> Wire:
    shape = (*x.shape[:2], x.shape[2] * (x.shape[2] - 1) // 2)
    return b.emit(Differences(x.ring), [x], [(x.ring, x.frac, shape, 2 * x.bound)])[0]


def _first(b: Builder, hot: Wire, n: int, k: int, bound: float) -> Wire:
    """Indices after the first level: [sum_p p hot_p] and where the window begins."""
    place = b.emit(Combine(RING, tuple(range(k))), [hot], [(RING, 0, hot.shape[:2], k - 1.0)])[0]
    return b.emit(AddStarts(n, k, RING), [place], [(RING, 0, hot.shape[:2], bound)])[0]


def _windows(b: Builder, x: Wire, index: Wire | None, k: int, bound: float) -> tuple[Wire, Wire]:
    """One level of fan-in k: (winners, their indices), [B, ceil(n / k)] each."""
    n, few = x.shape[1], (k - 1).bit_length()
    opened = [_split(b, wire, k) for wire in b.open(x, *([] if index is None else [index]))]
    (bit,) = less(b, _differences(b, opened[0]), [0.0])
    lost = b2a(b, bit, few)
    # counted modulo 2^few, where k - 1 losses still differ from none
    (losses,) = b.emit(Losses(k, few), [lost], [(few, 0, opened[0].shape, 0.0)])
    (count,) = b.open(losses)
    (hot,) = b.emit(IsZero(count.shape, few), [count], [(1, 0, count.shape, 1.0)])

    def chosen(wire: Wire) -> Wire:
        return b.view(b.sum(mux(b, hot, wire), 2, bound=wire.bound), shape=wire.shape[:2])

    places = _first(b, b2a(b, hot, RING), n, k, bound) if index is None else chosen(opened[1])
    return chosen(opened[0]), places


def _pairs(b: Builder, x: Wire, index: Wire | None, k: int, bound: float) -> tuple[Wire, Wire]:
    """One level of fan-in 2: (winners, their indices), [B, ceil(n / 2)] each."""
    n, half = x.shape[1], (x.shape[0], -(-x.shape[1] // 2))
    closed = [x] if index is None else [x, index]
    differences = [_differences(b, _split(b, wire, 2)) for wire in b.open(*closed)]
    (bit,) = less(b, differences[0], [0.0])

    def chosen(wire: Wire, d: Wire) -> Wire:
        left = b.view(_split(b, wire, 2), slices=((2, 0, 1),))
        return b.view(b.add(left, minus(b, mux(b, bit, d)), bound=wire.bound), shape=half)

    if index is not None:
        return chosen(x, differences[0]), chosen(index, differences[1])
    place = b.view(b2a(b, bit, RING), shape=half)
    return chosen(x, differences[0]), b.emit(AddStarts(n, k, RING), [place], [(RING, 0, half, bound)])[0]
