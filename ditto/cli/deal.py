"""`ditto deal`: correlations of jobs to come, laid down at the parties."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditto.cli.common import ConfigFile, Json, RangeCheck, connect, emit, note, out
from ditto.cli.waiting import waiting
from ditto.errors import UsageError
from ditto.report.pieces import size

if TYPE_CHECKING:
    from ditto.models import Description


def deal(
    model: Annotated[str, typer.Option("--model", help="A model shared before.")],
    seq: Annotated[int, typer.Option("--seq", min=1, help="Tokens that the texts are padded to.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Jobs.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Texts of each.")] = 1,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Of a GPT-2: as --max-new-tokens of generate; default: 32.")
    ] = None,
    server_argmax: Annotated[bool, typer.Option("--server-argmax", help="As generate has it.")] = False,
    narrow_from: Annotated[int, typer.Option("--narrow-from", min=0, help="As generate has it.")] = 0,
    range_check: RangeCheck = True,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Have correlations dealt before they are asked for: the jobs that take them are sooner done.

    A job takes what is in stock for exactly its kind: model, texts, padded length, tokens, range check.
    """
    from ditto.models import Plan

    with connect(config) as client, waiting(json) as say:
        description = client.get_model(model)
        generates = _check(description, seq, tokens, server_argmax, narrow_from)
        plan = Plan(
            batch, seq, tokens=(tokens or 32) if generates else 1, argmax=server_argmax, narrow_from=narrow_from,
            guard=range_check,
        )  # fmt: skip
        laid = client.deal(model, plan, count, lambda laid: say(f"{laid['done']} of {count} jobs laid down"))
    document: dict[str, Any] = {
        "model": model, "batch": batch, "seq": seq, "tokens": plan.tokens, "jobs": laid["done"],
        "seconds": laid["seconds"], "bytes": laid["bytes"],
    }  # fmt: skip
    if json:
        emit(document)
        return
    first, second = map(size, laid["bytes"])
    out.print(f"{laid['done']} jobs in {laid['seconds']:.1f} s: {first} at party0, {second} at party1")


def _check(description: "Description", seq: int, tokens: int | None, server_argmax: bool, narrow_from: int) -> bool:
    """Does the model generate? Raises UsageError for what it does not do; says where no text is padded so."""
    from ditto.models.compiled import generates
    from ditto.models.tokenizer import padded_width

    found = generates(description.text())
    most = description.dimensions.positions
    if not found and (tokens is not None or server_argmax or narrow_from):
        raise UsageError("--tokens, --server-argmax and --narrow-from are for models that generate text")
    if found:
        most -= (tokens or 32) - 1
    if seq > most:
        raise UsageError(f"--seq {seq}: {description.name} takes at most {max(most, 0)} tokens so")
    if (width := padded_width(seq, most)) != seq:
        note(f"texts are padded to {width} tokens rather than to {seq}: only a job with exact lengths will take these")
    return found
