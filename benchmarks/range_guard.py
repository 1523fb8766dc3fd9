"""Does the range guard mark every wrong answer, and no right one? A real model, calibrated on twenty bland sentences.

    python benchmarks/range_guard.py DATA_DIR [--like 500] [--mpc 4] [--only-mine]

DATA_DIR holds stsb/train.csv.gz, whose first twenty different sentences calibrate all-MiniLM-L6-v2, as `ditto model
import` does it: with the hard texts that come with ditto, or without them (`--only-mine`). The next ones are the texts
like them, ten in a job. The others are below, by kind, each alone. All go through the plain interpreter, in integers as
on shares. An answer counts as wrong where its cosine to fp32 is below 0.98, as marked where
the guard says so whatever the carries are; `may_be_marked` are those that some carry would mark. `--mpc` asks so many
of either sort on real processes, too. Prints JSON.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ditto.cli.demo import installed_checkpoint
from ditto.cli.run import Run, run_batch, watching
from ditto.client.client import Client
from ditto.client.local_cluster import embedded
from ditto.engine.plain import plain_weights, run_plain
from ditto.engine.program import GUARD, Step
from ditto.models import Plan, decode_outputs, encode_inputs, encode_weights, load_checkpoint
from ditto.models.calibration import calibrate, describe_calibrated
from ditto.models.compiled import program_for
from ditto.ops import Guard

CALIBRATION, WRONG = 20, 0.98

LIGHTHOUSE = (
    "The history of the lighthouse begins in 1823, when the harbour board voted narrowly to replace the wooden "
    "beacon that had stood on the headland since the previous century. Construction was delayed twice: once by a "
    "shortage of granite, and once by a dispute over who should pay for the keeper's cottage. When the lamp was "
    "finally lit, ships as far as twenty miles out reported seeing it. Its keeper, a retired whaler, kept a diary"
    " in which he recorded the weather, the passing vessels and, with growing irritation, the visits of "
    "inspectors from the capital. The diary ends abruptly in the winter of 1847, and nobody has ever established "
    "why."
)
TRANSFORMERS = (
    "Transformers have become the dominant architecture for natural language processing. Their core component, "
    "self-attention, computes for each token a weighted average over all others, with weights given by a softmax "
    "of scaled dot products. Training them requires large corpora and considerable compute; inference, however, "
    "is cheap enough to run on commodity hardware. Privacy remains a concern: a provider that runs the model sees"
    " every prompt. Secure multi-party computation offers a remedy by splitting the input into shares, none of "
    "which reveals anything alone, at the cost of more communication and of arithmetic in fixed point."
)
COMPLAINT = (
    "Dear Sir or Madam, I am writing to complain about the service that I received at your branch on the 14th of "
    "March. I had waited for more than fifty minutes before anybody spoke to me, and when they did, I was told "
    "that my appointment had been cancelled without notice. I have been a customer for eleven years and have "
    "never been treated like this. I expect a written apology, the reimbursement of my travel costs (38.50 "
    "pounds), and an explanation of what you intend to do so that this does not happen again to other customers. "
    "Yours faithfully, J. Whitcombe"
)
TEXTS = {
    "code": [
        "def f(x): return x if x < 2 else f(x-1) + f(x-2)",
        "for (int i = 0; i < n; ++i) { a[i] = b[i] << 3 ^ c[i & 0xff]; }",
        "SELECT u.id, COUNT(*) FROM users u JOIN orders o ON o.uid = u.id WHERE o.ts > '2021-01-01' GROUP BY 1 "
        "HAVING COUNT(*) > 3;",
        '#include <stdio.h>\nint main(void){printf("%d\\n", 42);return 0;}',
        "import numpy as np; x = np.zeros((3,4)); x[..., None] += 1e-9 * np.eye(4)",
        '{"a": [1, 2, {"b": null}], "c": "\\u00e9", "d": -1.5e-10}',
        "<div class=\"x\"><a href='#'>&nbsp;</a></div>",
        "$ grep -rn 'foo' . | awk '{print $1}' | sort | uniq -c | sort -rn | head",
        "}}}}])));;;;//**//",
        "lambda: (yield)",
    ],
    "capitals": [
        "THIS IS A SENTENCE IN CAPITAL LETTERS",
        "BREAKING NEWS: MARKETS FALL SHARPLY!!!",
        "NASA ESA JAXA CNES DLR ISRO",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "WHY ARE YOU SHOUTING AT ME",
        "HTTP TCP UDP IP TLS SSL DNS",
    ],
    "digits": [
        "3.14159265358979323846264338327950288419716939937510",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "0000000000000000000000000000000000000000",
        "+49 30 1234567-89, 10115",
        "2021-03-04T05:06:07.089Z",
        "1234567890 9876543210 42 42 42 42",
        "192.168.0.1:8080 10.0.0.0/8",
        "7",
        "99 99 99 99 99 99 99 99 99 99 99 99",
        "1e10 -5 0x7f 077 1/3 50%",
    ],
    "scripts": [
        "Привет, как дела? Сегодня хорошая погода.",
        "今天天气很好，我们去公园散步吧。",
        "こんにちは、世界。元気ですか。",
        "안녕하세요 반갑습니다",
        "مرحبا كيف حالك اليوم",
        "שלום עולם מה שלומך",
        "नमस्ते दुनिया आप कैसे हैं",
        "Γειά σου Κόσμε, τι κάνεις;",
        "สวัสดีชาวโลก",
        "ñandú façade Ærøskøbing Þórr straße",
        "😀😃😄😁😆😅🤣😂",
        "∀x∈ℝ ∃y: x²+y²≤1 ⇒ ∑∞",
    ],
    "repetition": [
        "the the the the the the the the the the the the the the the the",
        "a " * 60,
        "buffalo " * 30,
        "no no no no no no no no",
        "ha" * 40,
        "!" * 60,
        ". . . . . . . . . . . . . . . . . .",
        "hello hello hello hello",
        "very " * 100,
        "- - - - - - - - - -",
        "and and and and",
    ],
    "special tokens": [
        "[CLS] [SEP] [PAD] [MASK] [UNK]",
        "[MASK] [MASK] [MASK] [MASK] [MASK] [MASK]",
        "[SEP]",
        "[PAD] [PAD] [PAD] [PAD]",
        "[UNK] [UNK] [UNK]",
        "[CLS] [CLS] [CLS] [CLS] [CLS]",
        "The capital of France is [MASK].",
        "[SEP] [SEP] [SEP] [SEP] [SEP] [SEP] [SEP] [SEP]",
        "[unused1] [unused2] [unused99]",
    ],
    "paragraphs": [
        LIGHTHOUSE,
        TRANSFORMERS,
        COMPLAINT,
        LIGHTHOUSE[:300],
        TRANSFORMERS[:400],
        COMPLAINT[:200],
        f"{LIGHTHOUSE} {COMPLAINT}",
    ],
}


class Asked:
    """The model in integers and in floats, one text at a time."""

    def __init__(self, calibration: list[str], hard: bool) -> None:
        self._checkpoint = load_checkpoint(installed_checkpoint())
        seen = calibrate(self._checkpoint, calibration, hard)
        self.description, arranged, _ = describe_calibrated(self._checkpoint, "guarded", seen)
        self.weights = encode_weights(self.description, arranged.tensors)
        self._text = self.description.text()
        self.tokenizer = self._checkpoint.tokenizer()
        self._ready = plain_weights(program_for(self._text, Plan(1, 16)), self.weights)

    def batch(self, texts: list[str]) -> Any:
        return self.tokenizer.encode(texts, self.description.dimensions.positions)

    def __call__(self, texts: list[str]) -> dict[str, Any]:
        """Of one job: cosines to fp32, the layers marked, and whether a carry could have marked any."""
        batch, carries = self.batch(texts), []

        def seen(step: Step, read: list[Any]) -> None:
            if isinstance(step.op, Guard):
                carries.append(step.op.may_find(read[1]))

        program = program_for(self._text, Plan(*batch.shape, guard=True))
        inputs = encode_inputs(self.description, program, batch)
        outputs = run_plain(program, inputs, self._ready, seen=seen)
        marks = [name for name, n in zip(program.guarded, outputs[GUARD].tolist(), strict=True) if n]
        answers = decode_outputs(self.description, program, outputs, batch)
        return {"cosines": self.cosines(batch, answers), "marks": marks, "may": any(carries)}

    def cosines(self, batch: Any, answers: list[list[float]]) -> list[float]:
        """To the same answers in fp32."""
        return [_cosine(*pair) for pair in zip(answers, self._checkpoint.reference(batch), strict=True)]


def _cosine(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b) or 1.0)


def sentences(data: Path) -> list[str]:
    """The training set's different sentences, in its order."""
    with gzip.open(data / "stsb" / "train.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return list(dict.fromkeys(text for row in csv.reader(file) for text in row[:2]))


def say(line: str) -> None:
    typer.echo(line, err=True)


def of_kind(asked: Asked, texts: list[str], size: int = 1) -> dict[str, Any]:
    """Counts jobs of `size` texts each, whose texts are marked together."""
    found = []
    for start in range(0, len(texts), size):
        some = texts[start : start + size]
        found.append(asked(some))
        say(f"{min(found[-1]['cosines']):+.4f} {', '.join(found[-1]['marks']) or '-'}: {some[0][:50]!r}")
    wrong = [row for row in found if min(row["cosines"]) < WRONG]
    return {
        "texts": len(texts),
        "jobs": len(found),
        "least_cosine": min(min(row["cosines"]) for row in found),
        "wrong": len(wrong),
        "wrong_and_marked": sum(bool(row["marks"]) for row in wrong),
        "marked": sum(bool(row["marks"]) for row in found),
        "may_be_marked": sum(row["may"] for row in found),
    }


def on_processes(asked: Asked, texts: list[str]) -> list[dict[str, Any]]:
    """Each text alone, under MPC."""
    rows = []
    with embedded() as cluster, Client(cluster.client_config()) as client:
        client.share_model(asked.description, asked.weights)
        with watching(True) as watcher:
            for text in texts:
                batch = asked.batch([text])
                run_batch(client, asked.description, batch, watcher, run := Run(), guard=True)
                (cosine,) = asked.cosines(batch, run.results)
                rows.append({"text": text[:50], "cosine": cosine, "marks": run.marks})
    return rows


def measure(data: Path, like: int, mpc: int, hard: bool) -> dict[str, Any]:
    known = sentences(data)
    asked = Asked(known[:CALIBRATION], hard)
    same = known[CALIBRATION : CALIBRATION + like]
    result: dict[str, Any] = {"like the calibration": of_kind(asked, same, size=10)}
    result |= {kind: of_kind(asked, texts) for kind, texts in TEXTS.items()}
    if mpc:
        result["mpc"] = on_processes(asked, same[:mpc] + [texts[0] for texts in TEXTS.values()][-mpc:])
    return result


def main(
    data: Path,
    like: Annotated[int, typer.Option(min=1, help="Sentences like those of the calibration.")] = 500,
    mpc: Annotated[int, typer.Option(min=0, help="Texts of each sort on real processes.")] = 0,
    only_mine: Annotated[bool, typer.Option("--only-mine", help="Calibrate without ditto's hard texts.")] = False,
) -> None:
    """Print what `measure` finds, as JSON."""
    typer.echo(json.dumps(measure(data, like, mpc, not only_mine), indent=1))


if __name__ == "__main__":
    typer.run(main)
