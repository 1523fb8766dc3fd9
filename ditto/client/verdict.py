"""Answers under MPC against those in plaintext, in words: are they the same?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditto.models import Description

# Of vectors the least cosine; of labels the largest difference of a probability (softmax, or a sigmoid where several
# may be right); of scores that of a score. What fixed point and tables cost is far less than SAME; an answer whose
# values left their ranges is mostly far from CLOSE (docs/calibration.md).
SAME_COSINE, CLOSE_COSINE = 0.999, 0.98
SAME_PROBABILITY, CLOSE_PROBABILITY = 0.02, 0.1
SAME_SCORE, CLOSE_SCORE = 0.05, 0.2
WORDS = {"same": "the same as plaintext", "close": "close to plaintext", "different": "NOT the same as plaintext"}

Row = Sequence[float]


@dataclass(frozen=True)
class Verdict:
    """`verdict` is same, close or different, by `text` in words. `cosine` is the least of vectors; `agreement` counts
    the same labels (of texts, tokens, or ends of spans) and all of them; None where answers are of another kind."""

    verdict: str
    text: str
    cosine: float | None = None
    agreement: tuple[int, int] | None = None

    def document(self) -> dict[str, Any]:
        """For --json."""
        agreement = list(self.agreement) if self.agreement else None
        return {
            "verdict": self.verdict, "verdict_text": self.text, "least_cosine": self.cosine, "labels_agree": agreement,
        }  # fmt: skip


def kind_of(description: Description) -> str:
    """What `verdict` is to compare of this model's answers."""
    from ditto.models import architecture_of
    from ditto.models.description import is_multi_label, is_score

    kind, d = architecture_of(description.architecture).answer.value, description.dimensions
    if kind != "labels":
        return kind
    return "scores" if is_score(d) else "several" if is_multi_label(d) else kind


def verdict(kind: str, answers: Sequence[Any], reference: Sequence[Any]) -> Verdict:
    """Of one answer a text; `kind` as `ditto.models.Answer` has it: "vector" [H], "labels" [L], "tokens" [N, L], "span"
    [N, 2] a text; or "scores" [L], and "several" [L] where each label is right or not.

    Same: every cosine is at least SAME_COSINE; all labels agree and no probability differs by more than
    SAME_PROBABILITY; no score does by more than SAME_SCORE. Close: likewise, where a label may differ, since plaintext
    was in doubt about it.
    """
    pairs = list(zip(_rows(kind, answers), _rows(kind, reference), strict=True))
    if kind == "vector":
        cosine = min((_cosine(*pair) for pair in pairs), default=1.0)
        return _graded(cosine >= SAME_COSINE, cosine >= CLOSE_COSINE, f"cosine {cosine:.4f} (least)", cosine=cosine)
    if kind == "scores" or all(len(x) == 1 for x, _ in pairs):
        most = _most(abs(p - q) for x, y in pairs for p, q in zip(x, y, strict=True))
        return _graded(most <= SAME_SCORE, most <= CLOSE_SCORE, f"scores differ by {most:.4f} at most")
    most = _most(abs(p - q) for x, y in pairs for p, q in zip(_softmax(x), _softmax(y), strict=True))
    same, of = sum(_best(x) == _best(y) for x, y in pairs), len(pairs)
    agree = "agrees" if of == 1 else "agree"
    told = f"{same} of {of} label{'s' if of != 1 else ''} {agree}, probabilities within {most:.4f}"
    return _graded(same == of and most <= SAME_PROBABILITY, most <= CLOSE_PROBABILITY, told, agreement=(same, of))


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several jobs: the worst one's grade and words, the least cosine, labels counted over all."""
    worst = max(verdicts, key=lambda found: list(WORDS).index(found.verdict), default=Verdict("same", WORDS["same"]))
    text = worst.text if len(verdicts) < 2 else f"{worst.text}, in the worst of {len(verdicts)} jobs"
    cosines = [found.cosine for found in verdicts if found.cosine is not None]
    counts = [found.agreement for found in verdicts if found.agreement is not None]
    agreement = (sum(same for same, _ in counts), sum(of for _, of in counts)) if counts else None
    return Verdict(worst.verdict, text, min(cosines, default=None), agreement)


def _graded(same: bool, close: bool, told: str, **found: Any) -> Verdict:
    grade = "same" if same else "close" if close else "different"
    return Verdict(grade, f"{WORDS[grade]}: {told}", **found)


def _rows(kind: str, answers: Sequence[Any]) -> list[Row]:
    """What has one label each: texts, tokens, of spans starts and ends; where several may be right, each label."""
    if kind == "several":  # the sigmoid of x is the softmax of (x, 0)
        return [(x, 0.0) for text in answers for x in text]
    if kind == "tokens":
        return [token for text in answers for token in text]
    if kind == "span":
        return [column for text in answers for column in zip(*text, strict=True)]
    return list(answers)


def _most(differences: Any) -> float:
    """The largest; infinite where one is no number."""
    return max((x if math.isfinite(x) else math.inf for x in differences), default=0.0)


def _softmax(row: Row) -> list[float]:
    most = max(row)
    powers = [math.exp(x - most) for x in row]
    total = math.fsum(powers)
    return [x / total for x in powers]


def _best(row: Row) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _cosine(a: Row, b: Row) -> float:
    """Of two vectors that are 0, 1; of one, 0. Below any bound where one has what is no number."""
    if list(a) == list(b):
        return 1.0
    size = math.hypot(*a) * math.hypot(*b)
    found = math.fsum(x * y for x, y in zip(a, b, strict=True)) / size if size else 0.0
    return found if math.isfinite(found) else -1.0
