"""What a job of `ditto generate` is asked with, and what is said of what came, whoever prints it."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ditto.cli.common import visible

if TYPE_CHECKING:
    from ditto.cli.run import Watcher
    from ditto.client.client import Client
    from ditto.client.generation import Generated
    from ditto.client.sampling import Sampler
    from ditto.models import Description, Plan
    from ditto.models.tokenizer import Prompts, TextStream, Tokenizer


@dataclass(frozen=True)
class Wish:
    """The command's options that a text follows from."""

    prompts: list[str]
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    server_argmax: bool
    exact_length: bool
    narrow_from: int
    range_check: bool

    def streams(self, json: bool) -> bool:
        """Is the text printed as it comes?"""
        return len(self.prompts) == 1 and not json

    def sampler(self) -> "Sampler":
        """Raises UsageError."""
        from ditto.client.sampling import Sampler

        return Sampler(self.temperature, self.top_k, self.top_p, self.seed)


@dataclass(frozen=True)
class Asked:
    """A wish, encoded for one model."""

    description: "Description"
    tokenizer: "Tokenizer"
    wish: Wish
    prompts: "Prompts"
    plan: "Plan"

    @classmethod
    def of(cls, description: "Description", tokenizer: "Tokenizer", wish: Wish) -> "Asked":
        """Raises EmptyText, TextTooLong, and UsageError for a model that generates no text."""
        from ditto.models import Plan, generator_of

        generator_of(description.architecture)
        room = description.dimensions.positions - wish.max_new_tokens + 1
        prompts = tokenizer.encode_prompts(wish.prompts, room, bucket=not wish.exact_length)
        plan = Plan(
            *prompts.shape, tokens=wish.max_new_tokens, argmax=wish.server_argmax, narrow_from=wish.narrow_from,
            guard=wish.range_check,
        )  # fmt: skip
        return cls(description, tokenizer, wish, prompts, plan)

    def run(
        self, client: "Client", sampler: "Sampler", on_token: Callable[[list[int | None]], bool],
        on_event: Callable[[dict[str, Any]], None],
    ) -> "Generated":  # fmt: skip
        """The job. `on_token` as `ditto.client.generation.generate` has it; `on_event` is told of the prompt's layers:
        later tokens show themselves."""
        from ditto.client.generation import generate

        def follow(event: dict[str, Any]) -> None:
            if not str(event.get("name", "")).startswith("token "):
                on_event(event)

        end = self.tokenizer.end_of_text
        return generate(client, self.description, self.prompts, self.plan, sampler, end, on_token, follow)

    def summary(self, result: "Generated", network: str, stopped: bool) -> dict[str, Any]:
        """The document of `--json`."""
        found = document(result, self.description, self.plan, network, self.tokenizer)
        return found | {"prompts": self.wish.prompts, "stopped_by": self._reason(result, stopped)}

    def _reason(self, result: "Generated", stopped: bool) -> str:
        end = self.tokenizer.end_of_text
        if end is not None and all(tokens[-1] == end for tokens in result.tokens):
            return "end of text"
        return "length" if len(result.seconds) == self.plan.tokens else "interrupt" if stopped else "client"


class Words:
    """The text of one prompt's tokens, as they come. Raises UsageError for a vocabulary that is not byte-level."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._end = tokenizer.end_of_text
        self._stream: TextStream = tokenizer.stream()

    def push(self, token: int | None) -> str:
        return "" if token is None or token == self._end else self._stream.push(token)

    def finish(self) -> str:
        """What no token completed."""
        return self._stream.finish()


class Writer:
    """Writes one prompt and what follows it on stdout, as it comes; the progress bar goes away first."""

    def __init__(self, prompt: str, watcher: "Watcher") -> None:
        self._prompt, self._watcher, self._begun = prompt, watcher, False

    def write(self, text: str) -> None:
        if not self._begun:
            self._watcher.end()
            text = self._prompt + text
            self._begun = True
        sys.stdout.write(visible(text))
        sys.stdout.flush()

    def finish(self, text: str = "") -> None:
        """The end of the text; of none that has not begun."""
        if self._begun:
            self.write(text + "\n")


@contextmanager
def interruptible(then: Callable[[], None] = lambda: None) -> Iterator[list[bool]]:
    """The first Ctrl-C is noted in what this yields, and `then` is called; a second one interrupts."""
    stopping: list[bool] = []

    def stop(signum: int, frame: Any) -> None:
        if stopping:
            raise KeyboardInterrupt
        stopping.append(True)
        then()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, before)


def warning_of(summary: dict[str, Any]) -> str:
    """Of values that left their range; empty where none did."""
    if not (marks := summary["out_of_range_layers"]):
        return ""
    from ditto.client.ranges import sentence

    return sentence(marks, "the text")


def document(
    result: "Generated", description: "Description", plan: "Plan", network: str, tokenizer: "Tokenizer | None"
) -> dict[str, Any]:
    """The fields of `generate --json`; `bench model --json` of a GPT-2 has them, too, but for the texts.

    `prompt` is what the first token cost, `per_token` the mean of the later ones.
    """
    later = [row for row in result.report["layers"] if str(row["name"]).startswith("token ")]
    first = [row for row in result.report["layers"] if row not in later]
    return {
        "model": description.name,
        "owner": result.report["owner"],
        "architecture": description.architecture,
        "preset": description.preset,
        "embeddings": description.embeddings,
        "network": network,
        "texts": plan.batch,
        "seq": plan.seq,
        "output": [text_of(tokenizer, tokens) for tokens in result.tokens] if tokenizer else [],
        "output_tokens": result.tokens,
        "tokens_per_second": result.tokens_per_second,
        "token_seconds": result.seconds,
        "prompt": _mean(first, 1),
        "per_token": _mean(later, len(later)) if later else None,
    } | {
        key: result.report[key]
        for key in (
            "online", "offline", "layers", "operations", "traffic", "jobs", "rounds_timeline", "seconds",
            "wall_seconds", "in_range", "out_of_range_layers", "stock", "stocked_jobs",
        )
    }  # fmt: skip


def _mean(rows: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Sums of rows over `count`."""

    def total(phase: str, key: str) -> Any:
        values = [row[phase][key] for row in rows]
        if isinstance(values[0], list):
            return [sum(column) / count for column in zip(*values, strict=True)]
        return sum(values) / count

    return {phase: {key: total(phase, key) for key in rows[0][phase]} for phase in ("online", "offline")}


def text_of(tokenizer: "Tokenizer", tokens: list[int]) -> str:
    """Without the end of the text."""
    return tokenizer.decode([token for token in tokens if token != tokenizer.end_of_text])
