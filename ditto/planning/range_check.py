"""Texts through a model's program in plaintext: which values leave their calibrated ranges, and what that does.

A value is outside where what is opened is beyond the bound that its type was chosen by; the range guard marks it where
it is so far outside that it could wrap. Past the first such value of a text others may be garbage: a text's place is
the first one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ditto.client.verdict import kind_of, verdict
from ditto.engine.plain import plain_weights, run_plain
from ditto.engine.plan import Plan
from ditto.engine.program import GUARD, PART, Program, Step
from ditto.errors import EmptyText, TextTooLong
from ditto.models.architecture import Answer, Tensors
from ditto.models.checkpoint import Checkpoint
from ditto.models.compiled import program_for
from ditto.models.description import Description
from ditto.models.registry import architecture_of, decode_outputs, encode_inputs
from ditto.models.tokenizer import Text, Tokenizer
from ditto.ops import Open, Together

WORST = 100  # texts that a document lists


@dataclass
class Checked:
    """One text. `outside` and `values`: by place (layer, operation), of values of bounded wires. `marked`: layers that
    the range guard would name. `error`: why it could not be asked."""

    tokens: int = 0
    outside: dict[str, int] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    marked: tuple[str, ...] = ()
    answer: Any = None
    reference: Any = None
    error: str = ""

    @property
    def beyond(self) -> int:
        return sum(self.outside.values())


class Checker:
    """A model's program on the integers themselves, a text at a time."""

    def __init__(
        self, description: Description, weights: Tensors, tokenizer: Tokenizer, checkpoint: Checkpoint | None
    ) -> None:
        """Answers are compared with the checkpoint's, if given."""
        self.description, self.checkpoint = description, checkpoint
        self._tokenizer, self._weights = tokenizer, weights
        self._kind = architecture_of(description.architecture).answer
        # an encoder's embeddings are looked up where the tables are, whoever does it later: that saves a product
        public = {"embeddings": "public"} if checkpoint and self._kind is not Answer.text else {}
        self._text = description.model_copy(update=public).text()
        self._asked = description.model_copy(update=public)
        self._ready: dict[str, Any] = {}

    def __call__(self, text: Text) -> Checked:
        try:
            batch = self._encode(text)
        except (TextTooLong, EmptyText) as error:
            return Checked(error=str(error))
        size, width = batch.shape
        program = program_for(self._text, Plan(size, width, guard=True))
        if not self._ready:
            self._ready = plain_weights(program, self._weights)
        found = Checked(tokens=self._tokens(batch))
        labels = {name: step.label for step in program.steps for name in step.outputs}

        def seen(step: Step, read: list[Any]) -> None:
            if isinstance(step.op, Open | Together):
                _count(found, program, step, read, labels)

        tables = self.checkpoint.tensors if self.checkpoint else None
        outputs = run_plain(program, encode_inputs(self._asked, program, batch, tables), self._ready, seen=seen)
        words = outputs.pop(GUARD, None)
        if words is not None:
            found.marked = tuple(n for n, x in zip(program.guarded, words.tolist(), strict=True) if x)
        (found.answer,) = decode_outputs(self._asked, program, outputs, batch)
        if self.checkpoint:
            (found.reference,) = self.checkpoint.reference(batch)
        return found

    def _encode(self, text: Text) -> Any:
        longest = self.description.dimensions.positions
        if self._kind is Answer.text:
            return self._tokenizer.encode_prompts([str(text)], longest)
        return self._tokenizer.encode([text], longest)

    @staticmethod
    def _tokens(batch: Any) -> int:
        return int(batch.lengths[0]) if hasattr(batch, "lengths") else int(batch.mask.sum())

    def _verdict(self, checked: Sequence[Checked]) -> dict[str, Any] | None:
        compared = [one for one in checked if one.reference is not None]
        if not compared:
            return None
        kind = "labels" if self._kind is Answer.text else kind_of(self.description)  # of GPT-2, the next token
        return verdict(kind, [one.answer for one in compared], [one.reference for one in compared]).document()

    def document(self, found: Sequence[tuple[int, Checked]]) -> dict[str, Any]:
        """Of texts with their numbers, worst first."""
        asked = [(line, one) for line, one in found if not one.error]
        marked = [line for line, one in asked if one.marked]
        out = [line for line, one in asked if one.beyond or one.marked]
        worst = sorted((row for row in asked if row[1].beyond or row[1].marked), key=self._badness)
        places: dict[str, list[int]] = {}
        for _, one in asked:
            for place, count in one.values.items():
                total = places.setdefault(place, [0, 0, 0])
                total[0] += bool(one.outside.get(place))
                total[1] += one.outside.get(place, 0)
                total[2] += count
        values = sum(total[2] for total in places.values())
        beyond = sum(total[1] for total in places.values())
        compared = self._verdict([one for _, one in asked])
        return {
            "texts": len(asked),
            "texts_outside": len(out),
            "texts_marked": len(marked),
            "refused": [{"line": line, "error": one.error} for line, one in found if one.error],
            "values": values,
            "values_outside": beyond,
            "share_outside": beyond / max(1, values),
            "places": [
                {"place": place, "texts": n, "values": of, "outside": count, "share": count / of}
                for place, (n, count, of) in sorted(places.items(), key=lambda row: -row[1][1] / row[1][2])
                if count
            ],
            "worst": [self._row(line, one) for line, one in worst[:WORST]],
            "compared": compared,
            "verdict": _words(len(asked), len(out), len(marked), beyond / max(1, values), found),
        }

    def _badness(self, row: tuple[int, Checked]) -> tuple[int, float]:
        return -len(row[1].marked), -row[1].beyond

    def _row(self, line: int, one: Checked) -> dict[str, Any]:
        compared = self._verdict([one])
        return {
            "line": line,
            "tokens": one.tokens,
            "values": one.beyond,
            "place": next((place for place, count in one.outside.items() if count), ", ".join(one.marked[:1])),
            "marked": list(one.marked),
            "verdict": compared["verdict"] if compared else None,
            "least_cosine": compared["least_cosine"] if compared else None,
        }


def _count(found: Checked, program: Program, step: Step, read: list[Any], labels: dict[str, str]) -> None:
    """Values of one opening that are beyond their bounds. A truncation may add one unit."""
    layer = program.layers[step.layer].split(PART)[0]
    for name, x in zip(step.inputs, read, strict=False):
        wire = program.wires.get(name)
        if wire is None or not wire.bound or not hasattr(x, "abs"):
            continue
        limit = math.floor(math.ldexp(wire.bound, wire.frac)) + 1
        place = f"{layer}, {labels.get(name, step.label)}"
        beyond = int(((x > limit) | (x < -limit)).sum())
        found.values[place] = found.values.get(place, 0) + x.numel()
        found.outside[place] = found.outside.get(place, 0) + beyond


def _words(asked: int, out: int, marked: int, share: float, found: Sequence[tuple[int, Checked]]) -> str:
    refused = len(found) - asked
    rest = f"; {refused} could not be asked" if refused else ""
    if not asked:
        return "nothing checked: none of these texts could be asked"
    if not out:
        return f"in range: no value of {asked} text{'s' if asked != 1 else ''} leaves its calibrated range{rest}"
    told = f"{out} of {asked} texts ({out / asked:.1%}) and {share:.2g} of all values leave their ranges"
    if not marked:
        return f"nearly in range: {told}, none so far that the range guard would mark it{rest}"
    return (
        f"out of range: {told}; the range guard would mark {marked} of these texts{rest}; "
        "calibrate on text nearer to these"
    )
