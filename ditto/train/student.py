"""The student of distillation: a model's program itself, with gradients to the floats that its weights are made of.

In evaluation its logits are those of the plain interpreter, bit for bit, since both run the same operations on the same
integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from ditto.engine.differentiable import Rows, Traced, run_differentiable
from ditto.engine.plan import WHOLE_MB, Plan
from ditto.engine.program import Program
from ditto.errors import UsageError
from ditto.functions.layernorm import deviation_scale
from ditto.models.description import Description
from ditto.models.encoder.embeddings import one_hot, places
from ditto.models.encoder.encoder import Encoder
from ditto.models.ranges import scores_of
from ditto.models.registry import architecture_of
from ditto.models.tokenizer import Batch
from ditto.presets import preset_of

Tensor = torch.Tensor
WORDS = "embeddings.word.weight"


@dataclass
class Outcome:
    """What a student gives: `output` as its head does (logits [B, labels], hidden states [B N, H]), float64; by layer
    the hidden states after it and the contexts of its attention, [B N, H] each."""

    output: Tensor
    hidden: list[Tensor]
    contexts: list[Tensor]


class Student:
    """Compiled once for each batch's size, on the device of what it is given.

    The description is public and fixed: ranges, types, functions. A weight that leaves its type wraps.
    Raises UsageError for a model that is no encoder.
    """

    def __init__(self, description: Description) -> None:
        architecture = architecture_of(description.architecture)
        if not isinstance(architecture, Encoder):
            raise UsageError(f"{description.architecture}: only encoders are distilled")
        self.description, self._architecture = description, architecture
        self._style = preset_of(description.preset).style
        self.program = lru_cache(maxsize=64)(self._program)

    def _program(self, batch: int, seq: int) -> Program:
        return self._architecture.compile(self.description, Plan(batch, seq, hold_mb=WHOLE_MB))

    def __call__(self, tensors: dict[str, Tensor], batch: Batch) -> Outcome:
        """Real weights by the project's names, neurons in the description's order; gradients flow to them.

        1. Weights are encoded as the importer does it.
        2. Inputs as a client makes them, one-hot rows by their places.
        3. The program's steps.
        """
        program = self.program(*batch.shape)
        words, places = torch.unique(batch.ids, return_inverse=True)  # of a vocabulary few rows are read
        tensors = tensors | {WORDS: tensors[WORDS][words]}
        batch = Batch(places, batch.types, batch.mask)
        real = self._architecture.weights(self.description, tensors)
        weights = {n: Traced.encoded(real[n], wire.ring, wire.frac) for n, wire in program.weights.items()}  # 1
        outputs, taps = run_differentiable(program, self._inputs(program, tensors, batch), weights)  # 2, 3
        ((name, wire),) = program.outputs.items()
        taken = {n: value.decoded(program.taps[n]).float() for n, value in taps.items()}
        layers = range(self.description.dimensions.layers)
        hidden = [self._hidden(tensors, i, taken[f"hidden {i}"]) for i in layers]
        return Outcome(outputs[name].decoded(wire), hidden, [taken[f"context {i}"] for i in layers])

    def _inputs(self, program: Program, tensors: dict[str, Tensor], batch: Batch) -> dict[str, Traced | Rows]:
        d = self.description.dimensions
        ids, types = self._architecture.places(self.description, batch)
        masks = self._style.encode_masks([scores_of(of) for of in self.description.ranges.layers], 1 - batch.mask)
        inputs: dict[str, Traced | Rows] = {
            name: Traced.constant(mask.to(torch.int64)) for name, mask in masks.items() if name in program.inputs
        }
        if self.description.embeddings == "public":
            x = torch.nn.functional.embedding(ids, tensors[WORDS])
            if d.token_types:
                x = x + torch.nn.functional.embedding(types, tensors["embeddings.type.weight"])
            wire = program.inputs["embeddings"]
            x = x - x.mean(-1, keepdim=True) if self._style.centred else x
            return inputs | {"embeddings": Traced.encoded(x, wire.ring, wire.frac)}
        found = places(d, ids, types, len(tensors[WORDS]))
        if "within" in found:  # it picks of a product, not of a table
            wire = program.inputs["within"]
            inputs["within"] = Traced.constant(one_hot(found.pop("within").cpu(), wire).to(ids.device, torch.int64))
        return inputs | {name: Rows(at) for name, at in found.items()}

    def _hidden(self, tensors: dict[str, Tensor], layer: int, x: Tensor) -> Tensor:
        """The hidden states after a layer: where the next projection has gamma and beta in it, they are put back."""
        last = layer == self.description.dimensions.layers - 1
        if not self._style.folded or (last and self._architecture.head.whole):
            return x
        gamma, beta = (tensors[f"layer.{layer}.norm2.{part}"] for part in ("weight", "bias"))
        return deviation_scale(len(gamma)) * x * gamma + beta
