"""What an import made: ranges, types, cost, stated and measured errors by layer; what each step after training won."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ditto import files
from ditto.engine.plan import Plan
from ditto.engine.program import PART, Program
from ditto.errors import UsageError
from ditto.models.architecture import Tensors
from ditto.models.checkpoint import Checkpoint
from ditto.models.description import Description
from ditto.models.importer import encode_weights
from ditto.models.registry import compile_stage
from ditto.ops import Cost, Open, Together
from ditto.planning.answers import Trial
from ditto.planning.planner import PARTS, error_of
from ditto.planning.taps import gaps_of
from ditto.presets import preset_of

Document = dict[str, Any]
SUFFIXES = (".json", ".md")
COSTS = ("rounds", "bytes_sent", "bytes_from_dealer")


@dataclass(frozen=True)
class Made:
    """A model as one step left it."""

    step: str
    description: Description
    checkpoint: Checkpoint  # in the description's order

    @cached_property
    def encoded(self) -> Tensors:
        return encode_weights(self.description, self.checkpoint.tensors)


def check_suffix(path: Path) -> None:
    """Raises UsageError for a file that no report can be."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: a report is {' or '.join(SUFFIXES)}")


def document(made: Sequence[Made], trial: Trial, seq: int, held_out: bool) -> Document:
    """Of the last of the steps; of those before it the totals. Costs are those of one text of `seq` tokens."""
    last = made[-1].description
    losses = [trial.loss(step.description, step.encoded) for step in made[:-1]]
    loss, gaps = gaps_of(last, trial, made[-1].encoded)
    program = program_of(last, seq)
    return {
        "model": last.name,
        "architecture": last.architecture,
        "preset": last.preset,
        "tokens": seq,
        "texts": trial.texts,
        "held_out": held_out,
        "steps": [_step(step, found, seq) for step, found in zip(made, [*losses, loss], strict=True)],
        "layers": _layers(last, program, gaps),
    }


def program_of(description: Description, seq: int) -> Program:
    return compile_stage(description, Plan(1, min(seq, description.dimensions.positions)))


def _step(made: Made, loss: float, seq: int) -> Document:
    return {"step": made.step, **_cost(program_of(made.description, seq).cost()), "loss": loss}


def _cost(cost: Cost) -> dict[str, int]:
    return dict(zip(COSTS, (cost.rounds, cost.online, cost.dealer), strict=True))


def _layers(description: Description, program: Program, gaps: dict[str, Document]) -> list[Document]:
    costs, types = costs_of(program), types_of(program)
    found = []
    for name in costs:
        row: Document = {"layer": name}
        number = int(name.removeprefix("layer ")) if name.startswith("layer ") else None
        if number is not None:
            row["ranges"] = description.ranges.layers[number].model_dump()
            row["choices"] = description.choices_of(number).model_dump(exclude_none=True)
            row["stated_errors"] = stated(description, number)
        row["types"], row["cost"] = types.get(name, []), costs[name]
        row["measured_errors"] = gaps.get(name, {})
        found.append(row)
    return found


def stated(description: Description, layer: int) -> dict[str, float]:
    """Errors of a layer's parts by themselves, of a style that leaves them open."""
    if not preset_of(description.preset).style.open:
        return {}
    choices = description.choices_of(layer)
    return {part.label: error_of(description, layer, part, choices) for part in PARTS}


def costs_of(program: Program) -> dict[str, dict[str, dict[str, int]]]:
    """By layer and operation, parts of a layer together."""
    found: dict[str, dict[str, Cost]] = {name.split(PART)[0]: {} for name in program.layers}
    for step in program.steps:
        operations = found[program.layers[step.layer].split(PART)[0]]
        operations[step.label] = operations.get(step.label, Cost()) + step.op.cost()
    return {
        layer: {label: _cost(cost) for label, cost in operations.items() if cost != Cost()}
        for layer, operations in found.items()
    }


def types_of(program: Program) -> dict[str, list[Document]]:
    """By layer, what is opened: ring, fraction bits and elements, by the operation that it comes from; and how many of
    the ring's bits the bound leaves unused, of what has one."""
    labels = {name: step.label for step in program.steps for name in step.outputs}
    found: dict[str, dict[tuple[str, int, int], Document]] = {}
    for step in program.steps:
        if not isinstance(step.op, Open | Together):
            continue
        rows = found.setdefault(program.layers[step.layer].split(PART)[0], {})
        for (shape, ring), read, opened in zip(step.op.wires, step.inputs, step.outputs, strict=False):
            wire, label = program.wires[opened], labels.get(read, "input")
            row = rows.setdefault(
                (label, ring, wire.frac), {"operation": label, "ring": ring, "fraction": wire.frac, "elements": 0}
            )
            count = 1
            for size in shape:
                count *= size
            row["elements"] += count
            row["bound"] = max(row.get("bound", 0.0), wire.bound)
    return {layer: list(rows.values()) for layer, rows in found.items()}


