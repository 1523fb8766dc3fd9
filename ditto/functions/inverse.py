"""1/v and 1/sqrt(v) of one positive number a row over many octaves: a first guess from tables, then Newton steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import multiply
from ditto.ops import Combine, OneHot
from ditto.ring.exact import ceil_log2

PRODUCT_RING, RESULT_RING = 64, 32  # of v y^d, and the most that y keeps of it

Entries = tuple[int, ...]


@dataclass(frozen=True)
class Tables:
    """Where the first guess comes from: tables of 2^index_bits entries on `ring`, each for so many octaves of v.

    The guess is off by 2^(octaves - index_bits) at most, half of it for the root, before a Newton step squares that.
    Neighbouring tables are joined `fan_in` at a time, 2 or 3: one round for each doubling, or tripling, of their
    number. The ring must hold y^2, for the root y^3.
    """

    index_bits: int = 7
    octaves: int = 4
    fan_in: int = 2
    ring: int = PRODUCT_RING

    @property
    def size(self) -> int:
        return 1 << self.index_bits

    @property
    def first(self) -> int:
        """The smallest index that a table answers; below it the next one does, 2^octaves times finer."""
        return (self.size >> self.octaves) - 1


@dataclass(frozen=True)
class _Function:
    """y = v^-1 (d = 2) or v^-1/2 (d = 3) up to `most`, with `frac` fraction bits.

    Newton's step is y <- (d y - v y^d) / (d - 1) for both.
    """

    d: int
    frac: int
    most: float

    @classmethod
    def of(cls, root: bool, lo: float, frac: int) -> _Function:
        """For v >= lo; `most` is the value at lo / 2, since indices are rounded."""
        return cls(3, frac, 1 / math.sqrt(lo / 2)) if root else cls(2, frac, 2 / lo)

    def at(self, v: float) -> float:
        return min(1 / math.sqrt(v) if self.d == 3 else 1 / v, self.most)

    def power(self, y: float) -> float:
        """y^d."""
        return y * y * y if self.d == 3 else y * y


@dataclass(frozen=True)
class _Guess:
    """What one table, or several joined, say of v: [y], [y^d] and the bit [finer]: 1 where only a finer one knows.

    y and y^d are 0 there.
    """

    y: Wire
    power: Wire
    finer: Wire


def inverse_power(
    b: Builder,
    v: Wire,
    lo: float,
    hi: float,
    *,
    root: bool,
    frac: int,
    tables: Tables = Tables(),
    second_step: bool = False,
    alongside: tuple[Wire, ...] = (),
) -> tuple[Wire, list[Wire]]:
    """[v^-1], or with `root` [v^-1/2], for lo <= v <= hi, one number a row; and the wires `alongside`, opened.

    The result has `frac` fraction bits (the root one more), on 32 bits or what truncation leaves of 64. 2 rounds, one
    for each joining (see `Tables`), two for a second step.

    1. Cut v to the index bits for each table, coarsest first; open the indices, v, and what goes alongside: one round.
    2. One-hot vectors of the indices, dealt, give [y], [y^d] and [finer] of each table, with d = 2, for the root 3.
    3. Join neighbours until one is left: Y + I Y' and I I', with I the [finer] of the coarse one: one round each time.
    4. Newton's step y <- (d y - v y^d) / (d - 1): y^d is opened, its product with v extends both: one round.
    5. With `second_step` (more digits; not for the root): y <- 2 y - v y y, two rounds.
    Raises ValueError for a second step of the root. (Newton's iteration as in CrypTen, without its comparisons.)
    """
    if root and second_step:
        raise ValueError("a second step of the root")
    f = _Function.of(root, lo, frac)
    # 1
    shifts = table_shifts(v, lo, hi, tables)
    indices = [b.truncate(v, shift, tables.index_bits, bound=0.0) for shift in shifts]
    opened = b.open(*indices, v, *alongside)
    indices, v, others = opened[: len(shifts)], opened[len(shifts)], opened[len(shifts) + 1 :]
    b.watch(v, 0.0, hi)  # beyond, an index has gone round
    # 2
    guesses = [_look_up(b, index, f, tables, finest=index is indices[-1]) for index in indices]
    # 3
    while len(guesses) > 1:
        guesses = _join(b, guesses, tables.fan_in)
    (guess,) = guesses
    # 4
    if second_step:  # which takes v on the whole ring, too
        v, power = b.open(b.extend(v, PRODUCT_RING), guess.power)
        product = multiply(b, v, power, PRODUCT_RING, bound=f.most)
    else:
        (power,) = b.open(guess.power)
        product = multiply(b, v, power, PRODUCT_RING, bound=f.most)
    drop = product.frac - frac
    y = _step(b, f, guess.y, b.truncate(product, drop, min(RESULT_RING, PRODUCT_RING - drop)))
    if root:
        y = b.retype(y, frac=frac + 1)
    # 5
    if second_step:
        (narrow,) = b.open(y)
        (wide,) = b.open(b.extend(narrow, PRODUCT_RING))
        product = b.product3(wide, wide, v, f.most)
        y = _step(b, f, y, b.truncate(product, product.frac - frac))
    return y, others


def table_shifts(v: Wire, lo: float, hi: float, tables: Tables) -> list[int]:
    """By how many bits v is cut for the index of each table, coarsest first."""
    # the largest index stays one below 2^n - 1, since truncation may add one
    shifts = [max(0, ceil_log2(math.ldexp(hi, v.frac) / (tables.size - 2)))]
    while shifts[-1] > 0 and math.ldexp(lo, v.frac - shifts[-1]) < tables.first:
        shifts.append(max(0, shifts[-1] - tables.octaves))
    return shifts


@functools.cache
def _entries(f: _Function, tables: Tables, unit: int, finest: bool) -> tuple[Entries, Entries, Entries]:
    """y, y^d and [finer] at v = i 2^unit for every index i; cached, since every stage of a job asks again.

    The finest table answers for the smallest indices, too: nobody is finer.
    A truncation may leave an index one too large, so a table holds the function at the index itself.
    """
    start = 0 if finest else tables.first
    at = [math.ldexp(max(i, 0.5), unit) for i in range(tables.size)]
    y = [f.at(v) if i >= start else 0.0 for i, v in enumerate(at)]
    return (
        tuple(round(math.ldexp(g, f.frac)) for g in y),
        tuple(round(math.ldexp(f.power(g), f.d * f.frac)) for g in y),
        tuple(int(i < tables.first) for i in range(tables.size)),
    )


def _look_up(b: Builder, index: Wire, f: _Function, tables: Tables, finest: bool) -> _Guess:
    """An opened index (whose fraction bits say what it stands for) -> what its table says. No round."""
    y, power, finer = _entries(f, tables, -index.frac, finest)
    ring = tables.ring
    one_hot = OneHot(index.shape, tables.index_bits, ring)
    (hot,) = b.emit(one_hot, [index], [(ring, 0, (*index.shape, tables.size), 1.0)])

    def table(column: Entries, frac: int, bound: float) -> Wire:
        return b.emit(Combine(ring, column), [hot], [(ring, frac, index.shape, bound)])[0]

    return _Guess(table(y, f.frac, f.most), table(power, f.d * f.frac, f.power(f.most)), table(finer, 0, 1.0))


def _step(b: Builder, f: _Function, y: Wire, product: Wire) -> Wire:
    """d y - v y^d, from [y] and [v y^d] with equal fraction bits."""
    difference = b.add(b.affine(y, f.d, 0, f.frac), b.affine(product, -1, 0, f.frac), bound=3 * f.most)
    return b.retype(difference, bound=f.most)


def _join(b: Builder, guesses: list[_Guess], fan_in: int) -> list[_Guess]:
    """Join neighbours, coarse to fine, `fan_in` at a time; all of one call share a round."""
    groups = [guesses[i : i + fan_in] for i in range(0, len(guesses), fan_in)]
    factors: list[Wire] = []
    for coarse, *others in groups:
        if others:
            factors += [coarse.finer, *(wire for g in others for wire in (g.y, g.power, g.finer))]
    opened = iter(b.open(*factors))
    return [_join_group(b, group, opened) if len(group) > 1 else group[0] for group in groups]


def _join_group(b: Builder, group: list[_Guess], opened: Iterator[Wire]) -> _Guess:
    """Y + I Y' + I I' Y'', y^d likewise, and I I' I''. A sum is no larger than its terms: all but one are 0."""
    coarse = group[0]
    gates = [next(opened)]
    y, power = [coarse.y], [coarse.power]
    for _ in group[1:]:
        y.append(_gated(b, gates, next(opened)))
        power.append(_gated(b, gates, next(opened)))
        gates.append(next(opened))
    total = b.add(*y, bound=coarse.y.bound), b.add(*power, bound=coarse.power.bound)
    return _Guess(*total, _gated(b, gates[:-1], gates[-1]))


def _gated(b: Builder, gates: list[Wire], x: Wire) -> Wire:
    """x under one or two gates, which are 0 or 1."""
    return b.product(gates[0], x) if len(gates) == 1 else b.product3(gates[0], gates[1], x, bound=x.bound)
