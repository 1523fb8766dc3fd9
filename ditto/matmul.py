"""Ring matrix products through int8 digits, with a measured choice of engine.

x in Z_2^l is written in balanced base 256, x = sum_a x_a 256^a with x_a in [-128, 127]; then
x w = sum_s 256^s sum_{a+b=s} x_a w_b, and only s < l/8 matters. The digit pairs of equal weight are
concatenated along K, so a product takes l/8 int8 products. `torch._int_mm` accumulates in int32: for
l <= 32 its wrap-around is harmless; for l > 32 the sums are kept exact by blocks of K.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

Tensor = torch.Tensor
FEW = 4  # rows up to which a product is a matter of reading the matrix once: 4 bytes a weight instead of 10
_EXACT_K = 8192  # 8 digit pairs * 8192 * 2^14 = 2^30 < 2^31: int32 sums stay exact


def split_digits(x: Tensor, bits: int) -> list[Tensor]:
    """Balanced base-256 digits of x, least significant first: ceil(bits/8) int8 tensors of x's shape."""
    digits = []
    for _ in range(-(-bits // 8)):
        low = x.to(torch.int8)
        digits.append(low)
        if x.element_size() == 1:
            break
        # x - low is a multiple of 256; the arithmetic shift keeps it exact modulo the ring
        x = (x - low.to(x.dtype)) >> 8
    return digits


def _int_mm(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch._int_mm(a, b)
    return product


def _float_mm(a: Tensor, b: Tensor) -> Tensor:
    """int8 product by float64 (exact: |sum| < 2^53), wrapped to int32 as the int8 kernels do."""
    return torch.matmul(a.double(), b.double()).to(torch.int64).to(torch.int32)


def _long_mm(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a.to(torch.int32), b.to(torch.int32))


ENGINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"int8": _int_mm, "float64": _float_mm, "int32": _long_mm}


@functools.cache
def engine() -> str:
    """Pick the fastest engine that is exact on this machine (kernels without VNNI may saturate)."""
    a = torch.full((64, 1024), -128, dtype=torch.int8)
    a[::3] = 127
    b = torch.full((1024, 256), -128, dtype=torch.int8)
    b[:, ::2] = 127
    reference = torch.matmul(a.to(torch.int64), b.to(torch.int64)).to(torch.int32)
    best, best_seconds = "int32", float("inf")
    for name, product in ENGINES.items():
        try:
            if not torch.equal(product(a, b), reference):
                continue
        except RuntimeError:  # not built for this processor
            continue
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            product(a, b)
            seconds.append(time.perf_counter() - start)
        if min(seconds) < best_seconds:
            best, best_seconds = name, min(seconds)
    return best


class DigitMatrix:
    """A right-hand matrix W [K, N] over Z_2^bits, split into digits once.

    Stored [w_top; ...; w_1; w_0] along K, so that the digits needed for weight s are one slice of rows.
    """

    def __init__(self, w: Tensor, bits: int) -> None:
        self.bits = bits
        self.rows, self.columns = w.shape
        self.whole: Tensor | None = None
        # beyond 32 bits sums must be exact in int32: long rows are cut into blocks
        cut = bits > 32 and self.rows > _EXACT_K
        self.blocks = [DigitMatrix(w[k : k + _EXACT_K], bits) for k in range(0, self.rows, _EXACT_K)] if cut else []
        if cut:
            return
        # column-major storage (W^T contiguous): the layout that the int8 kernels read fastest
        self._packed = torch.cat(split_digits(w, bits)[::-1]).t().contiguous().t()
        self._count = -(-bits // 8)

    def keep_whole(self) -> None:
        """Keep W itself, too (transposed beyond 32 bits), for products with few rows: twice the memory."""
        if self.whole is None:
            self.whole = self._join()

    def _join(self) -> Tensor:
        dtype = torch.int32 if self.bits <= 32 else torch.int64
        if self.blocks:
            return torch.cat([block._join() for block in self.blocks], 1)  # only rings beyond 32 bits are cut
        w = torch.zeros((self.rows, self.columns), dtype=dtype)
        for s in range(self._count):
            w += self.block(s)[: self.rows].to(dtype) << (8 * s)
        return w if self.bits <= 32 else w.t().contiguous()

    def block(self, s: int) -> Tensor:
        """Digits s, s-1, ..., 0 stacked along K."""
        return self._packed[(self._count - 1 - s) * self.rows :]


def digits_matmul(x: Tensor, w: DigitMatrix) -> Tensor:
    """Exact x W over Z_2^bits: x [M, K] ring integers, W [K, N]; returns [M, N] in int32 or int64."""
    bits = w.bits
    if x.shape[0] <= FEW and w.whole is not None:
        if bits > 32:  # torch's 64-bit product of one row is twice as fast on the transposed matrix
            return torch.stack([torch.mv(w.whole, row) for row in x.to(torch.int64)])
        return x.to(torch.int32) @ w.whole
    product = ENGINES[engine()]
    if w.blocks:
        parts = [digits_matmul(x[:, k * _EXACT_K :][:, : block.rows], block) for k, block in enumerate(w.blocks)]
        return torch.stack(parts).sum(0)
    digits = split_digits(x, bits)
    accumulator = torch.int32 if bits <= 32 else torch.int64
    stacked = torch.cat(digits, dim=1)
    out = torch.zeros((x.shape[0], w.columns), dtype=accumulator)
    for s in range(len(digits)):
        part = product(stacked[:, : (s + 1) * w.rows], w.block(s))
        out += part.to(accumulator) << (8 * s)
    return out
