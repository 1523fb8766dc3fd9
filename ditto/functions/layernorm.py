"""LayerNorm of rows: one opening of the row serves the square and the product, one of the result what reads it."""

from __future__ import annotations

import math

from ditto.engine.program import Builder, Wire
from ditto.errors import RangeError
from ditto.functions.fixed import FixedPoint, minus, multiply, square, sum_of_squares, truncate_to, widen
from ditto.functions.inverse import inverse
from ditto.functions.linear import WEIGHT_FRAC, fraction_bits, linear
from ditto.ops import MatmulWeight
from ditto.ring.exact import ceil_log2, floor_log2

RESULT = FixedPoint(32, 8)
RESIDUAL = FixedPoint(24, 12)  # gamma z + beta, with fewer fraction bits where the next sum needs the room
SPARE = 1  # bits of a residual sum's ring beyond its bound
MEAN_EXTRA = 4  # fraction bits of a row's mean beyond the row's own
MEAN_WEIGHT_FRAC = 18  # of gamma / H, where the mean's bound leaves room
FEWEST_BYTES, BALANCED, FEWEST_ROUNDS = 0, 10, 13  # the most index bits of one table of lines for 1 / sqrt(v)
BY_TREE = None  # in the place of tables
DEVIATION_RING = 26  # of 1 / sqrt(v) at least: what a wider ring adds to tables is less than its product with x saves
DEVIATION_FRAC = 12  # fraction bits of an opened 1 / sqrt(v) at least, where it has them
SQUARE_RINGS = (40, 48, 56, 64)
STANDARDISED_RINGS = (48, 56, 64)  # of c y before its truncation
RESOLVED = 6  # bits below the least deviation that a stream, or what is normalized of it, resolves at least
PROJECTED_DIGITS = 10  # bits of x W below what makes 1 of its product with the largest y
OPENED_DIGITS = 7  # bits of the smallest y that its product with c keeps at least


def nearest_log2(width: int) -> int:
    """log2 of a positive integer, rounded: the k with 2^(2k - 1) < width^2 < 2^(2k + 1)."""
    return ((2 * width * width).bit_length() - 1) // 2


def variance_scale(width: int) -> float:
    """v / var: v is the sum of H squares divided by a power of two in the place of H."""
    return math.ldexp(width, -nearest_log2(width))


def deviation_scale(width: int) -> float:
    """1/sqrt(var) = deviation_scale / sqrt(v): a factor that weights absorb."""
    return math.sqrt(variance_scale(width))


def _square_ring(c: Wire, limits: tuple[float, float]) -> int:
    need = 2 * c.frac + ceil_log2(limits[1] * c.shape[1]) + 2  # v is extended
    return _ring(SQUARE_RINGS, need)


def _ring(rings: tuple[int, ...], need: int) -> int:
    """The smallest of `rings` with so many bits. Raises RangeError."""
    found = next((ring for ring in rings if ring >= need), None)
    if found is None:
        raise RangeError(f"a LayerNorm of such variances takes {need} bits; its widest type has {rings[-1]}")
    return found


def _scaled_variance(b: Builder, c: Wire, mean: Wire | None, limits: tuple[float, float], eps: float) -> Wire:
    """c by `widen` -> [v] = [(sum c^2 - H mean^2) / 2^k + eps H / 2^k], k = log2 H rounded, on the ring that it needs.

    No round. What the two terms exceed the ring by vanishes in their difference. mean: of each row, opened; None
    where it is 0.
    """
    width = c.shape[1]
    scale, limit, ring = variance_scale(width), limits[1] * width, _square_ring(c, limits)
    total = sum_of_squares(b, c, ring, limit)
    if mean is not None:
        more = 2 * (mean.frac - c.frac)
        squares = b.affine(square(b, mean, ring + more, bound=limit / width), -width, 0, 2 * mean.frac, bound=limit)
        total = b.add(total, b.truncate(squares, more, ring), bound=limit)
    v = b.retype(total, frac=total.frac + nearest_log2(width), bound=limits[1] * scale)
    return b.affine(v, 1, eps * scale, v.frac)


