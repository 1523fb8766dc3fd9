"""Tables from what `ditto bench model --json` printed.

python benchmarks/table.py FILE.json ...      shapes: one row a file, then generation for those that generated
python benchmarks/table.py --predict FILE.json ...   also: what the loopback run of a shape predicts for the others
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from ditto.net.emulation import network
from ditto.report.cost_model import predict_run

Row = dict[str, Any]


def shapes(rows: list[Row]) -> list[str]:
    lines = [
        "| shape | tokens | network | online s | offline s | rounds | sent by each party | from the dealer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = row.get("prompt") or row
        online, offline = first["online"], first["offline"]
        lines.append(
            f"| {row['model']} | {row['seq']} | {row['network']} | {online['seconds']:.2f} | {offline['seconds']:.2f} "
            f"| {online['rounds']:.0f} | {max(online['bytes_sent']) / 1e6:.1f} MB "
            f"| {sum(offline['bytes_to_party']) / 1e6:.0f} MB |"
        )
    return lines


def generation(rows: list[Row]) -> list[str]:
    lines = [
        "| shape | prompt | network | first token: online, offline s | later ones: online s, median (mean) | offline s"
        " | rounds | sent by each party | from the dealer | tokens a second |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if row.get("per_token")):
        first, later = row["prompt"], row["per_token"]
        each = [layer["online"]["seconds"] for layer in row["layers"] if str(layer["name"]).startswith("token ")]
        lines.append(
            f"| {row['model']} | {row['seq']} | {row['network']} "
            f"| {first['online']['seconds']:.2f}, {first['offline']['seconds']:.2f} "
            f"| {median(each):.2f} ({later['online']['seconds']:.2f}) | {later['offline']['seconds']:.2f} "
            f"| {later['online']['rounds']:.0f} | {max(later['online']['bytes_sent']) / 1e6:.2f} MB "
            f"| {sum(later['offline']['bytes_to_party']) / 1e6:.2f} MB | {row['tokens_per_second']:.2f} |"
        )
    return lines


def predictions(rows: list[Row]) -> list[str]:
    """Online seconds of a network against what the same shape's loopback run predicts for it."""
    lines = [
        "| shape | tokens | network | measured online s | predicted from loopback | off by |",
        "|---|---|---|---|---|---|",
    ]
    base = {(row["model"], row["seq"], _count(row)): row for row in rows if row["network"] == "loopback"}
    for row in rows:
        found = base.get((row["model"], row["seq"], _count(row)))
        if found is None or row["network"] == "loopback":
            continue
        guess = predict_run(found, network("loopback"), network(row["network"])).total.online
        measured = row["online"]["seconds"]
        lines.append(
            f"| {row['model']} | {row['seq']} | {row['network']} | {measured:.2f} | {guess:.2f} "
            f"| {100 * (guess / measured - 1):+.0f} % |"
        )
    return lines


def _count(row: Row) -> int:
    return len(row["layers"])


def main(
    files: list[Path],
    predict: Annotated[bool, typer.Option("--predict")] = False,
) -> None:
    rows = [json.loads(path.read_text()) for path in files]
    parts = [shapes([row for row in rows if not row.get("per_token")])]
    if any(row.get("per_token") for row in rows):
        parts.append(generation(rows))
    if predict:
        parts.append(predictions(rows))
    typer.echo("\n\n".join("\n".join(part) for part in parts))


if __name__ == "__main__":
    typer.run(main)
