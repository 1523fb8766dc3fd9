"""The client's choice of the next token, in plaintext, from logits that it alone holds."""

from __future__ import annotations

import math
import random
import secrets

import torch

from ditto.errors import UsageError

Tensor = torch.Tensor


class Sampler:
    """Chooses one token for each row of logits.

    temperature: 0 takes the largest logit (of equals the first); else logits are divided by it.
    top_k: only the k most likely tokens, 0 for all. top_p: only the fewest tokens, most likely first, whose
    probabilities (after temperature and top_k) reach p; always at least one.
    seed: to reproduce a text. Without one the operating system is asked for every draw; either way what is sampled
    is no secret from the client. Raises UsageError for values outside their range.
    """

    def __init__(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None) -> None:
        if not 0 <= temperature < math.inf:
            raise UsageError(f"temperature {temperature}: must be 0 (the likeliest token) or a positive number")
        if top_k < 0:
            raise UsageError(f"top-k {top_k}: must be 0 (all tokens) or a positive number")
        if not 0 < top_p <= 1:
            raise UsageError(f"top-p {top_p}: must be above 0 and at most 1")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._bytes = secrets.token_bytes if seed is None else random.Random(seed).randbytes

    def choose(self, logits: Tensor) -> list[int]:
        """[B, V] logits -> B token ids. Raises UsageError for NaN, for +inf, and for a row without a finite logit."""
        rows = logits.to(torch.float64)
        if rows.dim() != 2 or rows.shape[1] == 0:
            raise UsageError(f"logits of shape {tuple(rows.shape)}: expected [rows, vocabulary]")
        # -inf is how an excluded token looks; +inf would leave no probabilities
        if not bool((rows < math.inf).all()) or not bool((rows > -math.inf).any(1).all()):
            raise UsageError("logits that are no numbers, or infinite")
        return [self._one(row) for row in rows]

    def _one(self, logits: Tensor) -> int:
        """The largest of log p_i + g_i with Gumbel noise g_i for every token of the vocabulary.

        That is a draw from p (Gumbel-max), and with one seed logits that differ a little nearly always give the same
        token, where the inverse of a cumulative distribution would not: so `--check` can compare.
        """
        if self.temperature == 0 or self.top_k == 1:
            return int((logits == logits.max()).nonzero()[0])
        ordered, ids = logits.sort(descending=True, stable=True)
        if self.top_k:
            ordered, ids = ordered[: self.top_k], ids[: self.top_k]
        # less the largest first: a tiny temperature must not overflow to infinities
        scaled = (ordered - ordered[0]) / self.temperature
        cumulative = scaled.softmax(0).cumsum(0)
        short = cumulative < self.top_p * float(cumulative[-1])  # rounding: the sum itself may miss 1
        kept = min(int(short.sum()) + 1, len(ids))
        noise = self._gumbel(len(logits))[ids[:kept]]
        return int(ids[int((scaled[:kept] + noise).argmax())])

    def _gumbel(self, n: int) -> Tensor:
        """-log(-log u), u uniform on (0, 1) with 53 bits."""
        raw = torch.frombuffer(bytearray(self._bytes(8 * n)), dtype=torch.int64)
        u = ((raw >> 11) & ((1 << 53) - 1)).double().add_(0.5) * 2.0**-53
        return -torch.log(-torch.log(u))
