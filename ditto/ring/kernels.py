"""Exact products over Z_2^l with a right-hand matrix that is prepared once, by the kernel that is fastest here.

Every kernel is exact, so that processes may choose differently:
- `int8`: x = sum_a x_a 256^a with balanced digits x_a in [-128, 127], and x w = sum_s 256^s sum_{a+b=s} x_a w_b, of
  which only s < l/8 matters. For processors with int8 dot products (VNNI, AMX).
- `float64`: the same in base 2^22 or less, where a sum of products stays below 2^53. For wide rings elsewhere.
- `integer`: torch's own integer product, which wraps with its carrier as the ring does.
Digit pairs of equal weight are concatenated along K, so that a product takes one call for each digit of the result.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import numpy as np
import torch

from ditto.ring.digits import digits_of, half, matrix_of, rows_of_digits, subtract
from ditto.ring.malloc import apart
from ditto.ring.ring import carrier, cast, signed

Tensor = torch.Tensor
FEW = 4  # rows or columns up to which a product is a matter of reading once, which whole integers serve best
SPARSE = 100  # elements for each that is not zero, from which a plain product picks rows
LONG = 4096  # of K at a time in integers: torch does not block for the cache, and a vocabulary took three times as long
COLUMNS = 1024  # of a result in float64 digits at a time
CARRIERS = (16, 32, 64)  # of rings, in bits
KERNELS = ("integer", "float64", "int8")
chosen: dict[int, str] = {}  # what `kernel_of` found in this process so far
LEAST = 8  # bits of a digit beside which a whole number is multiplied


def split_digits(x: Tensor, bits: int, base: int) -> list[Tensor]:
    """Balanced base-2^base digits of x, least significant first: ceil(bits/base) tensors of x's shape.

    In int32, each in [-2^(base-1), 2^(base-1)).
    """
    digits = []
    for _ in range(-(-bits // base)):
        low = ((x.to(torch.int64) << (64 - base)) >> (64 - base)).to(torch.int32)
        digits.append(low)
        # x - low is a multiple of the base; the arithmetic shift keeps it exact modulo the ring
        x = (x - low.to(x.dtype)) >> base
    return digits


@dataclass(frozen=True)
class Digits:
    """How a kernel takes numbers apart: `count` digits of `base` bits in `dtype`; sums of `longest` terms are exact.

    Results are made for `columns` columns at a time, so that what is converted and shifted stays in cache.
    """

    base: int
    count: int
    dtype: torch.dtype
    longest: int
    columns: int

    def side_by_side(self, x: Tensor, bits: int) -> Tensor:
        """The digits of x [M, K], least significant first: [M, count K] in `dtype`."""
        if self.dtype == torch.int8:
            return rows_of_digits(x, bits)
        return torch.cat(split_digits(x, bits, self.base), 1).to(self.dtype)

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        """x w of digits in `dtype`, as integers: int32 of int8, else int64."""
        if self.dtype != torch.int8:
            return torch.matmul(x, w).to(torch.int64)
        if x.shape[1] == 1:  # torch reads the strides of a single row wrongly, on processors with VNNI alone
            return x.to(torch.int32) * w.to(torch.int32)
        return torch._int_mm(x, w)


def _digits(kernel: str, bits: int) -> Digits:
    if kernel == "int8":
        # int32 sums: up to 32 bits their wrap-around is harmless; beyond, 8 digit pairs * 8192 * 2^14 = 2^30 < 2^31
        return Digits(8, -(-bits // 8), torch.int8, 8192 if bits > 32 else 1 << 40, 1 << 40)
    count = -(-bits // 22)
    base = -(-bits // count)
    # pairs of full digits in the longest sum; of 64 bits the top digit has 20: 2^42 + 2 * 2^40 is less than 2 * 2^42
    pairs = 2 if bits == 64 else count
    return Digits(base, count, torch.float64, (1 << (53 - 2 * (base - 1))) // pairs, COLUMNS)


def carrier_class(bits: int) -> int:
    """16, 32 or 64: rings that share a carrier share the choice of a kernel."""
    return 16 if bits <= 16 else 32 if bits <= 32 else 64


def _accumulator(bits: int) -> torch.dtype:
    return torch.int32 if bits <= 32 else torch.int64


@functools.cache
def kernel_of(size: int) -> str:
    """The fastest kernel that is exact on this machine, for rings of a carrier class: 16, 32 or 64.

    Kernels are timed once in a process, with the threads that it has then, on a product of 64 x 768 by 768 x 256: some
    lose on smaller ones what they win on a layer's. One thread is timed by the processor's time, several by the
    clock's, the least of five each. Those that this build of torch lacks, or that saturate (int8 without VNNI on some
    processors), are passed over.
    """
    x, w, want = _extremes(size)
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    best, best_seconds = "integer", float("inf")
    for name in KERNELS:
        matrix = RingMatrix(w, size, name)
        if not _gives(matrix, x, want):
            continue
        seconds = []
        for _ in range(5):
            start = clock()
            matrix.product(x)
            seconds.append(clock() - start)
        if min(seconds) < best_seconds:
            best, best_seconds = name, min(seconds)
    chosen[size] = best
    return best


def measure() -> None:
    """Choose all kernels now, not when a model or a job needs them."""
    for size in CARRIERS:
        kernel_of(size)


def exact_here(kernel: str, size: int) -> bool:
    """Does a kernel give the exact product of extreme operands in this process?"""
    x, w, want = _extremes(size)
    return _gives(RingMatrix(w, size, kernel), x, want)


def _extremes(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [64, 768], w [768, 256], and x w as int64 with its bits at the top: of a timing, no secret."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-(2**62), 2**62, shape, generator=generator) for shape in ((64, 768), (768, 256)))
    # the extremes: the ring's own, and what is extreme in base 256, where kernels without exact sums saturate
    x[0], w[:, 0] = -(1 << (size - 1)), -(1 << (size - 1))
    x[1], w[:, 1] = -0x7F7F7F7F7F7F7F80, 0x7F7F7F7F7F7F7F7F
    x[2], w[:, 2] = 0x7F7F7F7F7F7F7F7F, -0x7F7F7F7F7F7F7F80
    return cast(x, size), w, torch.matmul(x, w) << (64 - size)


def _gives(matrix: RingMatrix, x: Tensor, want: Tensor) -> bool:
    try:
        return torch.equal(matrix.product(x).to(torch.int64) << (64 - matrix.bits), want)
    except RuntimeError:  # not built for this processor
        return False


class RingMatrix:
    """A right-hand matrix W [K, N] over Z_2^bits in the form that a kernel reads fastest.

    For digits: [w_top; ...; w_1; w_0] stacked along K, so that the digits of weight s are one slice of rows; K beyond
    what sums exactly is cut into blocks. Everything is stored column-major (W^T contiguous).
    """

    def __init__(self, w: Tensor, bits: int, kernel: str | None = None) -> None:
        self.rows, self.columns = w.shape
        few = self.columns <= FEW  # then taking x apart takes longer than the product
        self.bits, self.kernel = bits, kernel or ("integer" if few else kernel_of(carrier_class(bits)))
        self._whole: Tensor | None = None
        self._blocks: list[Tensor] = []
        if self.kernel == "integer":
            self._whole = _transposed(w.to(integer_carrier(bits)))
            return
        self._digits = digits = _digits(self.kernel, bits)
        for k in range(0, self.rows, digits.longest):
            part = w[k : k + digits.longest]
            if self.kernel == "int8":
                self._blocks.append(_stacked(digits_of(part, bits)))
            else:
                self._blocks.append(_transposed(torch.cat(split_digits(part, bits, digits.base)[::-1])))

    @classmethod
    def of_digits(cls, digits: Tensor, bits: int, kernel: str) -> RingMatrix:
        """The matrix of these balanced digits (`ditto.ring.digits`), for a kernel that can be `expanded`."""
        made = cls.__new__(cls)
        made.bits, made.kernel = bits, kernel
        made.columns, _, made.rows = digits.shape
        made._whole, made._blocks = None, []
        if kernel == "integer":
            made._whole = matrix_of(digits, bits).to(integer_carrier(bits)).t()
        else:
            made._digits = _digits(kernel, bits)
            made._blocks.append(_stacked(digits))
        return made

    @property
    def expanded(self) -> bool:
        """Is making such a matrix from digits little work beside its products?"""
        return self.kernel == "integer" or (self.kernel == "int8" and len(self._blocks) == 1)

    def less(self, digits: Tensor, first: int) -> RingMatrix:
        """W - T - H for the columns from `first` on, T of these digits (`ditto.ring.digits`), whose memory is used; of
        `expanded` matrices."""
        made = self.of_digits(digits, self.bits, self.kernel)
        columns = slice(first, first + made.columns)
        if self._blocks:
            subtract(self._blocks[0].t()[columns].view(digits.shape), digits)
        else:
            made._whole = self.keep_whole()[:, columns] - made.keep_whole() - half(self.bits)
        return made

    def keep_whole(self) -> Tensor:
        """Keep W itself beside its digits, for products with few rows: 4 or 8 more bytes a weight."""
        if self._whole is None:
            self._whole = _transposed(self.take(torch.arange(self.rows)))
        return self._whole

    def take(self, rows: Tensor) -> Tensor:
        """The rows of W at these places: [n, N] integers."""
        if self._whole is not None:
            return self._whole[rows]
        digits, dtype = self._digits, _accumulator(self.bits)
        w = torch.zeros((len(rows), self.columns), dtype=dtype)
        for at, packed in enumerate(self._blocks):
            height, (here,) = packed.shape[0] // digits.count, (rows // digits.longest == at).nonzero(as_tuple=True)
            for s in range(digits.count):
                part = packed[(digits.count - 1 - s) * height + rows[here] % digits.longest]
                w[here] += part.to(dtype) << (digits.base * s)
        return w

    def plain_product(self, x: Tensor) -> Tensor:
        """`product` for signed x in the clear, which may be one-hot rows, and is rarely as large as its ring."""
        if int(x.count_nonzero()) * SPARSE < x.numel():
            at, rows = x.nonzero(as_tuple=True)
            terms = self.take(rows)
            terms = terms * x[at, rows].to(terms.dtype)[:, None]
            return torch.zeros((x.shape[0], self.columns), dtype=terms.dtype).index_add_(0, at, terms)
        if self.bits > 32 and self._largest * float(x.abs().max()) * self.rows <= 2.0**53:
            left, parts = x.double(), self.keep_whole().split(COLUMNS, 1)  # type: ignore[no-untyped-call]
            return torch.cat([torch.matmul(left, part.double()).to(torch.int64) for part in parts], 1)
        return self.product(x)

    @functools.cached_property
    def _largest(self) -> float:
        """The largest |w|."""
        spare = 64 - self.bits
        return float(((self.take(torch.arange(self.rows)).to(torch.int64) << spare) >> spare).double().abs().max())

    def product(self, x: Tensor) -> Tensor:
        """Exact x W for x [M, K] ring integers: [M, N] in an integer type of at least `bits` bits."""
        whole = self._whole
        if whole is not None and (self.kernel == "integer" or x.shape[0] <= FEW):
            x = x.to(whole.dtype)
            if self.bits > 32 and x.shape[0] <= FEW:  # numpy's loop over 64-bit integers is three times torch's
                products = [np.einsum("nk,k->n", whole.t().numpy(), row) for row in x.numpy()]
                return torch.from_numpy(np.stack(products))
            out = x[:, :LONG] @ whole[:LONG]
            for k in range(LONG, self.rows, LONG):
                out += x[:, k : k + LONG] @ whole[k : k + LONG]
            return out
        digits = self._digits
        out = torch.zeros((x.shape[0], self.columns), dtype=_accumulator(self.bits))
        for at, packed in enumerate(self._blocks):
            rows, start = packed.shape[0] // digits.count, at * digits.longest
            left = digits.side_by_side(x[:, start : start + rows], self.bits)
            for column in range(0, self.columns, digits.columns):
                columns = slice(column, column + digits.columns)
                right, total = packed[:, columns].to(digits.dtype), out[:, columns]
                for s in range(digits.count):
                    part = digits.product(left[:, : (s + 1) * rows], right[(digits.count - 1 - s) * rows :])
                    total.add_(part, alpha=1 << (digits.base * s))
        return out


def _stacked(digits: Tensor) -> Tensor:
    """Digits [N, digits, K] as [digits K, N]."""
    return digits.view(digits.shape[0], -1).t()


def _transposed(w: Tensor) -> Tensor:
    """The same matrix with W^T contiguous, in memory of its own."""
    return apart((w.shape[1], w.shape[0]), w.dtype).copy_(w.t()).t()


def integer_carrier(bits: int) -> torch.dtype:
    """The integers in which torch multiplies elements of Z_2^bits."""
    return torch.int16 if bits <= 16 else _accumulator(bits)


def float_product(a: Tensor, b: Tensor, bits: int, size: int = 0) -> Tensor:
    """Exact a b over Z_2^bits of signed integers, by float64 alone: for devices without integer products. int64.

    |a| < 2^(size - 1), the ring if nothing else is said. b goes in digits of so few bits that a sum of products stays
    below 2^53; where that leaves next to none, a goes in two halves.
    """
    size = size or bits
    base = 53 - size + 2 - (a.shape[-1] - 1).bit_length()
    if base < LEAST:
        half = size // 2
        low = signed(a, half)
        high = float_product((a - low) >> half, b, bits, size - half + 1)
        return float_product(low, b, bits, half) + (high << half)
    left, out = a.double(), torch.zeros((), dtype=torch.int64, device=a.device)
    for i, digit in enumerate(split_digits(b, bits, base)):
        out = out + (torch.matmul(left, digit.double()).to(torch.int64) << (base * i))
    return out


def batched_product(a: Tensor, b: Tensor, bits: int) -> Tensor:
    """Exact a b over Z_2^bits for activations, a [..., M, K] by b [..., K, N], in the ring's carrier.

    Nothing is prepared ahead; the leading dimensions broadcast.
    """
    if a.device.type != "cpu":
        return float_product(signed(a, bits), signed(b, bits), bits).to(carrier(bits))
    digits, k = _digits("float64", bits), a.shape[-1]
    few = a.shape[-2] <= FEW  # then taking b apart takes longer than the product
    if bits <= 32 or few or kernel_of(64) != "float64" or k > digits.longest:
        dtype = integer_carrier(bits)
        return torch.matmul(a.to(dtype), b.to(dtype)).to(carrier(bits))
    left = torch.cat(split_digits(a, bits, digits.base), -1).double()
    right = torch.cat(split_digits(b, bits, digits.base)[::-1], -2).double()
    out = torch.zeros((), dtype=torch.int64)
    for s in range(digits.count):
        part = digits.product(left[..., : (s + 1) * k], right[..., (digits.count - 1 - s) * k :, :])
        out = out + (part << (digits.base * s))
    return out
