"""A GPT-2 as a student: its program of a whole text with gradients, logits at every position."""

from __future__ import annotations

from functools import lru_cache

import torch

from ditto.engine.differentiable import Rows, Traced, run_differentiable
from ditto.engine.plan import WHOLE_MB, Plan
from ditto.engine.program import Program
from ditto.errors import UsageError
from ditto.models.description import Description
from ditto.models.ranges import scores_of
from ditto.models.registry import GENERATORS, architecture_of
from ditto.presets import preset_of

Tensor = torch.Tensor


class LanguageStudent:
    """As `Student`, for windows of text without padding. Raises UsageError for a model that generates no text."""

    def __init__(self, description: Description) -> None:
        if description.architecture not in GENERATORS:
            raise UsageError(f"{description.architecture} generates no text")
        self.description, self._architecture = description, architecture_of(description.architecture)
        self.program = lru_cache(maxsize=16)(self._program)

    def _program(self, batch: int, seq: int) -> Program:
        return self._architecture.compile(self.description, Plan(batch, seq, every=True, hold_mb=WHOLE_MB))

    def __call__(self, tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
        """Real weights by the project's names, token ids [B, N] -> logits [B, N, V], float32, with gradients."""
        (batch, n), words = ids.shape, self.description.dimensions.vocabulary
        program = self.program(batch, n)
        real = self._architecture.weights(self.description, tensors)
        weights = {name: Traced.encoded(real[name], w.ring, w.frac) for name, w in program.weights.items()}
        positions = words + torch.arange(n, device=ids.device).repeat(batch)
        inputs: dict[str, Traced | Rows] = {"onehot": Rows(torch.stack([ids.reshape(-1), positions], 1))}
        scores = [scores_of(layer) for layer in self.description.ranges.layers]
        masks = preset_of(self.description.preset).style.encode_masks(scores, torch.zeros_like(ids))
        inputs |= {k: Traced.constant(mask.to(torch.int64)) for k, mask in masks.items() if k in program.inputs}
        outputs, _ = run_differentiable(program, inputs, weights)
        return outputs["logits"].decoded(program.outputs["logits"]).float().reshape(batch, n, words)
