"""GPT-2: architecture -> programs, one for the prompt and one for every later token, in the style of a preset."""

from __future__ import annotations

from typing import Any

from ditto.engine.program import Builder, Program, Wire
from ditto.errors import UsageError, VersionMismatch
from ditto.functions.argmax import argmax
from ditto.functions.linear import fraction_bits
from ditto.models.plan import Plan
from ditto.ops import Matmul, MatmulWeight
from ditto.presets import preset_of
from ditto.presets.causal import CausalStyle, Effort, Heads

FORMAT = 1  # of descriptions and encoded weights


def compile_gpt2(spec: dict[str, Any], plan: Plan, stage: int = 0) -> Program:
    """Compile one stage of a job: 0 takes the prompts, stage t the t-th token after them.

    Outputs logits [B, V], with `plan.every` in stage 0 logits [B n, V], or with `plan.argmax` the place of the maximum
    of a text's last logits, `token` [B].

    Every stage keeps the opened keys and values of its tokens; a later one attends to all of them.
    Raises UsageError for a size that the model does not take, VersionMismatch for a description of another format.
    """
    if spec.get("format") != FORMAT:
        raise VersionMismatch("this model was imported by another version of ditto; import and share it again")
    longest = plan.seq + plan.stages - 1
    if plan.batch < 1 or plan.seq < 1 or longest > spec["max_length"]:
        raise UsageError(f"{plan.seq} tokens and {plan.stages - 1} more: this model takes {spec['max_length']} in all")
    if plan.every and plan.argmax:
        raise UsageError("logits at every position, or the likeliest token: not both")
    if not 0 <= stage < plan.stages:
        raise UsageError(f"stage {stage} of a job that has {plan.stages}")
    style = preset_of(spec["preset"]).causal
    if plan.narrow_from and not style.narrows:
        raise UsageError(f"preset {spec['preset']} has no narrower types for later tokens")
    config, ranges = spec["config"], spec["calibration"]
    eps, count = config["layer_norm_eps"], plan.seq if stage == 0 else 1
    b = Builder()
    x = _embeddings(b, spec, style, plan.batch * count)
    masks = _masks(b, spec, style, plan, stage)
    for i in range(config["num_hidden_layers"]):
        b.layer(f"layer {i}")
        x = _block(b, x, masks[i], config, ranges["layers"][i], style, f"layer.{i}", plan, stage)
    b.layer("head")
    if stage == 0 and not plan.every:
        x = _last(b, x, plan)
    b.label("head")
    logits = style.norm_project(
        b, x, "final", "head", config["vocab_size"], ranges["final"], ranges["logits"], eps
    )
    if plan.argmax:
        b.label("argmax")
        logits = b.truncate(logits, *_coarse(logits))
        b.output("token", argmax(b, logits))
    else:
        b.output("logits", logits)
    return b.program


def _coarse(logits: Wire) -> tuple[int, int]:
    """Cut the logits to the 16 bits that hold them with room for a difference: (bits to cut, ring)."""
    frac = fraction_bits(logits.bound, 16, logits.frac)
    return logits.frac - frac, 16


def _embeddings(b: Builder, spec: dict[str, Any], style: CausalStyle, rows: int) -> Wire:
    """One-hot rows of the word and of the position, against both tables stacked: neither is known to a server."""
    config, bound = spec["config"], spec["calibration"]["embeddings"]["bound"]
    ring, frac = style.embedding_type(spec)
    width, entries = config["hidden_size"], config["vocab_size"] + config["max_position_embeddings"]
    b.layer("embeddings")
    b.label("embeddings")
    onehot = b.input("onehot", ring, 0, (rows, entries), 1.0)
    table = b.weight("embeddings", ring, frac, (entries, width), "matrix")
    (opened,) = b.open(onehot)
    (x,) = b.emit(MatmulWeight(rows, entries, width, ring), [opened, table], [(ring, frac, (rows, width), bound)])
    return style.stream(b, x, spec)


def _masks(b: Builder, spec: dict[str, Any], style: CausalStyle, plan: Plan, stage: int) -> list[Wire | None]:
    """The prompts' padding, taken with the prompts and needed by later tokens only: padding follows each prompt."""
    if stage == 0:
        wires = style.masks(b, spec, plan.batch, plan.seq)
        for wire in wires:
            b.keep(wire.name, wire)
        return [None] * len(wires)
    masks: list[Wire | None] = []
    for wire in style.masks(Builder(), spec, plan.batch, plan.seq):
        masks.append(b.carry(wire.name, wire.ring, wire.frac, wire.shape, wire.bound))
        b.keep(wire.name, masks[-1])  # type: ignore[arg-type]
    return masks


def _block(
    b: Builder,
    x: Wire,
    mask: Wire | None,
    config: dict[str, Any],
    ranges: dict[str, Any],
    style: CausalStyle,
    name: str,
    plan: Plan,
    stage: int,
) -> Wire:
    eps, width = config["layer_norm_eps"], x.shape[1]
    effort = Effort(few=stage > 0, narrow=0 < plan.narrow_from <= stage)
    heads = style.heads(b, x, name, ranges, eps, config["num_attention_heads"], plan.batch)
    context = style.attend(b, x, _cached(b, heads, name, plan, stage), mask, ranges, effort)
    b.label("attention out")
    y = style.project(b, context, f"{name}.out", width, ranges["attention"])
    x = style.residual(b, x, y, ranges["norm2"]["in"])
    b.label("ffn in")
    h = style.norm_project(
        b, x, f"{name}.norm2", f"{name}.ffn1", config["intermediate_size"], ranges["norm2"], ranges["gelu"], eps
    )
    b.label("gelu")
    h = style.gelu(b, x, h, ranges["gelu"], effort)
    b.label("ffn out")
    y = style.project(b, h, f"{name}.ffn2", width, ranges["mlp"])
    return style.residual(b, x, y, ranges["after"])


def _cached(b: Builder, heads: Heads, name: str, plan: Plan, stage: int) -> Heads:
    """Keys and values of everything so far: what earlier stages opened, and this one's."""
    q, k, v = heads
    b.label("cache")
    if stage > 0:
        before = plan.seq + stage - 1
        batch, count, d = k.shape[:3]
        earlier = b.carry(f"{name}.keys", k.ring, k.frac, (batch, count, d, before), k.bound)
        k = b.join(earlier, k, dim=3)
        earlier = b.carry(f"{name}.values", v.ring, v.frac, (batch, count, before, d), v.bound)
        v = b.join(earlier, v, dim=2)
    b.keep(f"{name}.keys", k)
    b.keep(f"{name}.values", v)
    return q, k, v


def _last(b: Builder, x: Wire, plan: Plan) -> Wire:
    """[B n, H] -> [B, H]: each prompt's last token, by a secret one-hot row."""
    b.label("last token")
    which = b.input("last", x.ring, 0, (plan.batch, 1, plan.seq), 1.0)
    x = b.view(x, shape=(plan.batch, plan.seq, x.shape[1]))
    opened, row = b.open(x, which)
    op = Matmul(row.shape, opened.shape, x.ring)
    (y,) = b.emit(op, [row, opened], [(x.ring, x.frac, op.shape, x.bound)])
    return b.view(y, shape=(plan.batch, op.shape[2]))
