"""A cluster of four servers and five tiny models, one for all tests that ask whole models by the API, over HTTP or on
the page. About 15 s, most of it the servers'.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from test_generate import SMALL, WORDS, margins
from test_pooling import checkpoint
from typer.testing import CliRunner

import ditto
from ditto.cli import app
from ditto.models import load_checkpoint
from ditto.models.export import save_gpt2
from ditto.train.language import new_weights

TEXTS = ["the cat sat.", "a dog running, the cat!", "the the dog", "sat", "a cat café"]
PAIRS = [("the cat", "a dog"), ("sat", "the cat runs")]
# Of answers under MPC to floats. Not derived: three times the largest difference of 40 times 5 answers of each of these
# models (0.066 and 0.008; half of all numbers differ by less than 0.006 and 0.001).
CLOSE, CLOSE_VECTORS = 0.2, 0.025
PROMPT = "hello"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vectors": ("BertModel", {"pooling": "cls", "normalize": True}),
    "labels": ("BertForSequenceClassification", {"labels": ("low", "middle", "high")}),
    "score": ("BertForSequenceClassification", {"labels": ("score",)}),
    "tags": (
        "BertForSequenceClassification",
        {"labels": ("low", "middle", "high"), "problem_type": "multi_label_classification"},
    ),
}


@dataclass
class Place:
    """A local cluster as its client has it, its root, and the checkpoints of what it shares."""

    cluster: ditto.Cluster
    root: Path
    checkpoints: dict[str, Path]

    def cli(self, *args: str) -> Any:
        """The command line on the same cluster and the same models."""
        result = CliRunner().invoke(app, [*args, "--json"], env={"DITTO_HOME": str(self.root)})
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def reference(self, name: str, texts: list[Any]) -> Any:
        found = load_checkpoint(self.checkpoints[name])
        return np.array(found.reference(found.tokenizer().encode(texts, 32)))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    where = tmp_path_factory.mktemp("checkpoints")
    found = {name: checkpoint(where / name, kind, **changed) for name, (kind, changed) in KINDS.items()}
    before = set(psutil.Process().children(recursive=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DITTO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("DITTO_CONFIG", raising=False)
        with ditto.local() as cluster:
            started = set(psutil.Process().children(recursive=True)) - before
            for name, path in found.items():
                assert cluster.share(path, name, calibrate=[*TEXTS, *PAIRS]).name == name
            yield Place(cluster, cluster._models[0].parent, found)
        # the servers and what forked them
        assert len(started) == 5 and not any(process.is_running() for process in started)
        cluster.close()


@pytest.fixture(scope="session")
def writer(place: Place, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("gpt2")
    (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    save_gpt2(path, SMALL, {name: w if "ln_" in name else 10 * w for name, w in new_weights(SMALL, 3).items()}, path)
    assert min(margins(load_checkpoint(path), PROMPT, 4)) > 0.3, "a float model in doubt: tokens may differ"
    place.cluster.share(path, "writer", calibrate=["hello there, some text.", "and 1 more: (a) {b} c"])
    return "writer"
