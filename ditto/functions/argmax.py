"""The place of the largest entry of a row, by a tournament in which many meet at once."""

from __future__ import annotations

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import FixedPoint, b2a, less, minus, mux
from ditto.ops import AddStarts, Affine, Combine, Differences, IsZero, Losses, Windows

FANS = (8, 32, 256)
INDEX = FixedPoint(32, 0)


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
        zero = Affine(INDEX.ring, 0)
        return b.emit(zero, [b.view(x, shape=x.shape[:1])], [(INDEX.ring, INDEX.frac, x.shape[:1], 0.0)])[0]
    index: Wire | None = None
    level = 0
    while (n := x.shape[1]) > 1:
        k = n if n <= fans[-1] else fans[min(level, len(fans) - 1)]
        x, index = _pairs(b, x, index) if k == 2 else _windows(b, x, index, k)
        level += 1
    assert index is not None
    return b.view(index, shape=x.shape[:1])


def _windows(b: Builder, x: Wire, index: Wire | None, k: int) -> tuple[Wire, Wire]:
    """One level of fan-in k: (winners, their indices), [B, ceil(n / k)] each. The first level has no index yet."""
    n = x.shape[1]
    # 1
    x_open, *index_open = [_split(b, wire, k) for wire in b.open(*_present(x, index))]
    # 2
    (bit,) = less(b, _differences(b, x_open), [0.0])
    # 3
    hot = _without_a_loss(b, bit, x_open)
    # 4
    if index_open:
        winners_index = _chosen(b, hot, index_open[0])
    else:  # hot_p times p, which is public
        hot_place = b2a(b, hot, INDEX.ring)
        places = Combine(INDEX.ring, tuple(range(k)))
        (place,) = b.emit(places, [hot_place], [(INDEX.ring, INDEX.frac, hot.shape[:2], k - 1.0)])
        winners_index = _in_row(b, place, n, k)
    return _chosen(b, hot, x_open), winners_index


def _pairs(b: Builder, x: Wire, index: Wire | None) -> tuple[Wire, Wire]:
    """The same for k = 2, where the bit of step 2 says who won and no 3 is needed."""
    n = x.shape[1]
    # 1
    opened = b.open(*_present(x, index))
    # 2
    d, *d_index = [_differences(b, _split(b, wire, 2)) for wire in opened]
    (bit,) = less(b, d, [0.0])
    # 4
    if index is not None:
        return _left_or_right(b, x, bit, d), _left_or_right(b, index, bit, d_index[0])
    place = b.view(b2a(b, bit, INDEX.ring), shape=d.shape[:2])  # 1 where the right one wins
    return _left_or_right(b, x, bit, d), _in_row(b, place, n, 2)


def _present(x: Wire, index: Wire | None) -> list[Wire]:
    """The wires that a level opens."""
    return [x] if index is None else [x, index]


def _split(b: Builder, x: Wire, k: int) -> Wire:
    """[B, n] -> [B, windows, k]."""
    rows, n = x.shape
    return b.emit(Windows(k), [x], [(x.ring, x.frac, (rows, -(-n // k), k), x.bound)])[0]


def _differences(b: Builder, x: Wire) -> Wire:
    """[B, windows, k] -> x_p - x_q for all p < q, [B, windows, k (k - 1) / 2]. Opened stays opened."""
    rows, windows, k = x.shape
    return b.emit(Differences(x.ring), [x], [(x.ring, x.frac, (rows, windows, k * (k - 1) // 2), 2 * x.bound)])[0]


def _without_a_loss(b: Builder, bit: Wire, x: Wire) -> Wire:
    """Who won all its meetings, given [x_p < x_q] for all p < q of windows x: an opened bit, one of each window."""
    k = x.shape[2]
    ring = (k - 1).bit_length()  # counted modulo 2^ring, where k - 1 losses still differ from none
    (losses,) = b.emit(Losses(k, ring), [b2a(b, bit, ring)], [(ring, 0, x.shape, 0.0)])
    (count,) = b.open(losses)
    return b.emit(IsZero(count.shape, ring), [count], [(1, 0, count.shape, 1.0)])[0]


def _chosen(b: Builder, hot: Wire, x: Wire) -> Wire:
    """sum_p hot_p x_p over each window: [B, windows]."""
    return b.view(b.sum(mux(b, hot, x), 2, bound=x.bound), shape=x.shape[:2])


def _left_or_right(b: Builder, x: Wire, bit: Wire, d: Wire) -> Wire:
    """[x_0] - [bit d] of each pair of x: x_1 where the bit is 1."""
    left = b.view(_split(b, x, 2), slices=((2, 0, 1),))
    return b.view(b.add(left, minus(b, mux(b, bit, d)), bound=x.bound), shape=d.shape[:2])


def _in_row(b: Builder, place: Wire, n: int, k: int) -> Wire:
    """Places in windows of k -> places in their row of n: where each window begins is added."""
    return b.emit(AddStarts(n, k, INDEX.ring), [place], [(INDEX.ring, INDEX.frac, place.shape, n - 1.0)])[0]
