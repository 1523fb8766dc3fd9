"""Labelled texts: by a model's logits, its score, or the cosine of two texts' vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch

from ditto.errors import EmptyText, TextTooLong, UsageError
from ditto.evaluation.subject import Difference
from ditto.models import Dimensions
from ditto.models.architecture import Answer
from ditto.models.description import is_multi_label, is_score
from ditto.models.tokenizer import Batch, Row, Text, Tokenizer, padded, padded_width
from ditto.train.data import Example, Task
from ditto.train.metrics import OF_CLASSES, OF_SCORES

Tensor = torch.Tensor


class LabelledTexts:
    """A `Subject`: texts, or pairs, with a class's number or a score.

    `task` says more where it is known by name: its metric, its classes' names, pairs. A model of vectors is asked for
    both texts of a pair, in one job, and the cosine of the two is the output.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        answer: Answer,
        dimensions: Dimensions,
        task: Task | None = None,
        metric: str | None = None,
        truncate: bool = False,
    ) -> None:
        """Raises UsageError for labels or a metric that do not fit the model, EmptyText for no example."""
        if not examples:
            raise EmptyText("no example to evaluate on")
        self._examples, self._tokenizer, self._truncate = examples, tokenizer, truncate
        self._limit, self._vectors = dimensions.positions, answer is Answer.vector
        self._order = _checked(examples, answer, dimensions, task)
        self.metrics = _metrics(metric or (task.metric if task else None), classes=bool(self._order))
        self.size = len(examples)
        self.digest = hashlib.sha256(json.dumps(examples).encode()).hexdigest()
        self._rows: dict[int, list[Row]] = {}  # tokens

    def label(self, row: int) -> float:
        return self._examples[row].label

    def prepare(self, rows: Sequence[int]) -> None:
        most = self._limit if self._truncate else self._limit + 1
        texts = [text for row in rows for text in self._texts(row)]
        found = iter(self._tokenizer.cut(texts, most))
        for row in rows:
            self._rows[row] = [next(found) for _ in self._texts(row)]
            if self._length(row) > self._limit:
                raise TextTooLong(
                    f"example {row + 1}: more than the {self._limit} tokens that this model takes; "
                    "--truncate cuts what is too long"
                )

    def width(self, row: int) -> int:
        return padded_width(self._length(row), self._limit)

    def batch(self, rows: Sequence[int]) -> Batch:
        return padded([part for row in rows for part in self._rows[row]], max(map(self.width, rows)))

    def outputs(self, found: Tensor, rows: Sequence[int]) -> list[list[float]]:
        if self._vectors:
            first, second = found[0::2], found[1::2]
            found = torch.nn.functional.cosine_similarity(first, second, dim=1)[:, None]
        elif self._order:
            found = found[:, self._order]
        result: list[list[float]] = found.tolist()
        return result

    def differences(self, found: Tensor, reference: Tensor, rows: Sequence[int]) -> list[Difference]:
        a, b = (torch.tensor(self.outputs(x, rows), dtype=torch.float64) for x in (found, reference))
        differing = (a.argmax(1) != b.argmax(1)).double().tolist()
        return [Difference(*pair) for pair in zip(differing, (a - b).abs().amax(1).tolist(), strict=True)]

    def _texts(self, row: int) -> tuple[Text, ...]:
        """What is asked for one example: a text, a pair as one text, or both texts of a pair."""
        text = self._examples[row].text
        return text if self._vectors and isinstance(text, tuple) else (text,)

    def _length(self, row: int) -> int:
        return max(len(ids) for ids, _ in self._rows[row])


def _checked(examples: Sequence[Example], answer: Answer, d: Dimensions, task: Task | None) -> list[int]:
    """The model's output of each class in the task's order; none where the outputs are scores."""
    pairs = {isinstance(example.text, tuple) for example in examples}
    if answer not in (Answer.labels, Answer.vector):
        raise UsageError(f"a model that answers with {_SAID[answer]}: texts are evaluated by their labels or vectors")
    if answer is Answer.vector:
        if (task and task.labels) or pairs != {True}:
            raise UsageError("a model that answers with vectors is evaluated on pairs with scores, as stsb's")
        return []
    if is_multi_label(d):
        raise UsageError(
            f"a model whose labels may be right at once, or none of them ({_few(d.labels)}): texts are evaluated by "
            "one label or one score each; `ditto infer --file FILE --jsonl` says each label's probability"
        )
    if is_score(d) and len(d.labels) > 1:
        raise UsageError(f"a model of {len(d.labels)} scores ({_few(d.labels)}): texts are evaluated by one each")
    if len(d.labels) == 1:
        if task and task.labels:
            raise UsageError(f"task {task.name} has {len(task.labels)} labels, the model answers with one score")
        return []
    if task and not task.labels:
        raise UsageError(f"task {task.name} asks for a score, the model answers with {len(d.labels)} labels")
    if task and len(task.labels) != len(d.labels):
        raise UsageError(f"task {task.name} has {len(task.labels)} labels, the model {len(d.labels)}: {_few(d.labels)}")
    for row, example in enumerate(examples, 1):
        if example.label not in range(len(d.labels)):
            raise UsageError(f"example {row}: label {example.label:g}; the model's are 0 to {len(d.labels) - 1}")
    return order_of(task.labels if task else (), d.labels)


_SAID = {Answer.tokens: "labels of tokens", Answer.span: "spans", Answer.text: "text"}


def order_of(task: Sequence[str], model: Sequence[str]) -> list[int]:
    """The model's label for each of the task's: by name where all names agree, in whatever order, else by number."""
    wanted, found = ([name.lower().replace("_", " ").replace("-", " ") for name in names] for names in (task, model))
    if sorted(wanted) == sorted(found) and len(set(found)) == len(found):
        return [found.index(name) for name in wanted]
    return list(range(len(model)))


def _metrics(wanted: str | None, *, classes: bool) -> tuple[str, ...]:
    known = OF_CLASSES if classes else OF_SCORES
    if wanted is None:
        return known
    if wanted not in known:
        kind = "classes" if classes else "scores"
        raise UsageError(f"metric {wanted!r}: of {kind}, {' or '.join(known)}")
    return (wanted, *(name for name in known if name != wanted))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
