"""What parties and client receive, as it comes: a hook, and how far it is from fair draws."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from uniform import chi_square, chi_square_limit, deviation_limit

from ditto.engine import job
from ditto.engine.job import _PartyContext
from ditto.ops.base import Given, Opened, Shared

Tensor = torch.Tensor


class View:
    """Every message that the parties and the client receive: how far its bits and bytes are from fair ones."""

    def __init__(self) -> None:
        self.pooled: dict[str, list[bytes]] = defaultdict(list)  # whole bytes by kind of message
        self.far: list[str] = []
        self.messages = 0

    def add(self, kind: str, x: Tensor, bits: int) -> None:
        raw = x.reshape(-1).to(torch.int64).numpy().view(np.uint8).reshape(-1, 8)[:, : -(-bits // 8)]
        ones = np.unpackbits(raw, axis=1, bitorder="little")[:, :bits].sum(axis=0, dtype=np.int64)
        worst = float(np.abs(ones - len(raw) / 2).max() / (len(raw) ** 0.5 / 2))
        if worst > deviation_limit():
            self.far.append(f"{kind} on {bits} bits: a bit of {len(raw)} elements is {worst:.1f} deviations off")
        whole = raw[:, : bits // 8].tobytes()
        if len(whole) >= 2560 and chi_square(whole) > chi_square_limit():
            self.far.append(f"{kind} on {bits} bits: chi-square {chi_square(whole):.0f} of {len(whole)} bytes")
        self.pooled[kind].append(whole)
        self.messages += 1

    def check(self) -> list[str]:
        for kind, parts in self.pooled.items():
            whole = b"".join(parts)
            if len(whole) >= 2560 and chi_square(whole) > chi_square_limit():
                self.far.append(f"all of {kind}: chi-square {chi_square(whole):.0f} of {len(whole)} bytes")
        return self.far


def watch(monkeypatch: pytest.MonkeyPatch, take: Callable[[str, Tensor, int], None]) -> None:
    """Have `take` (kind of message, elements, bits of each) see every message of every job from here on."""
    lock = threading.Lock()
    opening, dealing, anew = _PartyContext.open, _PartyContext.dealt, job.rerandomised

    def add(kind: str, x: Tensor, bits: int) -> None:
        with lock:
            take(kind, x, bits)

    def opened(
        self: _PartyContext, shares: list[Tensor], masks: list[Tensor], bits: list[int], words: list[Tensor]
    ) -> Opened:
        result, result_bits = opening(self, shares, masks, bits, words)
        for share, mask, masked, size in zip(shares, masks, result, bits, strict=True):
            add(f"opened at party{self.party}", masked.value, size)
            add(f"from the peer at party{self.party}", masked.value - share - mask, size)
        for mine, value in zip(words, result_bits, strict=True):
            add(f"opened bits at party{self.party}", value, 64)
            add(f"bits from the peer at party{self.party}", value ^ mine, 64)
        return result, result_bits

    def dealt(self: _PartyContext, of: Shared) -> Tensor:
        result = dealing(self, of)
        if not self._seeded or isinstance(of, Given):
            add(f"dealt to party{self.party}", result, of.bits)
        return result

    def output(*of: Any) -> Tensor:
        result = anew(*of)
        add(f"output share of party{of[1]}", result, of[-1].ring)
        return result

    monkeypatch.setattr(_PartyContext, "open", opened)
    monkeypatch.setattr(_PartyContext, "dealt", dealt)
    monkeypatch.setattr(job, "rerandomised", output)
