"""Fixed-point types: a real x is the ring element floor(x 2^f + 1/2) mod 2^l."""

from __future__ import annotations

import torch

from ditto.ring import cast, signed


def encode(x: torch.Tensor, ring: int, frac: int) -> torch.Tensor:
    """Encode reals into Z_2^ring with `frac` fraction bits. Raises OverflowError when a value does not fit."""
    scaled = (x.to(torch.float64) * 2.0**frac).add_(0.5).floor_()
    limit = 2.0 ** (ring - 1)
    if scaled.numel():
        least, most = map(float, scaled.aminmax())  # NaN where there is one, which is in no interval
        if not -limit <= least <= most < limit:
            raise OverflowError(f"|x| up to {float(x.abs().max()):.4g} does not fit ({ring}, {frac})")
    return cast(scaled.to(torch.int64), ring)


def decode(x: torch.Tensor, ring: int, frac: int) -> torch.Tensor:
    """Return the reals (float64) that ring elements stand for."""
    return signed(x, ring).to(torch.float64) / 2.0**frac
