"""Separable functions: g(m - r) = sum_j u_j(m) v_j(r), one opening, no comparison, no iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from ditto.ops.base import Correlations, Op, Party, Shape, Shared, Tensor, Types, register, tangent
from ditto.ring import carrier, signed, unsigned
from ditto.ring.exact import circle, exponentials
from ditto.ring.fixedpoint import encode

CHUNK = 1 << 13  # elements at a time: the rank-wide temporaries stay in cache

# Tables are shared by the layers and stages of a program, each of which has operations of its own. Public ones must be
# the same at both parties, whatever their processors: from `ditto.ring.exact`, by sums and products of two terms.


Pairs = tuple[tuple[int, float, float], ...]  # k, a_k, b_k


def _waves(n: int, frequencies: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """cos and sin of w_k x for every x in Z_2^n and every k of H frequencies: [2^n, H] each."""
    cos, sin = circle(n)
    at = torch.outer(torch.arange(1 << n), torch.tensor(frequencies)) & ((1 << n) - 1)
    return cos[at], sin[at]


@lru_cache(maxsize=64)
def _public_waves(n: int, terms: Pairs, frac: int, bits: int) -> Tensor:
    frequencies, cos, sin = zip(*terms, strict=True)
    c, s = _waves(n, frequencies)
    a, b = (torch.tensor(v, dtype=torch.float64) for v in (cos, sin))
    return encode(torch.cat([a * c + b * s, a * s - b * c], dim=1), bits, frac)


@lru_cache(maxsize=64)
def _private_waves(n: int, frequencies: tuple[int, ...], frac: int, bits: int) -> Tensor:
    return encode(torch.cat(_waves(n, frequencies), dim=1), bits, frac)


@lru_cache(maxsize=64)
def _public_exponentials(low: int, frac: int, fu: int, bits: int) -> Tensor:
    return encode(exponentials(frac, 1 << low), bits, fu)


@register
@dataclass(frozen=True)
class Harmonic(Op):
    """g(x) = c_0 + sum_k (a_k cos(w_k x) + b_k sin(w_k x)), w_k = 2 pi k / 2^n, of an opened x in Z_2^n.

    Periodic for free on Z_2^n: cos(w(m - r)) = cos(wm) cos(wr) + sin(wm) sin(wr), sin likewise.
    1. The dealer shares cos(w_k r), sin(w_k r) on Z_2^l with fv fraction bits.
    2. [g] = sum_k u_k(m) [cos w_k r] + t_k(m) [sin w_k r], with u, t public, fu fraction bits; result fu + fv.
    No round beyond the opening (docs/protocol.md; harmonics as in Zheng et al. 2023 for sine). Where a half is
    absent from the function (even: b = 0), both cos and sin of the mask are still needed. A frequency with
    a_k = b_k = 0 is left out and costs nothing: H counts the others.
    """

    shape: Shape
    n: int
    bits: int
    fu: int
    fv: int
    c0: float
    cos: tuple[float, ...]
    sin: tuple[float, ...]

    @cached_property
    def terms(self) -> Pairs:
        """(k, a_k, b_k) of the frequencies that the function has; the first where it has none."""
        found = [(k, a, b) for k, (a, b) in enumerate(zip(self.cos, self.sin, strict=True), 1) if a or b]
        return tuple(found) or ((1, 0.0, 0.0),)

    @property
    def _frequencies(self) -> tuple[int, ...]:
        return tuple(k for k, _, _ in self.terms)

    @property
    def _public(self) -> Tensor:
        """u(m): [2^n, 2H] ring integers with fu fraction bits."""
        return _public_waves(self.n, self.terms, self.fu, self.bits)

    @property
    def _private(self) -> Tensor:
        """v(r): [2^n, 2H] ring integers with fv fraction bits."""
        return _private_waves(self.n, self._frequencies, self.fv, self.bits)

    @property
    def _constant(self) -> int:
        return math.floor(math.ldexp(self.c0, self.fu + self.fv) + 0.5)

    @cached_property
    def table(self) -> Tensor:
        """g on Z_2^n, exact to half a unit: int64 [2^n]."""
        c, s = _waves(self.n, self._frequencies)
        a, b = (torch.tensor([term[i] for term in self.terms], dtype=torch.float64) for i in (1, 2))
        return torch.floor((c @ a + s @ b + self.c0) * 2.0 ** (self.fu + self.fv) + 0.5).to(torch.int64)

    @cached_property
    def _slopes(self) -> Tensor:
        """g' on Z_2^n, in results' units by steps of x: float64 [2^n]."""
        c, s = _waves(self.n, self._frequencies)
        step = [2 * math.pi * k / (1 << self.n) for k in self._frequencies]
        a, b = (torch.tensor([t[i] * w for t, w in zip(self.terms, step, strict=True)]).double() for i in (1, 2))
        return (c @ b - s @ a) * 2.0 ** (self.fu + self.fv)

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        return (signed(self.table.to(x[0].device)[unsigned(x[0], self.n)], self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        at, (y,) = x[0].detach().to(torch.int64), self.plain(x[0].detach().to(torch.int64))
        return (tangent(x[0], y.to(x[0].dtype), self._slopes.to(at.device, x[0].dtype)[unsigned(at, self.n)]),)

    def dealt(self) -> Types:
        return {"v": Shared((math.prod(self.shape), 2 * len(self.terms)), self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        return {"v": self._private[unsigned(masks[0], self.n).reshape(-1)]}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        m = unsigned(x[0].value, self.n).reshape(-1)
        u, v = self._public, k["v"]
        y = torch.empty(m.shape, dtype=carrier(self.bits))
        for start in range(0, len(m), CHUNK):  # 2
            rows = slice(start, start + CHUNK)
            y[rows] = u.index_select(0, m[rows]).mul_(v[rows]).sum(1, dtype=y.dtype)
        return ((y + self._constant if p.party == 0 else y).reshape(self.shape),)

    def ulp(self) -> float:
        """Each u is off by half a 2^-fu, each v by half a 2^-fv, |v| <= 1."""
        size_u = sum(abs(a) + abs(b) for _, a, b in self.terms) * 2
        half_v, half_u = 2.0 ** (self.fu - 1), 2.0 ** (self.fv - 1)
        return size_u * half_v + 2 * len(self.terms) * half_u + len(self.terms) + 2


@register
@dataclass(frozen=True)
class Exponential(Op):
    """exp(x) on a window, zero below it, of an opened x in Z_2^n with `frac` fraction bits.

    With low = the `low` low bits and high = the rest, e^(x) = e^(m_low) * e^(-r_low) G(m_high - r_high), where
    G(j) = e^(2^low j) inside the window and 0 outside: the borrow between low and high cancels in the exponents.
    1. The dealer shares, for every i in Z_2^(n-low), V_i = e^(-r_low) G(i - r_high), fv fraction bits, on Z_2^l.
    2. The parties take V at m_high and weigh it with the public e^(m_low), fu fraction bits; result fu + fv.
    The window is j in [floor, top] (units of 2^low steps); below it gives 0; one unit above it is reserved for the
    borrow; further above gives 0 as well, which a caller must not reach. No round beyond the opening.
    """

    shape: Shape
    n: int
    frac: int
    low: int
    floor: int
    top: int
    bits: int
    fu: int
    fv: int

    @property
    def entries(self) -> int:
        return 1 << (self.n - self.low)

    @property
    def _public(self) -> Tensor:
        """e^(m_low): [2^low] ring integers with fu fraction bits."""
        return _public_exponentials(self.low, self.frac, self.fu, self.bits)

    @cached_property
    def _window(self) -> Tensor:
        """G(j) for j in Z_2^(n-low), as float64."""
        j = torch.arange(self.entries)
        j = torch.where(j >= self.entries // 2, j - self.entries, j)
        g = (j.to(torch.float64) * 2.0 ** (self.low - self.frac)).exp()
        return torch.where((j >= self.floor) & (j <= self.top + 1), g, torch.zeros_like(g))

    def plain(self, *x: Tensor) -> tuple[Tensor, ...]:
        v = unsigned(x[0], self.n)
        g = self._window.to(v.device)[v >> self.low]
        y = g * 2.0**self.fv * self._public.to(v.device)[v & ((1 << self.low) - 1)].to(torch.float64)
        return (signed(torch.floor(y + 0.5).to(torch.int64), self.bits),)

    def smooth(self, *x: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = self.plain(x[0].detach().to(torch.int64))
        y = y.to(x[0].dtype)
        return (tangent(x[0], y, y * 2.0**-self.frac),)

    def dealt(self) -> Types:
        return {"V": Shared((math.prod(self.shape), self.entries), self.bits)}

    def correlate(self, *masks: Tensor) -> Correlations:
        r = unsigned(masks[0], self.n).reshape(-1)
        low, high = r & ((1 << self.low) - 1), r >> self.low
        i = torch.arange(self.entries)
        if len(r) > self.entries:  # G rotated by every r_high once, then one row picked for each element
            rotated = self._window[(i[None, :] - i[:, None]) % self.entries][high]
        else:
            rotated = self._window[(i[None, :] - high[:, None]) % self.entries]
        shrink = (-low.to(torch.float64) / 2.0**self.frac).exp() * 2.0**self.fv
        return {"V": torch.floor(rotated * shrink[:, None] + 0.5).to(carrier(self.bits))}  # 1

    def online(self, p: Party, k: Correlations, *x: Any) -> tuple[Any, ...]:
        m = unsigned(x[0].value, self.n).reshape(-1)
        v = k["V"].gather(1, (m >> self.low)[:, None])[:, 0]  # 2
        return ((v * self._public[m & ((1 << self.low) - 1)]).reshape(self.shape),)

    def ulp(self) -> float:
        """V is off by half a unit times e^(m_low); e^(m_low) by half a 2^-fu times V; two rows meet at a borrow."""
        step = math.exp(2.0 ** (self.low - self.frac))
        top = math.exp((self.top + 2) * 2.0 ** (self.low - self.frac))
        edge = math.exp(self.floor * 2.0 ** (self.low - self.frac)) * 2.0 ** (self.fu + self.fv)
        return step * 2.0**self.fu + top * 2.0**self.fv + edge + 2
