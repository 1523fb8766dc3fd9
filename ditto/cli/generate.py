"""`ditto generate`: continue a text with a shared GPT-2."""

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
from ditto.cli.generating import Asked, Wish, Words, Writer, interruptible, text_of, warning_of
from ditto.cli.report import CostFiles
from ditto.cli.run import emulated, network_of, watching
from ditto.cli.texts import read_file
from ditto.errors import UsageError
from ditto.report.pieces import size

if TYPE_CHECKING:
    from ditto.client.generation import Generated


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
    if server_argmax and temperature:
        raise UsageError("--server-argmax takes the likeliest token: no --temperature")
    if check and temperature and seed is None:
        raise UsageError("--check of sampled text needs a --seed")
    wish = Wish(
        _prompts(prompt, file), max_new_tokens, temperature, top_k, top_p, seed, server_argmax, exact_length,
        narrow_from, range_check,
    )  # fmt: skip
    if not (check or report or trace or config):
        from ditto.cli.generate_served import by_a_server

        if served := by_a_server(model, wish, json):
            _print(served[0], json)
            if served[1]:
                warn_of_range(served[1], strict)
            return
    sampler, settings = wish.sampler(), settings_for(model, config)
    with asking(model, settings) as (client, found):
        checkpoint = found.checkpoint if check else None
        asked = Asked.of(found.description, found.tokenizer(), wish)
        with interruptible() as stopping, watching(json) as watcher:
            writer = Writer(wish.prompts[0], watcher)
            watcher.job(model)
            if wish.streams(json):
                words = Words(asked.tokenizer)

                def take(fresh: list[int | None]) -> bool:
                    writer.write(words.push(fresh[0]))
                    return not stopping

                result = asked.run(client, sampler, take, watcher.event)
                writer.finish(words.finish())
            else:
                result = asked.run(client, sampler, lambda _: not stopping, watcher.event)
    summary = asked.summary(result, network_of(settings), bool(stopping))
    if checkpoint:
        summary |= _check(checkpoint, asked, result)
    _print(summary, json)
    files.write(summary, emulated(settings))
    if warning := warning_of(summary):
        warn_of_range(warning, strict)


def _print(summary: dict[str, Any], json: bool) -> None:
    """What was not printed as it came."""
    if json:
        emit(summary)
    else:
        if len(summary["prompts"]) > 1:
            for text, new in zip(summary["prompts"], summary["output"], strict=True):
                out.print(Text.assemble((visible(text), "bold"), visible(new)), soft_wrap=True)
        show(summary)


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


def _prompts(prompt: list[str] | None, file: Path | None) -> list[str]:
    prompts = list(prompt or [])
    if file is not None:
        prompts += [line for line in read_file(file).splitlines() if line]
    if not prompts:
        raise UsageError("nothing to continue: give --prompt or --file")
    return prompts


def _check(directory: Path, asked: Asked, result: "Generated") -> dict[str, Any]:
    """The same by the plaintext model in floats; tokens agree up to the first that differs."""
    from ditto.models import generator_of, load_checkpoint

    checkpoint, tokenizer = load_checkpoint(directory), asked.tokenizer
    texts = [ids[:n].tolist() for ids, n in zip(asked.prompts.ids, asked.prompts.lengths, strict=True)]
    count = max(map(len, result.tokens))
    plain = generator_of(checkpoint.class_name).continue_texts(
        checkpoint.tensors, checkpoint.dimensions, texts, count, asked.wish.sampler().choose, tokenizer.end_of_text
    )
    agreeing = 0
    for mine, theirs in zip(result.tokens, plain, strict=True):
        same = [a == b for a, b in zip(mine, theirs, strict=False)]
        agreeing += same.index(False) if False in same else len(same)
    return {
        "plaintext_output": [text_of(tokenizer, tokens) for tokens in plain],
        "plaintext_tokens": plain,
        "agreeing_tokens": agreeing,
        "tokens": sum(map(len, result.tokens)),
    }
