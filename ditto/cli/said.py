"""What a model's values say of a text: fields for JSON, a line for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ditto.api.reading import chosen, is_multi_label, is_score, probabilities
from ditto.cli.common import one_line

if TYPE_CHECKING:
    from ditto.models import Answer, Description, Dimensions
    from ditto.models.tokenizer import Piece, Text, Tokenizer


@dataclass(frozen=True)
class Reader:
    """Reads the answers of one model."""

    description: "Description"
    tokenizer: "Tokenizer"

    @property
    def answer(self) -> "Answer":
        from ditto.models import architecture_of

        return architecture_of(self.description.architecture).answer

    def fields(self, text: "Text", values: list[Any]) -> dict[str, Any]:
        """`label` and `probabilities`; `labels` and `probabilities` where several may be right; `score` (of several
        outputs `scores`); `words` with a label each; the `span` that is the answer. Nothing of a vector."""
        d = self.description.dimensions
        if self.answer == "labels":
            return _labels(values, d)
        if self.answer == "tokens":
            return {"words": self._words(text, values)}
        if self.answer == "span":
            return {"span": self._span(text, values)}
        return {}

    def line(self, text: "Text", values: list[Any]) -> str:
        """The same in words."""
        found = self.fields(text, values)
        if "words" in found:
            return " ".join(f"{one_line(row['word'])}/{one_line(row['label'])}" for row in found["words"])
        if "span" in found:
            span = found["span"]
            first, last = span["tokens"]
            return (
                f"{one_line(span['text'])!r}  (tokens {first} to {last}, {span['start']:+.3f} and {span['end']:+.3f})"
            )
        if "score" in found:
            return f"{found['score']:+.4f}"
        if "scores" in found:
            return ", ".join(f"{one_line(label)} {score:+.4f}" for label, score in found["scores"].items())
        if "probabilities" in found:
            named = ", ".join(f"{one_line(label)} {p:.1%}" for label, p in found["probabilities"].items())
            best = ", ".join(map(one_line, found.get("labels", [found.get("label")]))) or "no label"
            return f"{best}  ({named})"
        head = ", ".join(f"{value:+.4f}" for value in values[:6])
        return f"[{head}, …]  {len(values)} numbers; --json prints them all"

    def _words(self, text: "Text", values: list[list[float]]) -> list[dict[str, Any]]:
        """A word has the label of its first token, as is usual; special tokens have none."""
        pieces = self.tokenizer.pieces(text, len(values))
        labels = self.description.dimensions.labels
        words = []
        for (segment, word), rows in groupby(enumerate(pieces), key=lambda row: (row[1].segment, row[1].word)):
            tokens = list(rows)
            if segment is None or word is None:
                continue
            at, logits = tokens[0][0], values[tokens[0][0]]
            best = _best(logits)
            words.append(
                {
                    "word": _between(text, pieces[at], pieces[tokens[-1][0]]),
                    "label": labels[best],
                    "probability": probabilities(logits, self.description.dimensions)[best],
                }
            )
        return words

    def _span(self, text: "Text", values: list[list[float]]) -> dict[str, Any]:
        """The likeliest span that does not end before it starts: its characters, its tokens, its two logits."""
        starts, ends = zip(*values, strict=True)
        first = max(range(len(starts)), key=lambda i: starts[i] + max(ends[i:]))
        last = first + _best(ends[first:])
        pieces = self.tokenizer.pieces(text, len(values))
        return {
            "text": _between(text, pieces[first], pieces[last]),
            "tokens": [first, last],
            "start": starts[first],
            "end": ends[last],
        }


def _labels(logits: list[float], d: "Dimensions") -> dict[str, Any]:
    if len(d.labels) == 1:
        return {"score": logits[0]}
    if is_score(d):
        return {"scores": dict(zip(d.labels, logits, strict=True))}
    likely = probabilities(logits, d)
    found = chosen(likely, d)
    said: dict[str, Any] = {"labels": list(found)} if is_multi_label(d) else {"label": found[0]}
    return said | {"probabilities": dict(zip(d.labels, likely, strict=True))}


def _between(text: "Text", first: "Piece", last: "Piece") -> str:
    """The characters from one token to another of the same segment; none for special tokens, or across segments."""
    if first.segment is None or first.segment != last.segment:
        return ""
    segment = text if isinstance(text, str) else text[first.segment]
    return segment[first.start : last.end].strip()


def _best(logits: Sequence[float]) -> int:
    return max(range(len(logits)), key=logits.__getitem__)
