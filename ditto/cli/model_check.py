"""`ditto model check`: would these texts leave the model's calibrated ranges? In plaintext, on this machine alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ditto.cli.common import Json, Strict, emit, note, one_line, out
from ditto.cli.texts import read_file, split_pair
from ditto.client import store
from ditto.errors import BadCheckpoint, OutOfRange, UsageError

if TYPE_CHECKING:
    from ditto.models import Checkpoint, Description
    from ditto.models.tokenizer import Text
    from ditto.planning.range_check import Checked

SHOWN = 10  # of texts and places
SAY_EVERY = 25


def check(
    name: Annotated[str, typer.Argument(help="A model imported here.")],
    file: Annotated[Path, typer.Option("--file", help="Texts, or pairs with a tab, one a line.")],
    limit: Annotated[int, typer.Option(min=1, help="So many of them at most, evenly taken.")] = 200,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Say which of these texts, and which part of their values, would leave the model's calibrated ranges.

    Everything is computed here, by the integers that the servers would compute on shares. No server is asked.
    """
    model = store.load(name)
    lines = read_file(file).splitlines()
    description, weights = model.description, model.weights()
    from ditto.models import Answer, architecture_of
    from ditto.planning.range_check import Checker

    alone = architecture_of(description.architecture).answer is Answer.text  # where a tab is a character like others
    texts = _texts(lines, str(file), limit, alone)
    checkpoint = _checkpoint(model, description)
    checker = Checker(description, weights, model.tokenizer(), checkpoint)
    found: list[tuple[int, Checked]] = []
    for i, (number, text) in enumerate(texts, 1):
        found.append((number, checker(text)))
        if not json and i % SAY_EVERY == 0 and i < len(texts):
            note(f"{i} of {len(texts)} texts")
    document = checker.document(found) | {"model": name, "file": str(file), "lines": len(lines)}
    if json:
        emit(document)
    else:
        _show(document, {number: text for number, text in texts})
    compared = document["compared"]
    if strict and (document["texts_marked"] or (compared and compared["verdict"] == "different")):
        raise OutOfRange(document["verdict"])


def _texts(lines: list[str], source: str, limit: int, alone: bool) -> "list[tuple[int, Text]]":
    """With the numbers of their lines; blank lines are left out."""
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise UsageError(f"{source}: no text in this file")
    count = min(limit, len(filled))
    chosen = [filled[i * len(filled) // count] for i in range(count)]
    found: list[tuple[int, Text]] = []
    for number, line in chosen:
        try:
            found.append((number, line if alone else split_pair(line)))
        except UsageError as error:
            raise UsageError(f"{source}, line {number}: {error}") from None
    return found


def _checkpoint(model: store.StoredModel, description: "Description") -> "Checkpoint | None":
    """What the answers are compared with; None where it is gone and not needed."""
    from ditto.models import load_checkpoint

    try:
        return load_checkpoint(model.checkpoint)
    except BadCheckpoint as error:
        if description.embeddings == "public":
            raise
        note(f"answers are not compared with fp32: {error}")
        return None


def _show(document: dict[str, Any], texts: "dict[int, Text]") -> None:
    if document["worst"]:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("line", "values", "fp32", "begins in"):
            table.add_column(heading, justify="left" if heading == "begins in" else "right")
        table.add_column("text", overflow="ellipsis", no_wrap=True)
        for row in document["worst"][:SHOWN]:
            text = texts[row["line"]]
            shown = one_line(text if isinstance(text, str) else " + ".join(text))
            cells = (str(row["line"]), f"{row['values']:,}", row["verdict"] or "-", row["place"], shown[:40])
            table.add_row(*cells)
        out.print(table)
        out.print()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("place", "texts", "values", "of them outside"):
            table.add_column(heading, justify="left" if heading == "place" else "right")
        for place in document["places"][:SHOWN]:
            table.add_row(place["place"], str(place["texts"]), f"{place['values']:,}", f"{place['share']:.3%}")
        out.print(table)
        out.print()
    if document["compared"]:
        out.print(document["compared"]["verdict_text"])
    out.print(document["verdict"])
