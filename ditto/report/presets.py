"""Presets side by side (`ditto bench presets`): medians, ratios beside the published speedups, a table and plots."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

# Ditto (arXiv 2405.05525), abstract: its speedup over each, from the least to the most over its models and networks
SPEEDUPS = {"mpcformer": (3.14, 4.40), "puma": (1.44, 2.35)}

PHASES = ("online", "offline")


def row_of(setting: Row, reports: list[Row]) -> Row:
    """One row from the reports of several runs: medians of the seconds; rounds and bytes are the same in all."""
    first = reports[0]
    counts = {(r["online"]["rounds"], *r["online"]["bytes_sent"], *r["offline"]["bytes_to_party"]) for r in reports}
    if len(counts) != 1:
        raise ValueError(f"{setting}: runs of one program differ in rounds or bytes: {sorted(counts)}")
    phases = {
        f"{phase}_seconds": statistics.median(r[phase]["seconds"] for r in reports) for phase in ("online", "offline")
    }
    runs = {f"{phase}_runs": [round(r[phase]["seconds"], 4) for r in reports] for phase in ("online", "offline")}
    return {
        **setting, **phases, **runs,
        "wall_seconds": statistics.median(r["wall_seconds"] for r in reports),
        "rounds": first["online"]["rounds"],
        "bytes_sent": max(first["online"]["bytes_sent"]),
        "bytes_from_dealer": sum(first["offline"]["bytes_to_party"]),
        "operations": [_operation(name, reports) for name in (op["operation"] for op in first["operations"])],
    }  # fmt: skip


def _operation(name: str, reports: list[Row]) -> Row:
    found = [next(op for op in r["operations"] if op["operation"] == name) for r in reports]
    return {
        "operation": name,
        "online_seconds": statistics.median(op["online"]["seconds"] for op in found),
        "offline_seconds": statistics.median(op["offline"]["seconds"] for op in found),
        "rounds": found[0]["online"]["rounds"],
        "bytes_sent": max(found[0]["online"]["bytes_sent"]),
        "bytes_from_dealer": sum(found[0]["offline"]["bytes_to_party"]),
    }


def groups(rows: list[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows of one (model, layers, sequence, network) together: only these may be compared."""
    out: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        out.setdefault((row["model"], row["layers"], row["seq"], row["network"]), []).append(row)
    return out


def ratio(rows: list[Row], slow: str, fast: str, key: str) -> float | None:
    """What `slow` needs over what `fast` needs; None when either preset is missing."""
    by_name = {row["preset"]: row for row in rows}
    return by_name[slow][key] / by_name[fast][key] if slow in by_name and fast in by_name else None


def markdown(rows: list[Row], peers: list[Row]) -> str:
    """Tables for people, one for each group, with the ratios that the paper claims below each."""
    return "\n".join([*(together(rows) if len(groups(rows)) > 1 else []), *apart(rows, peers)])


def apart(rows: list[Row], peers: list[Row]) -> list[str]:
    """One table a group; of ditto's own rows none is wider than 80 characters."""
    parts = []
    for (model, layers, seq, network), group in groups(rows).items():
        parts += [f"## {model}, {layers} layers, {seq} tokens, {network}", ""]
        parts += ["| preset | online s | offline s | rounds | MB sent by each | MB from dealer |"]
        parts += ["|---|---|---|---|---|---|"]
        parts += [
            f"| `{r['preset']}` | {r['online_seconds']:.2f} | {r['offline_seconds']:.2f} | {r['rounds']} "
            f"| {r['bytes_sent'] / 1e6:.1f} | {r['bytes_from_dealer'] / 1e6:.0f} |"
            for r in group
        ]
        alike = [p for p in peers if (p.get("model"), p.get("layers"), p.get("seq")) == (model, layers, seq)]
        parts += [_peer(p) for p in alike if network == "loopback" and "error" not in p]
        parts += ["", *_ratios(group), ""]
    return parts


