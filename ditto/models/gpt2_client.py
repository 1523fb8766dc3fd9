"""What a client of GPT-2 does in plaintext: encode prompts and tokens, decode logits."""

from __future__ import annotations

from typing import Any

import torch

from ditto.client.sampling import Sampler
from ditto.engine.program import Program
from ditto.errors import RangeError, UsageError
from ditto.presets import preset_of
from ditto.ring import carrier
from ditto.ring.fixedpoint import decode

Tensor = torch.Tensor


def encode_prompts(spec: dict[str, Any], program: Program, ids: Tensor, lengths: list[int]) -> dict[str, Tensor]:
    """Ring integers of stage 0's inputs from token ids [B, N], padded on the right.

    One-hot rows of words and positions, the padding for later tokens' attention, and which token is a prompt's last.
    Raises UsageError for lengths that are no lengths.
    """
    batch, n = ids.shape
    if len(lengths) != batch or any(not 1 <= length <= n for length in lengths):
        raise UsageError(f"lengths {lengths} of {batch} prompts in {n} columns")
    count = torch.tensor(lengths)
    padding = (torch.arange(n)[None, :] >= count[:, None]).long()
    inputs = preset_of(spec["preset"]).causal.encode_masks(spec, padding)
    inputs["onehot"] = _onehot(spec, program, ids.reshape(-1), torch.arange(n).repeat(batch))
    if "last" in program.inputs:
        inputs["last"] = torch.zeros((batch, 1, n), dtype=carrier(program.inputs["last"].ring))
        inputs["last"][torch.arange(batch), 0, count - 1] = 1
    return inputs


def encode_tokens(spec: dict[str, Any], program: Program, ids: list[int], positions: list[int]) -> dict[str, Tensor]:
    """Ring integers of a later stage's inputs: one token of each text, and where it stands in its text."""
    return {"onehot": _onehot(spec, program, torch.tensor(ids), torch.tensor(positions))}


def _onehot(spec: dict[str, Any], program: Program, ids: Tensor, positions: Tensor) -> Tensor:
    words, longest = spec["config"]["vocab_size"], spec["config"]["max_position_embeddings"]
    if int(ids.min()) < 0 or int(ids.max()) >= words or int(positions.max()) >= longest:
        raise UsageError(f"token ids below {words} and positions below {longest} expected")
    wire = program.inputs["onehot"]
    onehot = torch.zeros(wire.shape, dtype=carrier(wire.ring))
    rows = torch.arange(len(ids))
    onehot[rows, ids] = 1
    onehot[rows, words + positions] = 1
    return onehot


def decode_logits(program: Program, outputs: dict[str, Tensor]) -> Tensor:
    """Next-token logits [B, V] (or at every position, [B n, V]) in floats."""
    wire = program.outputs["logits"]
    return decode(outputs["logits"], wire.ring, wire.frac)


def decode_choice(program: Program, outputs: dict[str, Tensor], sampler: Sampler, words: int) -> list[int]:
    """The next token of each text: sampled from the logits, or as the servers found it.

    Raises RangeError for a number that is no token: the logits left the range of calibration.
    """
    if "token" not in program.outputs:
        return sampler.choose(decode_logits(program, outputs))
    tokens: list[int] = outputs["token"].tolist()
    if any(not 0 <= token < words for token in tokens):
        raise RangeError("the servers' choice is no token: the logits left their calibrated range")
    return tokens
