"""What comes back of a question: the answer, whether it can be trusted, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float32]
    Text = str | tuple[str, str]


@dataclass(frozen=True)
class Phase:
    """One of the two parts of a job. `bytes_sent`: online by each party to the other, offline by the dealer to each
    party. Rounds are online only."""

    seconds: float
    rounds: int
    bytes_sent: tuple[int, int]

    @classmethod
    def of_online(cls, online: dict[str, Any]) -> Self:
        first, second = online["bytes_sent"]
        return cls(online["seconds"], online["rounds"], (first, second))

    @classmethod
    def of_offline(cls, offline: dict[str, Any]) -> Self:
        first, second = offline["bytes_to_party"]
        return cls(offline["seconds"], 0, (first, second))


@dataclass(frozen=True)
class Layer:
    """What one layer of a job cost; of a generation, each token after the first is one."""

    name: str
    online: Phase
    offline: Phase


@dataclass(frozen=True)
class Cost:
    """What a job cost, which answered `texts` texts at once: answers of one job have one and the same cost.

    `seconds` is the time from its question to its answer; those of jobs in flight at once overlap. Those of `layers`
    add up to both phases. `stock`: its correlations had been dealt before (`ditto deal`); the seconds offline are then
    what was still to be done.
    """

    job: str
    texts: int
    seconds: float
    online: Phase
    offline: Phase
    layers: tuple[Layer, ...]
    stock: bool = False

    @classmethod
    def of(cls, report: dict[str, Any], texts: int) -> Self:
        """From the report of a job (`ditto.client.report`)."""
        return cls(
            job=report["job"],
            texts=texts,
            seconds=report["wall_seconds"],
            online=Phase.of_online(report["online"]),
            offline=Phase.of_offline(report["offline"]),
            layers=tuple(
                Layer(layer["name"], Phase.of_online(layer["online"]), Phase.of_offline(layer["offline"]))
                for layer in report["layers"]
            ),
            stock=report["stock"],
        )


@dataclass(frozen=True)
class Answer:
    """What a model says of one text: its values as they are.

    `values`, float32: [H] of a model that gives vectors, [labels] of a classifier, [tokens, labels] of one that
    classifies tokens (special ones included), [tokens, 2] of one that finds spans (start, end). `in_range` is False
    when a value of this job left its calibrated range, so that the answer may be wrong, and None when nobody looked.
    """

    text: Text
    values: Numbers
    in_range: bool | None
    cost: Cost


@dataclass(frozen=True)
class Classification:
    """The likeliest label of one text (or pair), its place among the labels, and how likely each of them is (softmax).

    `logits` are in the order of the model's labels. `in_range` and `cost` as in `Answer`. Of a model that was trained
    for several labels at once each label has a probability of its own (sigmoid), and `labels` are those of at least
    1/2, in the model's order: none, one or several. Of any other it is the one label.
    """

    text: Text
    label: str
    index: int
    probabilities: dict[str, float]
    logits: tuple[float, ...]
    in_range: bool | None
    cost: Cost
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Token:
    """One generated token: its id, the characters that it completes (none within a character of several tokens, or at
    the end of the text), and how many seconds after the question it was there. `str(token)` is its text."""

    id: int
    text: str
    seconds: float

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ModelInfo:
    """A shared model, as its public description says. `kind`: vector, labels, tokens, span or text."""

    name: str
    owner: str
    architecture: str
    preset: str
    kind: str
    max_length: int
    labels: tuple[str, ...]
