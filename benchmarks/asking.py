"""Small models, questions drawn from a seed, and a client that knows the right answers.

    python -m benchmarks.asking CONFIGURATION

reads one task a line from stdin, `{"n": 7, "model": "bert", "seed": 1}` to ask or `{"n": 7, "share": "spare"}` to
share a model (again), and writes what came of it: `{"n": 7, "job": …}` once the job has a name, then
`{"n": 7, "outcome": …}`: `right`, `wrong`, or the code of an error, with its exit code, peer, message and seconds.

An answer is right when it is within CLOSE of the plain interpreter's, stage by stage. For the encoders that is what the
preset states for a BERT of two layers, of which they have one; for logits it is not derived: twice the largest gap that
60 jobs showed (0.0152, where logits are up to 0.7). A share that does not belong to the other is off by units.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ditto.client.client import Client, Inputs, Outputs
from ditto.engine.plain import plain_weights, run_plain
from ditto.engine.program import Program
from ditto.errors import DittoError
from ditto.models import (
    Checkpoint,
    Description,
    Dimensions,
    Plan,
    architecture_of,
    compile_stage,
    describe,
    encode_inputs,
    encode_weights,
    generator_of,
)
from ditto.models.tokenizer import Batch, Prompts
from ditto.net.config import ClientConfig, load_config
from ditto.presets import PRESETS

SEQ, TOKENS, WORDS = 8, 3, 64
CLOSE = {"bert": PRESETS["ditto"].ulp / 2**8, "gpt2": 0.03}  # hidden states have 8 fraction bits
SHARED = {"hidden": 16, "heads": 2, "inner": 32, "vocabulary": WORDS, "embedding": 16, "layers": 1}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {"positions": 512, "token_types": 2, "epsilon": 1e-12}),
    "gpt2": ("GPT2LMHeadModel", {"positions": 64, "epsilon": 1e-5, "activation": "tanh gelu"}),
}
MODELS = {"bert": "bert", "gpt2": "gpt2", "spare": "bert"}  # name and kind; the spare one is shared again and again


@dataclass(frozen=True)
class Model:
    description: Description
    weights: dict[str, torch.Tensor]


@cache
def model(name: str) -> Model:
    """The same in every process that asks."""
    architecture, sizes = KINDS[MODELS[name]]
    generates = MODELS[name] == "gpt2"
    dimensions = Dimensions(**SHARED, **sizes)
    generator = torch.Generator().manual_seed(list(MODELS).index(name))
    tensors = {
        key: float(("norm" in key or "ln_" in key) and key.endswith("weight"))
        + 0.05 * torch.randn(shape, generator=generator)
        for key, shape in architecture_of(architecture).shapes(dimensions).items()
    }
    ids = torch.randint(0, WORDS, (64, SEQ + (TOKENS if generates else 0)), generator=generator)
    batch = Batch(ids, torch.zeros_like(ids), torch.ones_like(ids))
    description, arranged = describe(Checkpoint(architecture, dimensions, tensors), name, [batch])
    return Model(description, encode_weights(description, arranged.tensors))


class Question:
    """One job of a model, and its right answers by stage. Texts, lengths and tokens are drawn from `seed`."""

    def __init__(self, name: str, seed: int, batch: int | None = None) -> None:
        self.name, self._of = name, model(name)
        generator = torch.Generator().manual_seed(seed)
        size = batch or int(torch.randint(1, 4, (), generator=generator))
        self._ids = torch.randint(0, WORDS, (size, SEQ), generator=generator)
        self._generates = MODELS[name] == "gpt2"
        self.plan = Plan(size, SEQ, TOKENS if self._generates else 1)
        self._tokens = torch.randint(0, WORDS, (TOKENS, size), generator=generator).tolist()

    def inputs(self, stage: int, program: Program) -> Inputs:
        description = self._of.description
        if not self._generates:
            zeros = torch.zeros_like(self._ids)
            return encode_inputs(description, program, Batch(self._ids, zeros, torch.ones_like(zeros)))
        generator = generator_of(description.architecture)
        count = len(self._ids)
        if stage == 0:
            return generator.encode(description, program, Prompts(self._ids, [SEQ] * count))
        return generator.encode_next(description, program, self._tokens[stage], [SEQ + stage - 1] * count)

    def answers(self) -> list[Outputs]:
        """The plain interpreter's, of every stage."""
        carried: Outputs = {}
        found, ready = [], None
        for stage in range(self.plan.stages):
            program = compile_stage(self._of.description, self.plan, stage)
            ready = ready or plain_weights(program, self._of.weights)
            found.append(run_plain(program, self.inputs(stage, program), ready, carried))
        return found

    def ask(self, client: Client, on_event: Callable[[dict[str, Any]], None] | None = None) -> list[Outputs]:
        """What comes back, of every stage."""
        given: list[Outputs] = []

        def inputs(stage: int, program: Program, before: Outputs) -> Inputs:
            if stage:
                given.append(before)
            return self.inputs(stage, program)

        last = client.run(self.name, self.plan, inputs, on_event).outputs
        return [*given, last]

    def right(self, given: list[Outputs], answers: list[Outputs] | None = None) -> bool:
        """`answers`: as computed before."""
        frac = {name: wire.frac for name, wire in compile_stage(self._of.description, self.plan).outputs.items()}
        gaps = [
            (mine[key] - theirs[key]).abs().max() / 2 ** frac[key]
            for mine, theirs in zip(given, answers or self.answers(), strict=True)
            for key in theirs
        ]
        return max(gaps) <= CLOSE[MODELS[self.name]]


def attempt(task: dict[str, Any], client: Client, accepted: Callable[[str], None]) -> dict[str, Any]:
    """What comes of one task, with its seconds. An exception that is no DittoError is called by its class."""
    began = time.monotonic()

    def event(happened: dict[str, Any]) -> None:
        if happened["event"] == "accepted":
            accepted(happened["job"])

    try:
        if name := task.get("share"):
            client.share_model(model(name).description, model(name).weights)
            found: dict[str, Any] = {"outcome": "right"}
        else:
            question = Question(task["model"], task["seed"])
            given = question.ask(client, event)
            found = {"outcome": "right" if question.right(given) else "wrong"}
    except DittoError as error:
        found = {"outcome": error.code, "exit_code": error.exit_code, "peer": error.peer, "message": str(error)}
    except Exception as error:
        found = {"outcome": type(error).__name__, "message": str(error)[:500]}
    return {"n": task["n"], "seconds": round(time.monotonic() - began, 3)} | found


def main() -> None:
    torch.set_num_threads(1)
    config = load_config(Path(sys.argv[1]), ClientConfig)
    lock = threading.Lock()

    def say(line: dict[str, Any]) -> None:
        with lock:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()

    with Client(config) as client:
        say({"ready": True})
        for line in sys.stdin:
            task = json.loads(line)
            say(attempt(task, client, lambda job, n=task["n"]: say({"n": n, "job": job})))  # type: ignore[misc]


if __name__ == "__main__":
    main()
