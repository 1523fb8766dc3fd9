"""A shared model, to be asked."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ditto.api import jobs
from ditto.api.answers import Answer, Classification, Cost
from ditto.api.generation import Generation
from ditto.api.reading import chosen, is_score, probabilities
from ditto.client.flight import IN_FLIGHT, Ending, checked, flown
from ditto.client.generation import Generated, generate
from ditto.client.sampling import Sampler
from ditto.errors import RangeWarning, UsageError
from ditto.models import Answer as Kind
from ditto.models import Plan, architecture_of, generator_of

if TYPE_CHECKING:
    from ditto.api.answers import Numbers, Text
    from ditto.api.public import Public
    from ditto.client.client import Client
    from ditto.models import Description, Dimensions
    from ditto.models.tokenizer import Batch

BATCH = 8  # texts in one job


class Model:
    """What a client knows of a shared model: its description and its tokenizer, no weights. Made by `Cluster.model`.

    Questions are checked and tokenized, all of them, before the first job begins: EmptyText, TextTooLong and UsageError
    are raised by the call itself. While a job runs: PeerAbsent, PeerLost, Busy, NotAllowed, LimitExceeded and what else
    `ditto.errors` has for servers. `range_check`: learn whether values left their calibrated range (2 bytes each).
    """

    def __init__(self, client: Client, public: Public, cluster: object = None) -> None:
        """`cluster`: what must not go while this is there, as in `ditto.local().model(name)`."""
        self._client, self._public, self._cluster = client, public, cluster

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def description(self) -> Description:
        """What everybody may know: sizes, preset, ranges."""
        return self._public.description

    @property
    def kind(self) -> str:
        """What it answers with: vector, labels, tokens, span or text."""
        return architecture_of(self.description.architecture).answer.value

    @property
    def labels(self) -> tuple[str, ...]:
        return self.description.dimensions.labels

    @property
    def max_length(self) -> int:
        """Tokens of the longest text."""
        return self.description.dimensions.positions

    def ask(
        self, texts: str | Iterable[Text], pairs: Iterable[str] | None = None, *, batch: int = BATCH,
        range_check: bool = True, in_flight: int = IN_FLIGHT,
    ) -> Iterator[Answer]:  # fmt: skip
        """The answers of any model but one that generates, as they are, job by job as they come.

        `texts`: one or several; a pair is a tuple, or its second segment is in `pairs`, which are as many then. `batch`
        texts are one job: more of them cost less each, and the first answers come later. `in_flight` jobs are asked at
        once, 1 to 8: while one waits on the network another computes. No job begins before an answer is wanted; answers
        come in the order of the texts. An error comes after the answers of the jobs before the one that failed. Jobs
        under way end then, and when the iterator is closed.
        """
        if self.kind == Kind.text:
            raise UsageError(f"{self.name} generates text: use generate")
        if batch < 1:
            raise UsageError(f"batch {batch}: at least 1")
        checked(in_flight)
        asked = _paired(texts, pairs)
        pieces = [asked[i : i + batch] for i in range(0, len(asked), batch)]
        encoded = [(piece, self._public.tokenizer.encode(piece, self.max_length)) for piece in pieces]
        tables = self._public.tables() if asked else None

        def one(job: tuple[list[Text], Batch], ending: Ending) -> tuple[list[Any], dict[str, Any]]:
            return jobs.ask(
                self._client, self.description, job[1], tables, range_check, None, None, None, ending
            )  # fmt: skip

        def answers() -> Iterator[Answer]:
            with contextlib.closing(flown(encoded, one, in_flight)) as landed:
                for each in landed:
                    (piece, _), (values, report) = each.job, each.value
                    cost = Cost.of(report, len(piece))
                    for text, value in zip(piece, values, strict=True):
                        yield Answer(text, np.asarray(value, dtype=np.float32), report["in_range"], cost)

        return answers()

    def classify(
        self, texts: str | Iterable[Text], pairs: Iterable[str] | None = None, *, batch: int = BATCH,
        range_check: bool = True, in_flight: int = IN_FLIGHT,
    ) -> Iterator[Classification]:  # fmt: skip
        """Of a classifier: the likeliest label of each text, or all that are right, as answers come. Arguments as of
        `ask`."""
        d = self.description.dimensions
        self._expect("classify", self.kind == Kind.labels and not is_score(d))
        answers = self.ask(texts, pairs, batch=batch, range_check=range_check, in_flight=in_flight)
        return (_classified(answer, d) for answer in answers)

    def score(
        self, texts: str | Iterable[Text], pairs: Iterable[str] | None = None, *, batch: int = BATCH,
        range_check: bool = True, in_flight: int = IN_FLIGHT,
    ) -> Numbers:  # fmt: skip
        """Of a model with one output (similarity of a pair, regression): a number for each text, [texts], as the head
        gives it, without a sigmoid. Warns with RangeWarning. Arguments as of `ask`."""
        self._expect("score", self.kind == Kind.labels and len(self.labels) == 1)
        rows = self._all(self.ask(texts, pairs, batch=batch, range_check=range_check, in_flight=in_flight))
        return np.array([row[0] for row in rows], dtype=np.float32)

    def encode(
        self, texts: str | Iterable[str], *, normalize: bool = False, batch: int = BATCH, range_check: bool = True,
        in_flight: int = IN_FLIGHT,
    ) -> Numbers:  # fmt: skip
        """Of a model that gives vectors: [texts, H] as sentence-transformers gives them, or [H] for one text alone.

        Pooling, and Normalize where the checkpoint has it, are the model's; `normalize` makes the length 1 in any case.
        Warns with RangeWarning.
        """
        self._expect("encode", self.kind == Kind.vector)
        rows = self._all(self.ask(texts, batch=batch, range_check=range_check, in_flight=in_flight))
        vectors = np.array(rows, dtype=np.float32).reshape(len(rows), self.description.dimensions.hidden)
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors[0] if isinstance(texts, str) else vectors

    def generate(
        self, prompt: str, *, max_new_tokens: int = 32, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
        seed: int | None = None, server_argmax: bool = False, exact_length: bool = False, range_check: bool = True,
    ) -> Generation:  # fmt: skip
        """Of a GPT-2: the tokens that continue `prompt`, as they come, until the end of the text.

        `temperature` 0 takes the likeliest token; else `top_k`, `top_p` and `seed` are as `ditto generate` has them.
        `server_argmax`: the servers find the likeliest token, nobody sees logits. `exact_length`: do not pad the
        prompt: faster, and the servers learn its length. Warns with RangeWarning at the end.
        """
        generator_of(self.description.architecture)
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens {max_new_tokens}: at least 1")
        if server_argmax and temperature:
            raise UsageError("server_argmax takes the likeliest token: no temperature")
        sampler, tokenizer = Sampler(temperature, top_k, top_p, seed), self._public.tokenizer
        encoded = tokenizer.encode_prompts([prompt], self.max_length - max_new_tokens + 1, bucket=not exact_length)
        plan = Plan(*encoded.shape, tokens=max_new_tokens, argmax=server_argmax, guard=range_check)

        def run(take: Callable[[list[int | None]], bool]) -> Generated:
            return generate(self._client, self.description, encoded, plan, sampler, tokenizer.end_of_text, take)

        return Generation(prompt, tokenizer, run)

    def _expect(self, verb: str, fits: bool) -> None:
        if not fits:
            said = f"{self.kind}, {len(self.labels)} outputs" if self.labels else self.kind
            raise UsageError(f"{verb}: not what {self.name} does ({said}); {_VERBS}")

    def _all(self, answers: Iterable[Answer]) -> list[Numbers]:
        """Values of answers that are taken together, with a warning if some may be wrong."""
        taken = list(answers)
        wrong = [i for i, answer in enumerate(taken) if answer.in_range is False]
        if wrong:
            message = f"{len(wrong)} of {len(taken)} answers may be wrong, from number {wrong[0]} on (the first is 0)"
            warnings.warn(f"{message}: values left their calibrated range", RangeWarning, stacklevel=3)
        return [answer.values for answer in taken]


_VERBS = "vectors: encode; labels: classify; one output: score; text: generate; anything else: ask"


def _paired(texts: str | Iterable[Text], pairs: Iterable[str] | None) -> list[Text]:
    """Texts and pairs as a tokenizer takes them. Raises UsageError."""
    asked: list[Text] = [texts] if isinstance(texts, str) else list(texts)
    if pairs is not None:
        seconds = [pairs] if isinstance(pairs, str) else list(pairs)
        if len(seconds) != len(asked):
            raise UsageError(f"{len(asked)} texts and {len(seconds)} pairs: as many expected")
        asked = [(first, second) for first, second in zip(asked, seconds, strict=True) if isinstance(first, str)]
        if len(asked) != len(seconds):
            raise UsageError("pairs: where these are given, texts are their first segments")
    for text in asked:
        parts: Sequence[object] = text if isinstance(text, tuple) else (text,)
        if len(parts) > 2 or not all(isinstance(part, str) for part in parts):
            raise UsageError(f"a text, or a tuple of two, expected, not {type(text).__name__}")
    return asked


def _classified(answer: Answer, d: Dimensions) -> Classification:
    logits = answer.values.astype(np.float64)
    likely = probabilities(logits, d)
    index = int(logits.argmax())
    return Classification(
        answer.text, d.labels[index], index, dict(zip(d.labels, likely, strict=True)), tuple(logits.tolist()),
        answer.in_range, answer.cost, chosen(likely, d),
    )  # fmt: skip
