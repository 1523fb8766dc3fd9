"""A language model that was trained: its perplexity in floats, in the integer interpreter and under MPC."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine import Session
from tokenizers.pre_tokenizers import ByteLevel

from benchmarks.perplexity import Interpreter, in_floats
from ditto.errors import UsageError
from ditto.models import Checkpoint, Description, Plan, compile_stage, describe, encode_weights, generator_of
from ditto.models.importer import with_preset
from ditto.models.tokenizer import Prompts
from ditto.presets import PRESETS
from ditto.train.language import LanguageTrainer, Settings, new_dimensions, new_weights
from ditto.train.perplexity import perplexity, windows
from ditto.train.text import BytePairs

GPT2 = generator_of("GPT2LMHeadModel")
Trained = tuple[Checkpoint, torch.Tensor]
CONTEXT, WINDOWS = 32, 20
# of fp32's perplexity; icml24 keeps eight fraction bits everywhere
CLOSE = {"ditto": 0.01, "ditto-icml24": 0.03, "ditto-icml24-exact": 0.03, "puma": 0.01}


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """A GPT-2 of two layers over bytes, trained for some seconds on English sentences, and their tokens."""
    return functools.cache(lambda activation: _train(tmp_path_factory.mktemp("words"), activation))


@pytest.fixture(scope="module")
def trained(train: Callable[[str], Trained]) -> Trained:
    return train("tanh gelu")


def _train(path: Path, activation: str) -> Trained:
    (path / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    text = (importlib.resources.files("ditto.cli") / "calibration.txt").read_text(encoding="utf-8")
    ids = BytePairs(path).encode(text)
    small = new_dimensions(256, layers=2, hidden=64, heads=2, context=CONTEXT)
    small = small.model_copy(update={"activation": activation})
    settings = Settings(steps=200, batch=16, context=CONTEXT, lr=4e-3, seed=1, validate_every=200)
    trainer = LanguageTrainer(new_weights(small, 1), small, ids, ids, settings, path)
    for _ in range(settings.steps):
        trainer.step()
    tensors = {name: w.detach() for name, w in trainer.tensors.items()}
    return Checkpoint("GPT2LMHeadModel", small, tensors), ids[: WINDOWS * CONTEXT + 1].long()


def prepared(checkpoint: Checkpoint, ids: torch.Tensor, preset: str) -> tuple[Description, dict[str, torch.Tensor]]:
    rows = windows(ids, CONTEXT)[0]
    description, checkpoint = describe(checkpoint, "trained", [Prompts(rows, [CONTEXT] * len(rows))], preset, "secret")
    return description, encode_weights(description, checkpoint.tensors)


@pytest.mark.parametrize("preset", list(CLOSE))
def test_perplexity(train: Callable[[str], Trained], preset: str) -> None:
    checkpoint, ids = train("quad" if PRESETS[preset].style.quad else "tanh gelu")
    description, weights = prepared(checkpoint, ids, preset)
    exact = perplexity(lambda x: in_floats(checkpoint, x), ids, CONTEXT)
    assert 2 < exact < 16, "it has learned something"
    interpreter = Interpreter(description, weights, CONTEXT)
    plain = perplexity(interpreter.whole, ids, CONTEXT)
    program = compile_stage(description, Plan(4, CONTEXT, every=True))
    session = Session(program.weights, weights)

    def on_shares(x: torch.Tensor) -> torch.Tensor:
        run = session.run(program, GPT2.encode(description, program, Prompts(x, [CONTEXT] * len(x))))
        return GPT2.logits(program, run.outputs).view(*x.shape, -1)

    shared = perplexity(on_shares, ids, CONTEXT)
    assert plain == pytest.approx(exact, rel=CLOSE[preset])
    assert shared == pytest.approx(exact, rel=CLOSE[preset])


def test_token_by_token(trained: Trained) -> None:
    """Through the cache the same; in narrower types a little worse."""
    checkpoint, ids = trained
    description, weights = prepared(checkpoint, ids, "ditto")
    interpreter = Interpreter(description, weights, CONTEXT)
    exact = perplexity(lambda x: in_floats(checkpoint, x), ids, CONTEXT)
    usual, narrow = (
        perplexity(lambda x, n=narrow: interpreter.by_token(x, n), ids, CONTEXT, batch=WINDOWS)  # type: ignore[misc]
        for narrow in (False, True)
    )
    assert usual == pytest.approx(exact, rel=0.01) and narrow == pytest.approx(exact, rel=0.03)
    assert narrow != usual
    with pytest.raises(UsageError, match="no narrower types"):
        compile_stage(with_preset(description, "puma"), Plan(1, 8, 4, narrow_from=1))
    with pytest.raises(UsageError, match="not both"):
        compile_stage(description, Plan(1, 8, argmax=True, every=True))
