"""The weights that a trainer changes: AdamW, clipped gradients, the learning rate's course, what to resume from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch

from ditto.errors import UsageError
from ditto.train.run import Position

Tensor = torch.Tensor
Course = Literal["linear", "cosine", "constant"]
CLIP = 1.0  # the largest norm of all gradients together


class AdamW:
    """fp32 tensors by name on a device, and their moments. Weight decay is on matrices alone."""

    def __init__(
        self, tensors: dict[str, Tensor], device: torch.device, betas: tuple[float, float], decay: float
    ) -> None:
        self.device = device
        self.tensors = {name: t.to(device, torch.float32).clone() for name, t in tensors.items()}
        for tensor in self.tensors.values():
            tensor.requires_grad_(True)
        matrices = [t for t in self.tensors.values() if t.dim() == 2]
        vectors = [t for t in self.tensors.values() if t.dim() != 2]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)

    def update(self, loss: Tensor, lr: float, at: Position) -> float:
        """Step `at.step` down the gradient of a loss of these tensors: what it was; `at` counts it.

        Raises UsageError for one that is no number; then nothing has changed.
        """
        if not torch.isfinite(loss):
            raise UsageError(f"training diverged at step {at.step:,}: a lower --lr may help")
        self.descend(loss, lr)
        return at.passed(float(loss.detach()))

    def descend(self, loss: Tensor, lr: float) -> None:
        """The same step whatever the loss is, without waiting for it."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.tensors.values(), CLIP)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()

    def forget(self) -> None:
        """Begin anew with the weights as they are: without moments."""
        self._optimizer.state.clear()

    def rearrange(self, how: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        """Weights, and moments likewise, with their rows or columns in another order."""
        with torch.no_grad():
            for name, tensor in how({name: t.detach() for name, t in self.tensors.items()}).items():
                self.tensors[name].copy_(tensor)
            for part in ("exp_avg", "exp_avg_sq"):
                found = {name: self._optimizer.state.get(t, {}).get(part) for name, t in self.tensors.items()}
                moments = {name: moment for name, moment in found.items() if moment is not None}
                if moments:
                    for name, moment in how(moments).items():
                        moments[name].copy_(moment)

    def state(self) -> dict[str, Tensor]:
        """Weights and moments by name."""
        found = {f"weight/{name}": t.detach() for name, t in self.tensors.items()}
        for name, tensor in self.tensors.items():
            moments = self._optimizer.state.get(tensor, {})
            found |= {f"{part}/{name}": moments[part] for part in ("exp_avg", "exp_avg_sq") if part in moments}
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tensors[name])

    def restore(self, state: dict[str, Tensor], step: int, partial: bool = False) -> None:
        """What `state` gave after so many steps. `partial`: a loss may not have been of all tensors.

        Raises KeyError, ValueError for what is not these tensors' state."""
        stepped = [name for name in self.tensors if step and (not partial or f"exp_avg/{name}" in state)]
        for name, tensor in self.tensors.items():
            for kind in ("weight", "exp_avg", "exp_avg_sq") if name in stepped else ("weight",):
                if state[f"{kind}/{name}"].shape != tensor.shape:
                    raise ValueError(f"{kind}/{name} has another shape")
        self.load({name: state[f"weight/{name}"] for name in self.tensors})
        for name in stepped:
            # copies: the optimizer writes into them
            self._optimizer.state[self.tensors[name]] = {"step": torch.tensor(float(step), device=self.device)} | {
                part: state[f"{part}/{name}"].to(self.device, copy=True) for part in ("exp_avg", "exp_avg_sq")
            }


class Changed:
    """What trainers share whose weights `AdamW` changes, all of them in every step."""

    def __init__(self, adamw: AdamW) -> None:
        self._adamw, self.tensors, self.at = adamw, adamw.tensors, Position()

    def state(self) -> dict[str, Tensor]:
        return self._adamw.state()

    def load(self, tensors: dict[str, Tensor]) -> None:
        self._adamw.load(tensors)

    def restore(self, state: dict[str, Tensor], at: Position) -> None:
        self._adamw.restore(state, at.step)
        self.at = at


def learning_rate(step: int, steps: int, most: float, warm: int, course: Course, final: float = 0.0) -> float:
    """Linear warm-up to `most` over `warm` steps (one at least), then straight, by a cosine or not at all down to the
    part `final` of it."""
    warm = max(1, warm)
    if step < warm:
        return most * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    left = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[course]
    return most * (final + (1 - final) * left)