# Files --------------------------------------------------------------------------------------------


def write(path: Path, report: Document) -> None:
    """As JSON or Markdown, by the file's suffix."""
    check_suffix(path)
    files.write(path, json.dumps(report, indent=1) + "\n" if path.suffix == ".json" else markdown(report))


def markdown(report: Document) -> str:
    texts = "held-out texts" if report["held_out"] else "texts of the calibration"
    lines = [
        f"# {report['model']}",
        "",
        f"{report['architecture']}, preset {report['preset']}. Costs: one text of {report['tokens']} tokens. Measured "
        f"on {report['texts']} {texts}, by the plain interpreter with the errors that shares make, against floats.",
        "",
        *_calibration(report.get("calibration")),
        *_table(
            ("after", "rounds", "MB sent by each party", "MB from the dealer", "loss"),
            [(s["step"], s["rounds"], *_megabytes(s), f"{s['loss']:.3g}") for s in report["steps"]],
        ),
    ]
    for layer in report["layers"]:
        lines += ["", f"## {layer['layer']}", ""]
        if layer.get("choices"):
            lines += ["Choices: " + ", ".join(f"{k} {v}" for k, v in layer["choices"].items()) + ".", ""]
        if "ranges" in layer:
            lines += ["Ranges: " + _ranges(layer["ranges"]) + ".", ""]
        errors = [(part, f"{error:.2g}", "") for part, error in layer.get("stated_errors", {}).items()]
        measured = layer["measured_errors"].items()
        errors += [(part, f"{gap['relative']:.2g}", f"{gap['one_minus_cosine']:.2g}") for part, gap in measured]
        if errors:
            lines += [*_table(("stated by part, then measured so far", "relative error", "1 - cosine"), errors), ""]
        lines += [
            *_table(
                ("opened by", "ring", "fraction bits", "elements"),
                [(t["operation"], t["ring"], t["fraction"], t["elements"]) for t in layer["types"]],
            ),
            "",
            *_table(
                ("operation", "rounds", "MB sent by each party", "MB from the dealer"),
                [(label, cost["rounds"], *_megabytes(cost)) for label, cost in layer["cost"].items()],
            ),
        ]
    return "\n".join(lines) + "\n"


def _calibration(found: Document | None) -> list[str]:
    """What the calibration's texts were."""
    if found is None:
        return []
    kinds, held = len(found["kinds"]), found["held_out"]
    line = (
        f"Calibration: {found['texts']} texts of at most {found['longest']} tokens, {found['median']} in the middle, "
        f"of {found['positions']}; {kinds} of {kinds + len(found['missing'])} kinds of tokens, "
        f"{found['vocabulary']:.0%} of the vocabulary; {found['hard']} hard texts beside them."
    )
    if held:
        line += (
            f" Held out, {held['over']:.1%} of the texts exceed all others somewhere, by up to {held['most']:.2f} "
            f"times ({held['place']}); {held['outside']:.1%} leave the others' ranges."
        )
    return [line, *(f"\nWarning: {text}." for text in found["warnings"]), ""]


def _megabytes(cost: Document) -> tuple[str, str]:
    return f"{cost['bytes_sent'] / 1e6:.3f}", f"{cost['bytes_from_dealer'] / 1e6:.3f}"


def _ranges(ranges: Document) -> str:
    """Largest values; LayerNorms by what enters them, neurons by their classes."""
    simple = [f"{name} {value:g}" for name, value in ranges.items() if isinstance(value, float)]
    scores = [f"scores {' '.join(f'{name} {value:g}' for name, value in ranges['scores'].items())}"]
    norms = [f"{name} {ranges[name]['input']:g}" for name in ("norm1", "norm2")]
    neurons = [f"{group['count']} to {group['bound']:g}" for group in ranges["neurons"]]
    return "; ".join([*simple, *scores, *norms, *([f"neurons {' '.join(neurons)}"] if neurons else [])])


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]
