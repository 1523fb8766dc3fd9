"""A party with a client: all that it receives is uniform given all that the two know between them.

What they know stays the same from run to run, the other party's seeds are drawn anew. Then each message is a fair draw,
and so is the difference of the same message in two runs, whatever else changed that they do not know.
"""

from __future__ import annotations

import pytest
import torch
from engine import Draw, Session
from views import View, watch

from ditto.models import Plan, compile_stage, encode_inputs, random, random_model
from ditto.models.tokenizer import Batch
from ditto.presets import PRESETS
from ditto.ring import cast
from ditto.ring.prg import derive, new_seed

SEQ, RUNS = 8, 3
Tensor = torch.Tensor
Messages = list[tuple[str, Tensor, int]]


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random.SHAPES, "bert", ("BertModel", 1, 16, 2, 32))
    monkeypatch.setitem(
        random.DIMENSIONS, "BertModel", random.DIMENSIONS["BertModel"] | {"vocabulary": 64, "positions": 32}
    )
    monkeypatch.setattr(random, "random_batch", lambda *_: question(0))


def question(number: int) -> Batch:
    ids = torch.randint(0, 64, (2, SEQ), generator=torch.Generator().manual_seed(number))
    return Batch(ids, torch.zeros_like(ids), torch.ones_like(ids))


def given(*known: tuple[str, int | None]) -> Draw:
    """The same seed in every run for what is known, a fresh one for the rest. None: all of that purpose."""
    fixed = new_seed()

    def draw(purpose: str, number: int) -> bytes:
        if (purpose, number) in known or (purpose, None) in known:
            return derive(fixed, purpose, number)
        return new_seed()

    return draw


def runs(preset: str, party: int, draw: Draw, vary: str, monkeypatch: pytest.MonkeyPatch) -> list[Messages]:
    """What `party` receives in each run: F first, then the job's. `vary`: "weights" or "inputs" alternate."""
    description, weights, _ = random_model("bert", 1, SEQ, preset, seed=0)
    program = compile_stage(description, Plan(2, SEQ))
    first = {name: weights[name] for name in program.weights}
    second = {name: w.roll(1, dims=0) for name, w in first.items()}  # other weights of the same ranges
    found: list[Messages] = []
    watch(monkeypatch, lambda kind, x, bits: found[-1].append((kind, x.clone(), bits)))
    for number in range(RUNS):
        held = second if vary == "weights" and number % 2 else first
        asked = question(number % 2 if vary == "inputs" else 0)
        found.append([])
        session = Session(program.weights, held, "job", draw)
        for name, opened in session._held[party].masked().items():
            found[-1].append(("masked weights", opened.clone(), program.weights[name].ring))
        session.run(program, encode_inputs(description, program, asked))
    return [[m for m in run if m[0].endswith(f"party{party}") or m[0] == "masked weights"] for run in found]


def check(found: list[Messages], skip: tuple[str, ...] = ()) -> list[str]:
    """What is not uniform: a message, or the difference of one in two runs that follow each other."""
    view = View()
    for number, run in enumerate(found):
        for place, (kind, x, bits) in enumerate(run):
            if kind.startswith(skip or ("-",)):
                continue
            view.add(kind, x, bits)
            if number:
                before, other, _ = found[number - 1][place]
                assert before == kind and other.shape == x.shape
                difference = x ^ other if "bits" in kind else cast(x - other, bits)
                view.add(f"difference of {kind}", difference, bits)
    assert view.messages > 100
    return view.check()


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_party_with_the_asking_client(preset: str, party: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They know the question with its sharing, and this party's seeds and shares; the weights alternate between two.

    The client's output shares are the answer and this party's own share, which is uniform.
    """
    own = ("weights", None) if party == 0 else ("job", party)  # party 0's shares of weights come from seeds
    draw = given(("model", party), ("job", party), ("inputs", None), own)
    assert not check(runs(preset, party, draw, "weights", monkeypatch))


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_party_with_the_models_owner(preset: str, party: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They know W, its sharing, and so B and F; another client's question alternates between two."""
    own = ("inputs", None) if party == 0 else ("job", party)  # party 0's shares of inputs come from seeds
    draw = given(("model", None), ("weights", None), ("job", party), own)
    found = runs(preset, party, draw, "inputs", monkeypatch)
    masked = [[x for kind, x, _ in run if kind == "masked weights"] for run in found]
    assert all(torch.equal(a, b) for run in masked for a, b in zip(masked[0], run, strict=True))  # nothing new in F
    assert not check(found, skip=("masked weights",))


@pytest.mark.parametrize("vary", ["weights", "inputs"])
def test_a_mask_that_they_know_would_be_seen(vary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instrument: with the other party's seed among what they know, differences are those of W, or of X."""
    everything = given(*((purpose, None) for purpose in ("model", "weights", "inputs", "job")))
    wrong = check(runs("ditto", 0, everything, vary, monkeypatch))
    kinds = ("masked weights", "from the peer") if vary == "weights" else ("from the peer", "opened")
    for kind in kinds:
        assert any(text.startswith(f"difference of {kind}") for text in wrong), kind