def _opened_digits(hi: float) -> int:
    """Fraction bits that leave the smallest y OPENED_DIGITS."""
    return max(DEVIATION_FRAC, OPENED_DIGITS + -(-ceil_log2(hi) // 2))


def _inverse_deviation(
    b: Builder, c: Wire, means: list[Wire], limits: tuple[float, float], eps: float, single: int | None
) -> Wire:
    """c by `widen`, and its mean if it has one -> [y], with as many fraction bits as its products need."""
    v = _scaled_variance(b, c, means[0] if means else None, limits, eps)
    lo, hi = (limit * variance_scale(c.shape[1]) for limit in limits)
    y, _ = inverse(b, v, lo, hi, root=True, single=single, ring=DEVIATION_RING)
    return truncate_to(b, y, min(y.frac, _opened_digits(hi)))


def standardise(
    b: Builder,
    x: Wire,
    limits: tuple[float, float],
    eps: float,
    ring: int,
    single: int | None = BALANCED,
    mean: Wire | None = None,
) -> Wire:
    """[x] (l, f), shape [rows, H], and [mean] (l', f'), [rows, 1] -> [(x - mean) / sqrt(var + eps) / s] on (`ring`, 8).

    s = deviation_scale(H). Without `mean` it is 0. gamma and beta belong to what follows. limits: range of var, from
    calibration. 3 rounds where one table of 2^single entries at most, 3 index bits more than its octaves, covers them,
    or BY_TREE, else 4. Error: that of y, relative, and at most 2 ulp.
    1. Open x, and mean beside it; what extends x is dealt once for both products.
    2. v = (sum x^2 - H mean^2) / 2^k, k = log2 H rounded: local. y = 1/sqrt(v) by `inverse`.
    3. Open y; its products with x and mean extend all three; truncate.
    (PUMA section 4.3 for the order of steps.)
    """
    # 1
    c, *means = b.open(x, *(() if mean is None else (mean,)))
    digits = _opened_digits(limits[1] * variance_scale(c.shape[1]))
    most_wide = _ring(STANDARDISED_RINGS, ring + c.frac + digits - RESULT.frac)
    c = widen(b, c, max(most_wide, _square_ring(c, limits)))
    # 2, 3
    (y,) = b.open(_inverse_deviation(b, c, means, limits, eps, single))
    frac = c.frac + y.frac
    wide = _ring(STANDARDISED_RINGS, ring + frac - RESULT.frac)
    most = math.sqrt(2.0 * c.shape[1])  # |c| <= sqrt(H var), var at most twice v
    z = multiply(b, c, y, wide, bound=most, widened=True)
    for mean in means:
        more = mean.frac - c.frac
        shift = b.truncate(multiply(b, mean, y, wide + more, bound=most), more, wide)
        z = b.add(z, minus(b, shift), bound=most)
    return b.truncate(z, frac - RESULT.frac, ring)


def standardised_linear(
    b: Builder,
    x: Wire,
    limits: tuple[float, float],
    eps: float,
    ring: int,
    single: int | None,
    name: str,
    columns: int,
    bound: float,
) -> Wire | None:
    """[x] (l, f), shape [rows, H], without a mean -> what `linear` gives of z by `standardise` on (`ring`, 8), opened:
    [z W + bias], |result| <= bound. 3 rounds or more, one less than both. None where x W has no room.

    y is one number a row, so z W = (x W) y, and x W need not wait for it. It costs an opening of all columns in the
    place of z's, which is little for few rows. Error: as theirs, and 2^-PROJECTED_DIGITS.
    1. Open x.
    2. [y] as `standardise` has it. Beside its first opening: x extended, by the first, and opened on the ring.
    3. [x W]; open it, and y; the product extends both; truncate; add the bias.
    """
    weight_frac = fraction_bits(bound, ring - RESULT.frac, WEIGHT_FRAC)
    lo, hi = (limit * variance_scale(x.shape[1]) for limit in limits)
    size = 2 * bound * math.sqrt(hi)  # the bias is in the bound: without it, the rest is at most twice that
    frac = fraction_bits(size, ring - weight_frac, x.frac)
    cut = x.frac - frac
    if frac < RESOLVED - floor_log2(lo) // 2 or x.ring >= ring + cut:
        return None
    # 1
    (c,) = b.open(x)
    # 2
    y = _inverse_deviation(b, widen(b, c, _square_ring(c, limits)), [], limits, eps, single)
    wide = b.extend(c, ring + cut)
    (factor,) = b.open(b.truncate(wide, cut, ring) if cut else wide)
    # 3
    weight = b.weight(f"{name}.weight", ring, weight_frac, (x.shape[1], columns), "matrix")
    op = MatmulWeight(x.shape[0], x.shape[1], columns, ring)
    (product,) = b.emit(op, [factor, weight], [(ring, frac + weight_frac, (x.shape[0], columns), size)])
    result = RESULT.frac + weight_frac
    most = min(64 - ring + result - y.frac, PROJECTED_DIGITS - floor_log2(lo) // 2)
    product, y = b.open(truncate_to(b, product, min(product.frac, most)), y)
    cut = product.frac + y.frac - result
    z = b.truncate(multiply(b, product, y, ring + cut, bound=2 * bound), cut, ring)
    return b.add(z, b.weight(f"{name}.bias", ring, result, (columns,), "share"), bound=bound)


def residual_type(bound: float) -> FixedPoint:
    """Of a residual sum up to `bound`: RESIDUAL's fraction bits on the ring that leaves SPARE bits above the bound; on
    RESIDUAL's at most, with fewer where it takes that."""
    frac = fraction_bits(bound, RESIDUAL.ring, RESIDUAL.frac)
    ring = frac + 2 + ceil_log2(bound) + SPARE
    return FixedPoint(min(ring, RESIDUAL.ring), frac)


def scale_and_shift(b: Builder, z: Wire, name: str, bound: float, fxp: FixedPoint) -> Wire:
    """Opened z -> [gamma' z + beta] on z's ring, with as many fraction bits as leave those of `fxp` on its ring
    after truncation. gamma' = gamma deviation_scale(H), under a fixed mask. No round."""
    cut, frac = z.ring - fxp.ring, fxp.frac
    gamma = b.weight(f"{name}.gamma", z.ring, frac + cut - z.frac, (z.shape[1],), "masked", bound=0.0)
    scaled = multiply(b, z, gamma, z.ring, bound=bound)
    beta = b.weight(f"{name}.beta", z.ring, scaled.frac, (z.shape[1],), "share")
    return b.add(scaled, beta, bound=bound)


def layernorm(b: Builder, z: Wire, name: str, bound: float) -> Wire:
    """Opened z by `standardise` -> LayerNorm's result [gamma' z + beta], with 8 fraction bits. No round.

    Error: 2 ulp, and gamma times that of z.
    """
    return truncate_to(b, scale_and_shift(b, z, name, bound, RESIDUAL), RESULT.frac)


def layernorm_residual(b: Builder, z: Wire, name: str, bound: float, sum_bound: float) -> tuple[Wire, Wire]:
    """Opened z by `standardise` -> LayerNorm's result [gamma' z + beta] in the type of a sum |sum| <= sum_bound, and
    [its mean by row], [rows, 1], with MEAN_EXTRA more fraction bits. No round.

    The next `standardise` takes the sum and the mean. Error: 1 ulp, and gamma times that of z.
    1. The product with gamma', beta added, truncated.
    2. The mean is z times gamma' / H and the mean of beta: a linear layer of one column.
    """
    fxp = residual_type(sum_bound)
    # 1
    result = scale_and_shift(b, z, name, bound, fxp)
    result = b.truncate(result, result.frac - fxp.frac, fxp.ring)
    # 2
    mean = linear(b, z, f"{name}.mean", 1, bound, MEAN_WEIGHT_FRAC)
    return result, truncate_to(b, mean, fxp.frac + MEAN_EXTRA)
