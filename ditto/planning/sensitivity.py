"""How much a layer's choices change a model's answers: measured, one layer at a time.

The loss of the answers against floats (`ditto.planning.answers`) when one layer alone takes an alternative, less what
the preset's own choices lose: on the same texts, with the same random numbers wherever the two programs are alike.
Mixed precision by measured sensitivity as in MPTQ-ViT (arXiv 2401.14895) and APQ-ViT (arXiv 2303.14341); here the
precisions are rings, fraction bits and tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ditto.engine.plain import plain_weights
from ditto.engine.program import Program
from ditto.errors import RangeError
from ditto.functions.fit import Fitting
from ditto.models.description import Description
from ditto.models.importer import encode_weights, with_choices
from ditto.models.registry import architecture_of
from ditto.planning.answers import Compiled, Trial, answer_of, loss_of, prepared
from ditto.planning.lossy import Values, run_lossy
from ditto.planning.planner import Budget
from ditto.presets.choices import DEFAULT, Choices
from ditto.ring.fixedpoint import encode


class Sensitivity:
    """Of a description without choices, on a trial's texts."""

    def __init__(self, description: Description, trial: Trial) -> None:
        """Runs the preset's own program on all groups, and keeps what is there at the beginning of each layer."""
        self._description = description.model_copy(update={"choices": ()})
        self._trial = trial
        self._count = description.dimensions.layers
        self._fits = Fitting(description.functions)
        tensors = trial.checkpoint.tensors
        self._real = architecture_of(description.architecture).weights(self._description, tensors)
        self._added: dict[tuple[int, Choices], float] = {}
        encoded = encode_weights(self._description, tensors)
        self._programs: list[Compiled] = []
        self._entered: list[dict[int, Values]] = []
        self._weights: Values = {}
        total = 0.0
        for group in trial.groups:
            one = trial.compile(self._description, group, self._fits)
            self._weights = self._weights or prepared(one.program, encoded)
            kept: dict[int, Values] = {}

            def keep(layer: int, values: Values, kept: dict[int, Values] = kept) -> None:
                kept[layer] = {name: value for name, value in values.items() if name not in self._weights}

            outputs = run_lossy(one.program, one.inputs | self._weights, entered=keep)
            self._programs.append(one)
            self._entered.append(kept)
            total += group.plan.batch * loss_of(description, group, answer_of(one.program, outputs))
        self.own = total / trial.texts  # loss by the preset's own choices

    def added(self, layer: int, choices: Choices) -> float:
        """By these choices in one layer; infinite where it cannot have them. Below 0 where they happen to be better."""
        key = layer, choices
        if choices == DEFAULT:
            return 0.0
        if key not in self._added:
            try:
                self._added[key] = self._alone(layer, choices) - self.own
            except (OverflowError, RangeError):
                self._added[key] = math.inf
        return self._added[key]

    def together(self, choices: Sequence[Choices]) -> float:
        """By choices of all layers."""
        found = with_choices(self._description, tuple(choices))
        return self._trial.loss(found, encode_weights(found, self._trial.checkpoint.tensors)) - self.own

    def budget(self, most: float) -> Budget:
        return Budget(most, self.added, self.together)

    def _alone(self, layer: int, choices: Choices) -> float:
        """The loss, from the layer's beginning on."""
        here = tuple(choices if i == layer else DEFAULT for i in range(self._count))
        description = self._description.model_copy(update={"choices": here})
        changed: Values = {}
        total = 0.0
        for group, own, entered in zip(self._trial.groups, self._programs, self._entered, strict=True):
            one = self._trial.compile(description, group, self._fits)
            program, first = one.program, own.program.layers.index(f"layer {layer}")
            changed = changed or self._changed(one, layer, choices, description)
            before = [step for step in program.steps if step.layer < first]
            if before != own.program.steps[: len(before)]:
                raise AssertionError("a layer's choices changed those before it")
            outputs = run_lossy(program, entered[first] | self._weights | changed, first=first)
            total += group.plan.batch * loss_of(description, group, answer_of(program, outputs))
        return total / self._trial.texts

    def _changed(self, one: Compiled, layer: int, choices: Choices, description: Description) -> Values:
        """The weights of one layer by its choices: the activation's scales belong to them."""
        real = self._real
        if choices.activation or choices.gelu or choices.product:
            found = description.model_copy(update={"functions": self._fits.all()})
            real = architecture_of(found.architecture).weights(found, self._trial.checkpoint.tensors)
        wires = {name: wire for name, wire in one.program.weights.items() if name.startswith(f"layer.{layer}.")}
        encoded = {name: encode(real[name], wire.ring, wire.frac) for name, wire in wires.items()}
        return plain_weights(Program(weights=wires), encoded)
