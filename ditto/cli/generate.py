"""`ditto generate`: continue a text with a shared GPT-2."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ditto.cli.asked import asking, settings_for
from ditto.cli.common import (
    ConfigFile,
    Json,
    RangeCheck,
    ReportFile,
    Strict,
    TraceFile,
    check_strict,
    emit,
    note,
    one_line,
    out,
    visible,
    warn_of_range,
)
from ditto.cli.report import CostFiles
from ditto.cli.run import Watcher, emulated, network_of, watching
from ditto.cli.texts import read_file
from ditto.errors import UsageError
from ditto.report.pieces import size

if TYPE_CHECKING:
    from ditto.client.generation import Generated
    from ditto.client.sampling import Sampler
    from ditto.models import Description, Plan
    from ditto.models.tokenizer import Prompts, TextStream, Tokenizer


def generate(
    model: Annotated[str, typer.Option("--model", help="A GPT-2 shared before.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A text to continue; repeatable.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A file of prompts, one a line.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens after each prompt, at most.")] = 32,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens that reach this probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the sampling, to repeat it; default: not repeatable.")] = None,
    server_argmax: Annotated[
        bool, typer.Option("--server-argmax", help="The servers find the likeliest token; nobody sees logits.")
    ] = False,
    exact_length: Annotated[
        bool, typer.Option("--exact-length", help="Do not pad prompts: faster, and the servers learn their length.")
    ] = False,
    narrow_from: Annotated[
        int, typer.Option(min=0, help="From this new token on narrower types, for fewer bytes; 0: never.")
    ] = 0,
    range_check: RangeCheck = True,
    strict: Strict = False,
    check: Annotated[bool, typer.Option("--check", help="Generate in plaintext here too, and compare.")] = False,
    report: ReportFile = None,
    trace: TraceFile = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Continue texts on secret shares, token by token. Ctrl-C ends after the token under way."""
    files = CostFiles.checked(report, trace)
    check_strict(strict, range_check)
    prompts = _prompts(prompt, file)
    from ditto.client.generation import generate as run
    from ditto.client.sampling import Sampler
    from ditto.models import Plan, generator_of

    sampler = Sampler(temperature, top_k, top_p, seed)
    if server_argmax and temperature:
        raise UsageError("--server-argmax takes the likeliest token: no --temperature")
    if check and temperature and seed is None:
        raise UsageError("--check of sampled text needs a --seed")
    settings = settings_for(model, config)
    with asking(model, settings) as (client, found):
        description, tokenizer = found.description, found.tokenizer()
        generator_of(description.architecture)  # refused before anything is asked
        checkpoint = found.checkpoint if check else None
        room = description.dimensions.positions - max_new_tokens + 1
        encoded = tokenizer.encode_prompts(prompts, room, bucket=not exact_length)
        plan = Plan(
            *encoded.shape, tokens=max_new_tokens, argmax=server_argmax, narrow_from=narrow_from, guard=range_check
        )
        with interruptible() as stopping, watching(json) as watcher:
            watcher.job(model)
            if len(prompts) > 1 or json:
                result = run(
                    client, description, encoded, plan, sampler, tokenizer.end_of_text, lambda _: not stopping,
                    _prompt_only(watcher),
                )  # fmt: skip
            else:
                writer = _Writer(prompts[0], tokenizer)
                result = run(
                    client, description, encoded, plan, sampler, tokenizer.end_of_text,
                    lambda fresh: writer.push(fresh[0], watcher) and not stopping, _prompt_only(watcher),
                )  # fmt: skip
                writer.finish()
    summary = document(result, description, plan, network_of(settings), tokenizer)
    summary |= {"prompts": prompts, "stopped_by": _reason(result, plan, tokenizer, bool(stopping))}
    if checkpoint is not None:
        summary |= _check(checkpoint, encoded, result, Sampler(temperature, top_k, top_p, seed), tokenizer)
    if json:
        emit(summary)
    else:
        if len(prompts) > 1:
            for text, new in zip(prompts, summary["output"], strict=True):
                out.print(Text.assemble((visible(text), "bold"), visible(new)), soft_wrap=True)
        show(summary)
    files.write(summary, emulated(settings))
    if marks := summary["out_of_range_layers"]:
        from ditto.client.ranges import sentence

        warn_of_range(sentence(marks, "the text"), strict)


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
        "output": [_text(tokenizer, tokens) for tokens in result.tokens] if tokenizer else [],
        "output_tokens": result.tokens,
        "tokens_per_second": result.tokens_per_second,
        "token_seconds": result.seconds,
        "prompt": _mean(first, 1),
        "per_token": _mean(later, len(later)) if later else None,
    } | {
        key: result.report[key]
        for key in (
            "online", "offline", "layers", "operations", "traffic", "jobs", "rounds_timeline", "seconds",
            "wall_seconds", "in_range", "out_of_range_layers",
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


def show(summary: dict[str, Any]) -> None:
    """What it cost, on stderr: stdout has the text."""
    for name, row in (("prompt and first token", summary["prompt"]), ("each later token", summary["per_token"])):
        if row is None:
            continue
        online, offline = row["online"], row["offline"]
        note(
            f"{name}: {online['seconds']:.2f} s online, {offline['seconds']:.2f} s offline; "
            f"{online['rounds']:.0f} rounds, {size(max(online['bytes_sent']))} sent by each party, "
            f"{size(sum(offline['bytes_to_party']))} from the dealer"
        )
    if "agreeing_tokens" in summary:
        note(f"plaintext: {summary['agreeing_tokens']} of {summary['tokens']} tokens the same before the first other")
    rate = summary["tokens_per_second"]
    note(f"the model belongs to {one_line(summary['owner'])}")
    note(f"{rate:.2f} tokens a second" if rate else "one token")


@contextmanager
def interruptible() -> Iterator[list[bool]]:
    """The first Ctrl-C is noted in what this yields, a second one interrupts."""
    stopping: list[bool] = []

    def stop(signum: int, frame: Any) -> None:
        if stopping:
            raise KeyboardInterrupt
        stopping.append(True)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, before)


class _Writer:
    """Writes the text of one prompt on stdout as its tokens come; the progress bar goes away first."""

    def __init__(self, prompt: str, tokenizer: "Tokenizer") -> None:
        self._prompt, self._stop = prompt, tokenizer.end_of_text
        self._stream: TextStream = tokenizer.stream()
        self._begun = False

    def push(self, token: int | None, watcher: Watcher) -> bool:
        if not self._begun:
            watcher.end()
            self._write(self._prompt)
            self._begun = True
        if token is not None and token != self._stop:
            self._write(self._stream.push(token))
        return True

    def finish(self) -> None:
        if self._begun:
            self._write(self._stream.finish() + "\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(visible(text))
        sys.stdout.flush()


def _prompt_only(watcher: Watcher) -> Any:
    """Progress by layer while the prompt is computed; later tokens show themselves."""

    def follow(event: dict[str, Any]) -> None:
        if not str(event.get("name", "")).startswith("token "):
            watcher.event(event)

    return follow


def _prompts(prompt: list[str] | None, file: Path | None) -> list[str]:
    prompts = list(prompt or [])
    if file is not None:
        prompts += [line for line in read_file(file).splitlines() if line]
    if not prompts:
        raise UsageError("nothing to continue: give --prompt or --file")
    return prompts


def _reason(result: "Generated", plan: "Plan", tokenizer: "Tokenizer", stopped: bool) -> str:
    ended = tokenizer.end_of_text is not None and all(t[-1] == tokenizer.end_of_text for t in result.tokens)
    if ended:
        return "end of text"
    return "length" if len(result.seconds) == plan.tokens else "interrupt" if stopped else "client"


def _text(tokenizer: "Tokenizer", tokens: list[int]) -> str:
    return tokenizer.decode([token for token in tokens if token != tokenizer.end_of_text])


def _check(
    directory: Path, prompts: "Prompts", result: "Generated", sampler: "Sampler", tokenizer: "Tokenizer"
) -> dict[str, Any]:
    """The same by the plaintext model in floats; tokens agree up to the first that differs."""
    from ditto.models import generator_of, load_checkpoint

    checkpoint = load_checkpoint(directory)
    texts = [ids[:n].tolist() for ids, n in zip(prompts.ids, prompts.lengths, strict=True)]
    count = max(map(len, result.tokens))
    plain = generator_of(checkpoint.class_name).continue_texts(
        checkpoint.tensors, checkpoint.dimensions, texts, count, sampler.choose, tokenizer.end_of_text
    )
    agreeing = 0
    for mine, theirs in zip(result.tokens, plain, strict=True):
        same = [a == b for a, b in zip(mine, theirs, strict=False)]
        agreeing += same.index(False) if False in same else len(same)
    return {
        "plaintext_output": [_text(tokenizer, tokens) for tokens in plain],
        "plaintext_tokens": plain,
        "agreeing_tokens": agreeing,
        "tokens": sum(map(len, result.tokens)),
    }
