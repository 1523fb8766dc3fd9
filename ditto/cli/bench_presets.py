"""`ditto bench presets`: every preset on the same shapes, machine and network, interleaved."""

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from pydantic import BaseModel, ConfigDict, TypeAdapter, model_validator

import ditto
from ditto import files
from ditto.cli.common import note, out
from ditto.cli.run import Run, run_batch, watching
from ditto.cli.waiting import servers
from ditto.errors import UsageError
from ditto.net.emulation import Network
from ditto.net.emulation import network as profile
from ditto.report.presets import apart, markdown, plot, row_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ditto.models.description import LayerRanges


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str) -> list[int]:
    """Raises UsageError."""
    try:
        return [int(n) for n in _list(text)]
    except ValueError:
        raise UsageError(f"{option} {text!r}: numbers separated by commas") from None


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version()}


class _Peer(BaseModel):
    """One row of `benchmarks/peers/run.py`: a measurement, or why there is none."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    error: str | None = None
    system: str = ""
    version: str = ""
    recipe: str = ""
    seconds: float = 0.0
    rounds: int | None = None
    bytes_sent_all_parties: float | None = None
    bytes_dealer: float | None = None

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.error is None and (not self.system or self.bytes_sent_all_parties is None):
            raise ValueError("neither a measurement nor an error")
        return self


def read_peers(path: Path) -> list[dict[str, Any]]:
    """Raises UsageError."""
    try:
        rows = TypeAdapter(list[_Peer]).validate_python(files.read_json(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no rows of benchmarks/peers/run.py: {error}") from None
    return [row.model_dump(exclude_unset=True) for row in rows]


def read_ranges(path: Path) -> "tuple[LayerRanges, ...]":
    """Raises UsageError."""
    from ditto.models.description import layer_ranges

    try:
        return layer_ranges(files.read_json(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None


def presets(
    models: Annotated[str, typer.Option(help="Shapes, separated by commas.")] = "bert-base",
    seq: Annotated[str, typer.Option(help="Tokens, separated by commas.")] = "128",
    network: Annotated[str, typer.Option(help="Emulated networks: names or YAML files, separated by commas.")] = (
        "loopback,lan,wan"
    ),
    select: Annotated[str, typer.Option("--presets", help="Which presets; default: all.")] = "",
    out_dir: Annotated[Path, typer.Option("--out", help="Where results.json, results.md and the plots go.")] = Path(
        "results"
    ),
    layers: Annotated[int | None, typer.Option(min=1, help="Layers; default: the shape's.")] = None,
    repeat: Annotated[
        str, typer.Option(help="Runs of each preset, or one number for each network; medians are reported.")
    ] = "3",
    ranges: Annotated[
        Path | None, typer.Option(help="A trained model's ranges; not every recipe holds any model's.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each server.")] = 1,
    peers: Annotated[Path | None, typer.Option(help="Rows of benchmarks/peers/run.py to show beside.")] = None,
) -> None:
    """Measure presets side by side: random weights, medians of interleaved runs, offline and online apart."""
    from ditto.models.random import SHAPES
    from ditto.presets import PRESETS, preset_of

    names = [preset_of(name).name for name in _list(select)] or list(PRESETS)
    shapes, networks = _list(models), [profile(name) for name in _list(network)]
    lengths, repeats = _numbers("--seq", seq), _numbers("--repeat", repeat)
    if len(repeats) == 1:
        repeats *= len(networks)
    if len(repeats) != len(networks) or min(repeats) < 1:
        raise UsageError(f"--repeat {repeat!r}: one number, or one for each of {len(networks)} networks")
    unknown = [shape for shape in shapes if shape not in SHAPES]
    if unknown or not shapes or not networks or not lengths or not all(2 <= n <= 512 for n in lengths):
        wrong = f"shape {unknown[0]!r}: one of {', '.join(SHAPES)}" if unknown else "lengths are 2 to 512 tokens"
        raise UsageError(wrong)
    rows_of_peers, real = read_peers(peers) if peers else [], read_ranges(ranges) if ranges else ()
    files.make_directory(out_dir)
    document: dict[str, Any] = {
        "version": ditto.__version__, "machine": machine(), "threads": threads, "repeat": repeats,
        "ranges": ranges.stem if ranges else None,
        "networks": [n.model_dump() for n in networks], "rows": [], "peers": rows_of_peers,
    }  # fmt: skip
    for emulated, times in zip(networks, repeats, strict=True):
        for shape in shapes:
            document["rows"] += _measure(shape, layers, lengths, emulated, names, times, threads, real)
            # written after every group, so that a long measurement that is cut short keeps what it has
            files.write(out_dir / "results.json", json.dumps(document, indent=1) + "\n")
            files.write(out_dir / "results.md", markdown(document["rows"], rows_of_peers) + "\n")
    paths = plot(document["rows"], out_dir)
    out.print("\n".join(apart(document["rows"], rows_of_peers)))  # the file has all networks side by side, too
    out.print(f"written: {out_dir}/results.json, results.md and {len(paths)} plots")


def _measure(
    shape: str,
    layers: int | None,
    lengths: list[int],
    emulated: Network,
    names: list[str],
    repeat: int,
    threads: int,
    real: "Sequence[LayerRanges]" = (),
) -> list[dict[str, Any]]:
    """All presets of one shape on one cluster; the order of presets turns with every repetition."""
    from ditto.client.client import Client
    from ditto.models import random_batch, random_model

    rows = []
    with (
        servers(threads, False, emulated) as cluster,
        Client(cluster.client_config(), in_turns=True) as client,
    ):
        descriptions = {}
        for name in names:
            note(f"{emulated.name}, {shape}: sharing the weights of {name}")
            found, weights, _ = random_model(shape, layers, max(lengths), name, real=real)
            descriptions[name] = found.model_copy(update={"name": f"{shape}-{name}"})
            client.share_model(descriptions[name], weights)
            del weights
        with watching(True) as watcher:
            for seq in lengths:
                batch = random_batch(1, seq)
                reports: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
                for i in range(repeat):
                    for name in names[i % len(names) :] + names[: i % len(names)]:
                        run_batch(client, descriptions[name], batch, watcher, run := Run())
                        reports[name].append(run.report)
                        seconds = run.report["online"]["seconds"]
                        note(f"{emulated.name}, {shape}, {seq} tokens, {name} {i + 1}/{repeat}: {seconds:.2f} s online")
                for name in names:
                    setting = {
                        "model": shape, "layers": descriptions[name].dimensions.layers, "seq": seq,
                        "network": emulated.name, "preset": name,
                    }  # fmt: skip
                    rows.append(row_of(setting, reports[name]))
    return rows
