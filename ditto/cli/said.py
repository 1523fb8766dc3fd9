"""What a model's values say of a text: fields for JSON, a line for people."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ditto.api.reading import chosen, is_multi_label, is_score, probabilities, span, words
from ditto.cli.common import one_line

if TYPE_CHECKING:
    from ditto.models import Answer, Description, Dimensions
    from ditto.models.tokenizer import Text, Tokenizer


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
        if self.answer not in ("tokens", "span"):
            return {}
        pieces = self.tokenizer.pieces(text, len(values))
        if self.answer == "tokens":
            found = words(text, pieces, values, d)
            return {"words": [{"word": w.text, "label": w.label, "probability": w.probability} for w in found]}
        best = span(text, pieces, values)
        return {"span": {"text": best.text, "tokens": [best.first, best.last], "start": best.start, "end": best.end}}

    def line(self, text: "Text", values: list[Any]) -> str:
        """The same in words."""
        found = self.fields(text, values)
        if "words" in found:
            return " ".join(f"{one_line(row['word'])}/{one_line(row['label'])}" for row in found["words"])
        if "span" in found:
            best, (first, last) = found["span"], found["span"]["tokens"]
            return (
                f"{one_line(best['text'])!r}  (tokens {first} to {last}, {best['start']:+.3f} and {best['end']:+.3f})"
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


def _labels(logits: list[float], d: "Dimensions") -> dict[str, Any]:
    if len(d.labels) == 1:
        return {"score": logits[0]}
    if is_score(d):
        return {"scores": dict(zip(d.labels, logits, strict=True))}
    likely = probabilities(logits, d)
    found = chosen(likely, d)
    said: dict[str, Any] = {"labels": list(found)} if is_multi_label(d) else {"label": found[0]}
    return said | {"probabilities": dict(zip(d.labels, likely, strict=True))}
