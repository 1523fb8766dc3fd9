"""An encoder as a program, in the style of a preset."""

from __future__ import annotations

from collections.abc import Sequence

from ditto.engine.parts import check_count, in_blocks, rows
from ditto.engine.plan import Plan
from ditto.engine.program import Builder, Program, Wire
from ditto.engine.schedule import scheduled
from ditto.errors import UsageError
from ditto.functions.fit import Fits
from ditto.functions.fixed import minus
from ditto.models.description import Description, NormRange, required
from ditto.models.encoder.embeddings import looked_up
from ditto.models.encoder.heads import Head
from ditto.models.ranges import activation_of, attention_of, norm_of, scores_of
from ditto.ops.positions import RelativePositions
from ditto.presets import preset_of
from ditto.presets.style import ENCODER, Normed, Style


def compile_encoder(head: Head, description: Description, plan: Plan, fits: Fits) -> Program:
    """Compile for `plan.batch` texts of `plan.seq` tokens. Activations are shares [batch * seq, H].

    Raises UsageError for a plan that the model does not take.
    """
    d, ranges = description.dimensions, description.ranges
    if plan != Plan(plan.batch, plan.seq, guard=plan.guard, hold_mb=plan.hold_mb):
        raise UsageError(f"{description.architecture} generates no text")
    if not 1 <= plan.seq <= d.positions or plan.batch < 1:
        raise UsageError(f"batch {plan.batch}, length {plan.seq}: this model takes 1 to {d.positions} tokens")
    style = preset_of(description.preset).style
    b = Builder(plan.guard)
    scores = [scores_of(layer) for layer in ranges.layers]
    masks = style.masks(b, scores, plan.batch, plan.seq)
    b.layer("embeddings")
    kept = _kept(b, masks[0]) if style.repeats else None
    x = _embeddings(b, description, style, plan, kept)
    biases = _biases(b, description, style, plan, kept)
    for i in range(d.layers):
        b.layer(f"layer {i}")
        x = _block(b, x, masks[i], biases[i], description, i, style, plan, fits, head.whole)
        b.tap(f"hidden {i}", x.out)
        check_count(len(b.program.layers) * d.layers // (i + 2))  # before the other layers are compiled
    head.compile(b, x.out, style, d, ranges, fits, plan.batch)
    return scheduled(b.finish())


def _kept(b: Builder, mask: Wire) -> Wire:
    """A mask [B, 1, 1, n] of ones and zeros, opened as [B, n, 1]: padding is computed as the text's first token is."""
    batch, n = mask.shape[0], mask.shape[-1]
    with b.label("embeddings"):
        (opened,) = b.open(mask)
        return b.view(opened, shape=(batch, n, 1))


def _embeddings(b: Builder, description: Description, style: Style, plan: Plan, kept: Wire | None) -> Normed:
    d, ranges = description.dimensions, description.ranges
    count, bound = plan.batch * plan.seq, ranges.embeddings
    table = style.table(bound)
    with b.label("embeddings"):
        if description.embeddings == "public":
            x = b.input("embeddings", table.ring, table.frac, (count, d.embedding), bound)
        else:
            x = looked_up(b, d, table, count, bound, plan.hold)
        held = "masked" if kept else "share"
        positions = b.weight("positions", table.ring, table.frac, (d.positions, d.embedding), held)
        added = [b.view(positions, slices=((0, 0, plan.seq),))]
        if kept:  # less the first position, which all have
            first = b.weight("positions.first", table.ring, table.frac, (d.embedding,), "share")
            added = [b.product(kept, added[0], bound=bound), first]
        x = b.add(b.view(x, shape=(plan.batch, plan.seq, d.embedding)), *added, bound=bound)
        x = b.view(x, shape=(count, d.embedding))

    def normed(b: Builder, first: int, last: int) -> Sequence[Wire]:
        with b.label("layernorm"):
            found = required(ranges.embedding_norm, "ranges.embedding_norm")
            after = ranges.layers[0].norm1 if d.embedding == d.hidden else None
            y = style.norm(b, rows(b, x, 0, first, last), norm_of("embeddings.norm", found, d.epsilon, after))
        if d.embedding == d.hidden:
            return y.wires
        bound = required(ranges.embedding_projection, "ranges.embedding_projection")
        with b.label("projection"):
            return style.project_embeddings(b, y.out, "embeddings.projection", d.hidden, bound).wires

    return Normed(*in_blocks(b, plan.hold, count, normed))


def _biases(b: Builder, description: Description, style: Style, plan: Plan, kept: Wire | None) -> list[Wire | None]:
    """The bias of relative positions [1 or B, heads, n, n] in the type of each layer's scores, one for each type."""
    d, n = description.dimensions, plan.seq
    if not d.relative_buckets:
        return [None] * d.layers
    types = [style.bias(scores_of(layer)) for layer in description.ranges.layers]
    wires = {}
    with b.label("relative positions"):
        for fxp in dict.fromkeys(types):
            shape = (d.heads, d.relative_buckets)
            table = b.weight(f"relative.{fxp.ring}.{fxp.frac}", fxp.ring, fxp.frac, shape, "share")
            op = RelativePositions(n, d.relative_buckets, d.relative_distance)
            (bias,) = b.emit(op, [table], [(fxp.ring, fxp.frac, (d.heads, n, n), 0.0)])
            bias = b.view(bias, shape=(1, d.heads, n, n))
            wires[fxp] = _as_first(b, bias, kept, plan) if kept else bias
    return [wires[fxp] for fxp in types]


def _as_first(b: Builder, bias: Wire, kept: Wire, plan: Plan) -> Wire:
    """[bias] [1, heads, n, n] less that of the first key -> [B, heads, n, n]: 0 for keys of padding, for its queries
    that of the first query."""
    bias = b.add(bias, minus(b, b.view(bias, slices=((3, 0, 1),))))
    first = b.view(bias, slices=((2, 0, 1),))
    first, rest = b.open(first, b.add(bias, minus(b, first)))

    def of_texts(b: Builder, start: int, end: int) -> list[Wire]:
        some = rows(b, kept, 0, start, end)
        queries, keys = (b.view(some, shape=(end - start, 1, *shape)) for shape in ((plan.seq, 1), (1, plan.seq)))
        return [b.add(b.product(keys, first), b.product3(queries, keys, rest, bound=0.0))]

    return in_blocks(b, plan.hold, plan.batch, of_texts)[0]


def _block(
    b: Builder,
    x: Normed,
    mask: Wire,
    bias: Wire | None,
    description: Description,
    i: int,
    style: Style,
    plan: Plan,
    fits: Fits,
    whole: bool,
) -> Normed:
    """Attention and feed-forward network, each added to what it read and normalized. `whole`: for the last block, does
    the model give what its LayerNorm does?"""
    d, ranges, name = description.dimensions, description.ranges.layers[i], f"layer.{i}"
    style = style.chosen(description.choices_of(i))
    context = _attention(b, x, mask, bias, description, i, style, plan)
    b.tap(f"context {i}", context)
    zones, wide = activation_of(style, description, i, fits)
    after = description.ranges.layers[i + 1].norm1 if i + 1 < d.layers else None

    def add_and_norm(b: Builder, x: Normed, y: Wire, at: str, found: NormRange, after: NormRange | None) -> Normed:
        with b.label("layernorm"):
            total = style.residual(b, x.residual, y, found.input)
            norm = norm_of(f"{name}.{at}", found, d.epsilon, after, whole and after is None)
            return style.norm(b, total, norm, x.mean)

    def of_tokens(b: Builder, first: int, last: int) -> Sequence[Wire]:
        before = Normed(*(rows(b, wire, 0, first, last) for wire in x.wires))
        with b.label("attention out"):
            y = style.linear(b, rows(b, context, 0, first, last), f"{name}.out", d.hidden, ranges.attention)
        z = add_and_norm(b, before, y, "norm1", ranges.norm1, ranges.norm2)
        with b.label("ffn in"):
            columns, bounds = (d.inner, d.hidden), (wide, ranges.ffn)
            h, half = style.feed_in(b, z.out, name, columns, bounds, d.activation, z.residual, ENCODER)
        with b.label("gelu"):
            h = style.activation(b, d.activation, h, wide, z.residual, fits, ENCODER, zones)
        with b.label("ffn out"):
            y = style.linear(b, h, f"{name}.ffn2", d.hidden, ranges.ffn)
            y = y if half is None else b.add(y, half, bound=ranges.ffn)
        return add_and_norm(b, z, y, "norm2", ranges.norm2, after).wires

    return Normed(*in_blocks(b, plan.hold, plan.batch * plan.seq, of_tokens))


def _attention(
    b: Builder,
    x: Normed,
    mask: Wire,
    bias: Wire | None,
    description: Description,
    i: int,
    style: Style,
    plan: Plan,
) -> Wire:
    """Context [rows, H]: in blocks of texts where a layer is large, and of queries where a text is."""
    d, ranges = description.dimensions, description.ranges.layers[i]
    bounds = attention_of(ranges)

    def of_texts(b: Builder, first: int, last: int) -> Sequence[Wire]:
        some, padding = rows(b, x.out, 0, first * plan.seq, last * plan.seq), rows(b, mask, 0, first, last)
        with b.label("qkv"):
            name = f"layer.{i}.qkv"
            heads = style.heads(b, some, name, d.heads, last - first, bounds, ENCODER, mask=padding)

        near = bias if bias is None or bias.shape[0] == 1 else rows(b, bias, 0, first, last)

        def of_queries(b: Builder, start: int, end: int) -> list[Wire]:
            asked = heads._replace(q=rows(b, heads.q, 2, start, end))
            added = None if near is None else rows(b, near, 2, start, end)
            return [style.attend(b, asked, bounds, x.residual, ENCODER, mask=padding, bias=added)]

        # a block of several texts is small enough as it is
        return in_blocks(b, plan.hold, plan.seq, of_queries) if last - first == 1 else of_queries(b, 0, plan.seq)

    (context,) = in_blocks(b, plan.hold, plan.batch, of_texts)
    return context
