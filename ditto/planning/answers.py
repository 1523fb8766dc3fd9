"""A model's answers on a few texts, in floats and by its program: how far they are apart, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ditto.engine.plain import plain_weights
from ditto.engine.plan import WHOLE_MB, Plan
from ditto.engine.program import Program, Step
from ditto.functions.fit import Fits
from ditto.models.architecture import Answer, Tensors, Texts
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description, is_multi_label, is_score
from ditto.models.ranges import silent
from ditto.models.registry import architecture_of, encode_inputs, generates
from ditto.models.tokenizer import Batch, Prompts
from ditto.planning.lossy import Values, run_lossy
from ditto.ring import signed
from ditto.ring.fixedpoint import decode

Tensor = torch.Tensor
TEXTS = 16  # that are run, evenly taken from those given
LONGEST = 64  # tokens of a text that are run


@dataclass(frozen=True)
class Group:
    """Texts of one padded width, and what the model answers in floats."""

    batch: Texts
    real: Tensor  # [B, N]: is there a token?
    want: Tensor
    plan: Plan


class Compiled(NamedTuple):
    """A program for one group, and the group's inputs to it."""

    program: Program
    inputs: Values


Seen = Callable[[Step, list[Any], tuple[Tensor, ...]], None]
Look = Callable[[Compiled, Group], Seen]


class Trial:
    """A checkpoint and a few texts, on which descriptions of it are tried."""

    def __init__(self, checkpoint: Checkpoint, texts: Sequence[Texts]) -> None:
        """At most TEXTS of the texts, cut to LONGEST tokens; those of one width run side by side."""
        self.checkpoint = checkpoint
        count = min(TEXTS, len(texts))
        by_width: dict[int, list[Texts]] = {}
        for text in (_shortened(texts[i * len(texts) // count]) for i in range(count)):
            by_width.setdefault(text.shape[1], []).append(text)
        self.groups = [self._group(_beside(alike)) for alike in by_width.values()]

    def _group(self, batch: Texts) -> Group:
        architecture = self.checkpoint.architecture
        with torch.inference_mode():
            want = architecture.floats(self.checkpoint.tensors, self.checkpoint.dimensions, batch, silent).double()
        plan = Plan(*batch.shape, every=architecture.answer is Answer.text, hold_mb=WHOLE_MB)
        return Group(batch, _real(batch), want, plan)

    @property
    def texts(self) -> int:
        return sum(group.plan.batch for group in self.groups)

    def compile(self, description: Description, group: Group, fits: Fits | None = None) -> Compiled:
        """An encoder's embeddings are looked up here, whoever does it later: that saves their product."""
        if not generates(description.architecture):
            description = description.model_copy(update={"embeddings": "public"})
        program = architecture_of(description.architecture).compile(description, group.plan, 0, fits)
        inputs = encode_inputs(description, program, group.batch, self.checkpoint.tensors)
        return Compiled(program, {n: signed(inputs[n], w.ring) for n, w in program.inputs.items()})

    def loss(self, description: Description, encoded: Tensors, look: Look | None = None) -> float:
        """Of the texts' answers by encoded weights, with the errors that shares make, against floats."""
        total = 0.0
        for group in self.groups:
            one = self.compile(description, group)
            values = one.inputs | prepared(one.program, encoded)
            outputs = run_lossy(one.program, values, seen=look(one, group) if look else None)
            total += group.plan.batch * loss_of(description, group, answer_of(one.program, outputs))
        return total / self.texts


def prepared(program: Program, encoded: Tensors) -> Values:
    """Weights as runs take them."""
    return plain_weights(program, {name: encoded[name] for name in program.weights})


def answer_of(program: Program, outputs: Tensors) -> Tensor:
    """The program's output in floats."""
    name, wire = next(iter(program.outputs.items()))
    return decode(outputs[name], wire.ring, wire.frac).double()


def _shortened(text: Texts) -> Texts:
    if isinstance(text, Prompts):
        return Prompts(text.ids[:, :LONGEST], [min(n, LONGEST) for n in text.lengths])
    return Batch(*(x[:, :LONGEST] for x in (text.ids, text.types, text.mask)))


def _beside(alike: Sequence[Texts]) -> Texts:
    if isinstance(alike[0], Prompts):
        prompts = [text for text in alike if isinstance(text, Prompts)]
        return Prompts(torch.cat([p.ids for p in prompts]), [n for p in prompts for n in p.lengths])
    batches = [text for text in alike if isinstance(text, Batch)]
    return Batch(*(torch.cat([getattr(b, name) for b in batches]) for name in ("ids", "types", "mask")))


def _real(batch: Texts) -> Tensor:
    if isinstance(batch, Prompts):
        return torch.arange(batch.shape[1])[None, :] < torch.tensor(batch.lengths)[:, None]
    return batch.mask.bool()


# Distances ----------------------------------------------------------------------------------------


def loss_of(description: Description, group: Group, got: Tensor) -> float:
    """Of an answer against the floats', a mean over texts or tokens that are there.

    Of hidden states 1 - cosine by token; of scores their square difference, a mean over them; of logits the divergence
    KL(softmax want, softmax got), over a text's tokens where they name a place in it. Where several labels of a text
    may be right, the sum of each one's divergence, which is that of all of them together.
    """
    kind, real, want = architecture_of(description.architecture).answer, group.real, group.want
    got, d = got.reshape(want.shape), description.dimensions
    match kind:
        case Answer.vector:
            return float((1 - F.cosine_similarity(got[real], want[real], dim=-1)).mean())
        case Answer.labels if want.shape[-1] == 1 or is_score(d):
            return float((got - want).square().mean())
        case Answer.labels if is_multi_label(d):
            # the sigmoid of x is the softmax of (x, 0)
            of_each, got = (torch.stack((x, torch.zeros_like(x)), -1) for x in (want, got))
            return want.shape[-1] * _divergence(of_each, got)
        case Answer.labels:
            return _divergence(want, got)
        case Answer.span:
            hidden = ~real[..., None]
            want, got = (x.masked_fill(hidden, -1e9).transpose(1, 2) for x in (want, got))
            return _divergence(want, got)
        case _:
            return _divergence(want[real], got[real])


def _divergence(want: Tensor, got: Tensor) -> float:
    logs, other = want.log_softmax(-1), got.log_softmax(-1)
    return float((logs.exp() * (logs - other)).sum(-1).mean())


@dataclass
class Gap:
    """Between what a program has at some place and what the floats have there: relative, and the directions of rows."""

    squares: float = 0.0
    size: float = 0.0
    turned: list[float] = field(default_factory=list)

    def see(self, got: Tensor, want: Tensor) -> None:
        """Rows [n, width]."""
        self.squares += float((got - want).square().sum())
        self.size += float(want.square().sum())
        self.turned += (1 - F.cosine_similarity(got, want, dim=-1)).tolist()

    def document(self) -> dict[str, float]:
        return {
            "relative": (self.squares / max(self.size, 1e-300)) ** 0.5,
            "one_minus_cosine": sum(self.turned) / max(1, len(self.turned)),
            "worst": max(self.turned, default=0.0),
        }
