"""GPT-2 as programs, one for the prompt and one for every later token, in the style of a preset."""

from __future__ import annotations

from collections.abc import Sequence

from ditto.engine.parts import check_count, in_blocks, rows
from ditto.engine.plan import Plan
from ditto.engine.program import Builder, Program, Wire
from ditto.engine.schedule import scheduled
from ditto.errors import UsageError
from ditto.functions.argmax import argmax
from ditto.functions.fit import Fits
from ditto.functions.linear import fraction_bits
from ditto.models.description import Description, required
from ditto.models.ranges import activation_of, attention_of, norm_of, scores_of
from ditto.ops import Matmul, MatmulWeight
from ditto.presets import preset_of
from ditto.presets.style import Heads, Stage, Stream, Style

TOKEN_RING = 16  # of the logits among which the servers look for the largest


def compile_gpt2(description: Description, plan: Plan, stage: int, fits: Fits) -> Program:
    """Compile one stage of a job: 0 takes the prompts, stage t the t-th token after them.

    Outputs logits [B, V], with `plan.every` in stage 0 logits [B n, V], or with `plan.argmax` the place of the maximum
    of a text's last logits, `token` [B]. Every stage keeps the opened keys and values of its tokens; a later one
    attends to all of them. Raises UsageError for a plan that the model does not take.
    """
    d, ranges = description.dimensions, description.ranges
    style = preset_of(description.preset).style
    _check(description, plan, stage, style)
    final, most = required(ranges.final, "ranges.final"), required(ranges.logits, "ranges.logits")
    use = Stage(causal=True, later=stage > 0, narrow=0 < plan.narrow_from <= stage)
    # what each block adds up to is what the next LayerNorm reads
    after = [layer.norm1.input for layer in ranges.layers[1:]] + [final.input]
    b = Builder(plan.guard)
    x = _embeddings(b, description, style, plan.batch * (plan.seq if stage == 0 else 1), plan)
    masks = _masks(b, description, style, plan, stage)
    for i, mask in enumerate(masks):
        b.layer(f"layer {i}")
        x = _block(b, x, mask, description, i, after[i], style, use, plan, stage, fits)
        check_count(len(b.program.layers) * len(masks) // (i + 2))  # before the other layers are compiled
    b.layer("head")
    if stage == 0 and not plan.every:
        x = _last(b, x, plan)
    with b.label("head"):
        norm = norm_of("final", final, d.epsilon)
        logits = style.norm_linear(b, x, norm, "head", d.vocabulary, most)
    if plan.argmax:
        with b.label("argmax"):
            frac = fraction_bits(logits.bound, TOKEN_RING, logits.frac)
            b.output("token", argmax(b, b.truncate(logits, logits.frac - frac, TOKEN_RING)))
    else:
        b.output("logits", logits)
    return scheduled(b.finish())


def _check(description: Description, plan: Plan, stage: int, style: Style) -> None:
    longest, most = plan.seq + plan.stages - 1, description.dimensions.positions
    if plan.batch < 1 or plan.seq < 1 or longest > most:
        raise UsageError(f"{plan.seq} tokens and {plan.stages - 1} more: this model takes {most} in all")
    if plan.every and plan.argmax:
        raise UsageError("logits at every position, or the likeliest token: not both")
    if not 0 <= stage < plan.stages:
        raise UsageError(f"stage {stage} of a job that has {plan.stages}")
    if plan.narrow_from and not style.narrows:
        raise UsageError(f"preset {description.preset} has no narrower types for later tokens")
    if description.embeddings == "public":
        raise UsageError("GPT-2's embeddings are its language-model head, too: they can only be secret")


def _embeddings(b: Builder, description: Description, style: Style, count: int, plan: Plan) -> Wire:
    """One-hot rows of the word and of the position, against both tables stacked: neither is known to a server."""
    d, ranges = description.dimensions, description.ranges
    norms = [norm for layer in ranges.layers for norm in (layer.norm1, layer.norm2)]
    norms.append(required(ranges.final, "ranges.final"))
    stream = Stream(max(norm.input for norm in norms), min(norm.variance[0] for norm in norms))
    table = style.table(ranges.embeddings, stream)
    ring, frac, entries = table.ring, table.frac, d.vocabulary + d.positions
    b.layer("embeddings")
    with b.label("embeddings"):
        onehot = b.input("onehot", ring, 0, (count, entries), 1.0)
        weight = b.weight("embeddings", ring, frac, (entries, d.hidden), "matrix")

        def looked_up(b: Builder, first: int, last: int) -> list[Wire]:
            (opened,) = b.open(rows(b, onehot, 0, first, last))
            op = MatmulWeight(last - first, entries, d.hidden, ring)
            (x,) = b.emit(op, [opened, weight], [(ring, frac, (last - first, d.hidden), ranges.embeddings)])
            return [style.enter(b, x)]

        return in_blocks(b, plan.hold, count, looked_up)[0]


def _masks(b: Builder, description: Description, style: Style, plan: Plan, stage: int) -> list[Wire | None]:
    """The prompts' padding, taken with the prompts and needed by later tokens only: padding follows each prompt."""
    scores = [scores_of(layer) for layer in description.ranges.layers]
    if stage == 0:
        wires = style.masks(b, scores, plan.batch, plan.seq)
        for wire in wires:
            b.keep(wire.name, wire)
        return [None] * len(wires)
    masks: list[Wire | None] = []
    for wire in style.masks(Builder(), scores, plan.batch, plan.seq):
        mask = b.carry(wire.name, wire.ring, wire.frac, wire.shape, wire.bound)
        b.keep(wire.name, mask)
        masks.append(mask)
    return masks


def _block(
    b: Builder,
    x: Wire,
    mask: Wire | None,
    description: Description,
    i: int,
    after: float,
    style: Style,
    use: Stage,
    plan: Plan,
    stage: int,
    fits: Fits,
) -> Wire:
    """Attention and feed-forward network, each on the stream's LayerNorm and added to the stream."""
    d, ranges, name = description.dimensions, description.ranges.layers[i], f"layer.{i}"
    style = style.chosen(description.choices_of(i))
    per_text = x.shape[0] // plan.batch
    bounds = attention_of(ranges)

    def heads_of(b: Builder, first: int, last: int) -> list[Wire]:
        some = rows(b, x, 0, first * per_text, last * per_text)
        with b.label("qkv"):
            norm = norm_of(f"{name}.norm1", ranges.norm1, d.epsilon)
            q, k, v, _, zero = style.heads(b, some, f"{name}.qkv", d.heads, last - first, bounds, use, norm=norm)
            return [q, k, v] if zero is None else [q, k, v, zero]

    # one token of each text is small enough as it is
    q, k, v, *zero = heads_of(b, 0, plan.batch) if stage else in_blocks(b, plan.hold, plan.batch, heads_of)
    with b.label("cache"):
        for wire in zero:
            b.keep(f"{name}.qkv.first", wire)
        heads = _cached(b, Heads(q, k, v), name, plan, stage)

    def context_of(b: Builder, first: int, last: int) -> Sequence[Wire]:
        own = [rows(b, wire, 0, first, last) for wire in (heads.q, heads.k, heads.v)]
        padding = None if mask is None else rows(b, mask, 0, first, last)

        def of_heads(b: Builder, start: int, end: int) -> list[Wire]:
            some = Heads(*(rows(b, wire, 1, start, end) for wire in own))
            return [style.attend(b, some, bounds, x, use, mask=padding)]

        return in_blocks(b, plan.hold, d.heads, of_heads, dim=1)

    (context,) = in_blocks(b, plan.hold, plan.batch, context_of)
    zones, wide = activation_of(style, description, i, fits)

    def of_tokens(b: Builder, first: int, last: int) -> list[Wire]:
        with b.label("attention out"):
            y = style.linear(b, rows(b, context, 0, first, last), f"{name}.out", d.hidden, ranges.attention)
            z = style.residual(b, rows(b, x, 0, first, last), y, ranges.norm2.input)
        with b.label("ffn in"):
            norm = norm_of(f"{name}.norm2", ranges.norm2, d.epsilon)
            h = style.norm_linear(b, z, norm, f"{name}.ffn1", d.inner, wide, use)
        with b.label("gelu"):
            h = style.activation(b, d.activation, h, wide, z, fits, use, zones)
        with b.label("ffn out"):
            y = style.linear(b, h, f"{name}.ffn2", d.hidden, ranges.ffn)
            return [style.residual(b, z, y, after)]

    return in_blocks(b, plan.hold, x.shape[0], of_tokens)[0]


def _cached(b: Builder, heads: Heads, name: str, plan: Plan, stage: int) -> Heads:
    """Keys and values of everything so far: what earlier stages opened, and this one's."""
    q, k, v, *_ = heads
    if stage > 0:
        before = plan.seq + stage - 1
        batch, count, d = k.shape[:3]
        earlier = b.carry(f"{name}.keys", k.ring, k.frac, (batch, count, d, before), k.bound)
        k = b.join(earlier, k, dim=3)
        earlier = b.carry(f"{name}.values", v.ring, v.frac, (batch, count, before, d), v.bound)
        v = b.join(earlier, v, dim=2)
    b.keep(f"{name}.keys", k)
    b.keep(f"{name}.values", v)
    return Heads(q, k, v)


def _last(b: Builder, x: Wire, plan: Plan) -> Wire:
    """[B n, H] -> [B, H]: each prompt's last token, by a secret one-hot row."""
    with b.label("last token"):
        which = b.input("last", x.ring, 0, (plan.batch, 1, plan.seq), 1.0)
        x = b.view(x, shape=(plan.batch, plan.seq, x.shape[1]))
        opened, row = b.open(x, which)
        op = Matmul(row.shape, opened.shape, x.ring)
        (y,) = b.emit(op, [row, opened], [(x.ring, x.frac, op.shape, x.bound)])
        return b.view(y, shape=(plan.batch, op.shape[2]))
