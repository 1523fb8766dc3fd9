"""One model asked in three ways: in floats, by the plain interpreter, on shares. Each also says what a job cost."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

from ditto.client.client import Client
from ditto.client.flight import Ending
from ditto.engine.plain import plain_weights, run_plain
from ditto.engine.program import Program
from ditto.models import Checkpoint, Description, Plan, compile_stage, decode_outputs, encode_inputs, generator_of
from ditto.models.architecture import Tensors, Texts
from ditto.models.gpt2.floats import forward, logits
from ditto.models.tokenizer import Prompts

Tensor = torch.Tensor
Cost = dict[str, float]  # of a job: its keys are COSTS on shares, `seconds` alone elsewhere


class Ask(Protocol):
    """`ending` ends a job on shares from another thread."""

    def __call__(self, batch: Texts, ending: Ending | None = None) -> tuple[Tensor, Cost]: ...


MODES = ("fp32", "plain", "mpc")
# Seconds of the wall, of which online and offline; 10^6 bytes that a party sent (the one that sent more), that the
# dealer sent to both; rounds; 1 where a value left its calibrated range, 0 where none did (absent without the check).
COSTS = ("seconds", "online_seconds", "offline_seconds", "mb_party", "mb_dealer", "rounds", "out_of_range")
MB = 1e6


def in_floats(checkpoint: Checkpoint) -> Ask:
    """The checkpoint in fp32. Batches give labels [B, L] or vectors [B, H], prompts logits at every position [B, N, V];
    so they do in the other modes."""

    def ask(batch: Texts, ending: Ending | None = None) -> tuple[Tensor, Cost]:
        began = time.perf_counter()
        if isinstance(batch, Prompts):
            t = checkpoint.tensors
            with torch.inference_mode():
                found = logits(t, forward(t, checkpoint.dimensions, batch.ids))
        else:
            found = _numbers(checkpoint.reference(batch))
        return found, {"seconds": time.perf_counter() - began}

    return ask


def by_interpreter(description: Description, weights: Tensors, tables: Tensors | None = None) -> Ask:
    """The program on the integers themselves. `tables`: the model's own, where its embeddings are public."""
    programs: dict[Plan, Program] = {}
    prepared: dict[str, Any] = {}

    def ask(batch: Texts, ending: Ending | None = None) -> tuple[Tensor, Cost]:
        nonlocal weights
        plan = _plan(batch)
        if plan not in programs:
            programs[plan] = compile_stage(description, plan)
        if not prepared:  # weights do not depend on the plan
            prepared.update(plain_weights(programs[plan], weights))
            weights = {}
        began = time.perf_counter()
        program = programs[plan]
        outputs = run_plain(program, encode_inputs(description, program, batch, tables), prepared)
        found = _decoded(description, program, outputs, batch)
        return found, {"seconds": time.perf_counter() - began}

    return ask


def on_shares(client: Client, description: Description, tables: Tensors | None = None, guard: bool = True) -> Ask:
    """The shared model of that name, a job a batch; with `guard` jobs say whether values left their ranges."""

    def ask(batch: Texts, ending: Ending | None = None) -> tuple[Tensor, Cost]:
        programs: list[Program] = []

        def inputs(stage: int, program: Program, before: Tensors) -> Tensors:
            programs.append(program)
            return encode_inputs(description, program, batch, tables)

        began = time.perf_counter()
        answer = client.run(description.name, _plan(batch, guard), inputs, meant=description, ending=ending)
        found = _decoded(description, programs[-1], answer.outputs, batch)
        cost = {"seconds": time.perf_counter() - began} | _costs(answer.report)
        return found, cost

    return ask


def _plan(batch: Texts, guard: bool = False) -> Plan:
    return Plan(*batch.shape, every=isinstance(batch, Prompts), guard=guard)


def _decoded(description: Description, program: Program, outputs: Tensors, batch: Texts) -> Tensor:
    if isinstance(batch, Prompts):
        found = generator_of(description.architecture).logits(program, outputs)
        return found.float().view(*batch.shape, -1)
    return _numbers(decode_outputs(description, program, outputs, batch))


def _numbers(rows: list[Any]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _costs(report: dict[str, Any]) -> Cost:
    online, offline = report["online"], report["offline"]
    checked = {"out_of_range": float(not report["in_range"])} if report["in_range"] is not None else {}
    return checked | {
        "online_seconds": online["seconds"],
        "offline_seconds": offline["seconds"],
        "mb_party": max(online["bytes_sent"]) / MB,
        "mb_dealer": sum(offline["bytes_to_party"]) / MB,
        "rounds": online["rounds"],
    }
