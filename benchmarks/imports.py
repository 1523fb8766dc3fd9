"""What `ditto model import` does with the checkpoints that users bring, as a table.

    PYTHONPATH=tests:. python benchmarks/imports.py            # each is imported
    PYTHONPATH=tests:. python benchmarks/imports.py --mpc      # those that work are shared and asked, too

Checkpoints are made by `tests/checkpoints.py`: real architectures and file layouts, tiny and with random weights. The
error is the largest difference of an answer's values to the plaintext model's in fp32; what it is relative to is beside
it. It shows that the programs compute these models, not how exact they are for trained ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import checkpoints
import numpy as np

import ditto
from ditto.cli.texts import read_file
from ditto.errors import DittoError
from ditto.models import Answer, import_model, load_checkpoint

TOKENS = 8  # that a GPT-2 is asked for


def tried(case: checkpoints.Case, at: Path, texts: list[str]) -> str:
    """What an import says."""
    checkpoint = load_checkpoint(at)
    import_model(checkpoint, case.name, texts)
    return "works"


def asked(cluster: ditto.Cluster, case: checkpoints.Case, at: Path, texts: list[str]) -> str:
    """The same model under MPC, against the plaintext one."""
    model, checkpoint = cluster.share(at, case.name, calibrate=texts), load_checkpoint(at)
    if checkpoint.architecture.answer is Answer.text:
        made = list(model.generate(texts[0], max_new_tokens=TOKENS, exact_length=True))
        ids = checkpoint.tokenizer().encode_prompts(texts[:1], 40, bucket=False).ids.tolist()
        generator = checkpoint.architecture
        plain = generator.continue_texts(  # type: ignore[attr-defined]
            checkpoint.tensors, checkpoint.dimensions, ids, TOKENS, lambda logits: logits.argmax(-1).tolist()
        )[0]
        same = sum(one.id == other for one, other in zip(made, plain, strict=False))
        return f"works: {same} of {TOKENS} tokens as in plaintext"
    answers = list(model.ask(texts))
    batch = checkpoint.tokenizer().encode(texts, checkpoint.dimensions.positions)
    plain = [np.asarray(value) for value in checkpoint.reference(batch)]
    error = max(float(np.abs(a.values - p[: len(a.values)]).max()) for a, p in zip(answers, plain, strict=True))
    return f"works: off by {error:.4f} of {max(float(np.abs(p).max()) for p in plain):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mpc", action="store_true", help="Share those that work, and ask them.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        os.environ["DITTO_HOME"] = str(root / "home")
        texts = read_file(checkpoints.texts_file(root)).splitlines()
        sys.stdout.write("| checkpoint | what it is | import |\n|---|---|---|\n")
        cluster = ditto.local() if options.mpc else None
        try:
            for case in checkpoints.CASES:
                at = checkpoints.made(case, root)
                try:
                    said = asked(cluster, case, at, texts) if cluster else tried(case, at, texts)
                except DittoError as error:
                    said = f"{error.exit_code}: {error}".replace(str(root), "").replace("|", "\\|")
                sys.stdout.write(f"| `{case.name}` | {case.what} | {said} |\n")
                sys.stdout.flush()
        finally:
            if cluster:
                cluster.close()


if __name__ == "__main__":
    main()