def together(rows: list[Row]) -> list[str]:
    """A table for each (model, layers, sequence), all networks side by side: seconds of both phases, then counts,
    which no network changes."""
    lines = []
    for key in dict.fromkeys((r["model"], r["layers"], r["seq"]) for r in rows):
        group = [r for r in rows if (r["model"], r["layers"], r["seq"]) == key]
        networks = list(dict.fromkeys(r["network"] for r in group))
        heads = ["preset", *(f"{phase} s, {n}" for n in networks for phase in PHASES)]
        heads += ["rounds", "MB sent by each party", "MB from the dealer"]
        lines += [f"## {key[0]}, {key[1]} layers, {key[2]} tokens", "", _line(heads), "|---" * len(heads) + "|"]
        for preset in dict.fromkeys(r["preset"] for r in group):
            found = {r["network"]: r for r in group if r["preset"] == preset}
            first = next(iter(found.values()))
            seconds = [f"{found[n][f'{p}_seconds']:.2f}" if n in found else "" for n in networks for p in PHASES]
            counts = [
                str(first["rounds"]),
                f"{first['bytes_sent'] / 1e6:.1f}",
                f"{first['bytes_from_dealer'] / 1e6:.0f}",
            ]
            lines.append(_line([f"`{preset}`", *seconds, *counts]))
        lines.append("")
    return lines


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _peer(p: Row) -> str:
    rounds = p.get("rounds") or "-"
    dealer = "-" if p.get("bytes_dealer") is None else f"{p['bytes_dealer'] / 1e6:.0f}"
    sent = f"{p['bytes_sent_all_parties'] / 1e6:.0f} by all"
    name = f"{p['system']} {p.get('version', '-')}, {p.get('recipe', '-')}"
    return f"| {name} | {p.get('seconds', 0.0):.2f} in all | | {rounds} | {sent} | {dealer} |"


def _ratios(group: list[Row]) -> list[str]:
    lines = ["| ratio | online s | rounds | bytes sent | paper, seconds |", "|---|---|---|---|---|"]
    pairs = [(slow, "ditto-icml24") for slow in SPEEDUPS] + [("puma", "ditto-icml24-exact"), ("ditto-icml24", "ditto")]
    for slow, fast in pairs:
        cells = [ratio(group, slow, fast, key) for key in ("online_seconds", "rounds", "bytes_sent")]
        if any(cell is None for cell in cells):
            continue
        claim = f"{SPEEDUPS[slow][0]} to {SPEEDUPS[slow][1]}" if fast == "ditto-icml24" else "-"
        lines.append(f"| {slow} / {fast} | " + " | ".join(f"{cell:.2f}" for cell in cells) + f" | {claim} |")
    return lines


def plot(rows: list[Row], out: Path) -> list[Path]:
    """One picture for each group: online seconds, rounds and bytes by operation, stacked, presets side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        ("online_seconds", 1.0, "online, s"), ("rounds", 1.0, "rounds"),
        ("bytes_sent", 1e6, "MB sent by each party"), ("bytes_from_dealer", 1e6, "MB from the dealer"),
    ]  # fmt: skip
    paths = []
    for (model, layers, seq, network), group in groups(rows).items():
        names = list(dict.fromkeys(op["operation"] for row in group for op in row["operations"]))
        figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.6), layout="constrained")
        for axis, (key, unit, title) in zip(axes, panels, strict=True):
            _stack(axis, group, names, key, unit)
            axis.set_title(title)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False)
        figure.suptitle(f"{model}, {layers} layers, {seq} tokens, {network}")
        path = out / f"{model}-{layers}-{seq}-{network}.png"
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        paths.append(path)
    return paths


def _stack(axis: Axes, group: list[Row], names: list[str], key: str, unit: float) -> None:
    """A column for each preset, its operations one on the other."""
    from matplotlib import colormaps

    base = [0.0] * len(group)
    for i, name in enumerate(names):
        heights = [sum(op[key] for op in row["operations"] if op["operation"] == name) / unit for row in group]
        axis.bar(range(len(group)), heights, bottom=base, color=colormaps["tab20"](i % 20), label=name)
        base = [a + h for a, h in zip(base, heights, strict=True)]
    axis.set_xticks(range(len(group)), [row["preset"] for row in group], rotation=35, ha="right")
