"""An encoder as a program, in the style of a preset."""

from __future__ import annotations

from ditto.engine.plan import Plan
from ditto.engine.program import Builder, Program, Wire
from ditto.errors import UsageError
from ditto.functions.fit import Fits
from ditto.models.description import Description, NormRange, required
from ditto.models.encoder.heads import Head
from ditto.models.ranges import activation_of, norm_of
from ditto.ops import MatmulWeight
from ditto.ops.positions import RelativePositions
from ditto.presets import preset_of
from ditto.presets.style import ENCODER, AttentionBounds, Normed, Style


def compile_encoder(head: Head, description: Description, plan: Plan, fits: Fits) -> Program:
    """Compile for `plan.batch` texts of `plan.seq` tokens. Activations are shares [batch * seq, H].

    Raises UsageError for a plan that the model does not take.
    """
    d, ranges = description.dimensions, description.ranges
    if plan != Plan(plan.batch, plan.seq, guard=plan.guard):
        raise UsageError(f"{description.architecture} generates no text")
    if not 1 <= plan.seq <= d.positions or plan.batch < 1:
        raise UsageError(f"batch {plan.batch}, length {plan.seq}: this model takes 1 to {d.positions} tokens")
    style = preset_of(description.preset).style
    b = Builder(plan.guard)
    x = _embeddings(b, description, style, plan)
    scores = [layer.scores for layer in ranges.layers]
    masks = style.masks(b, scores, plan.batch, plan.seq)
    biases = _biases(b, description, style, plan.seq)
    for i in range(d.layers):
        b.layer(f"layer {i}")
        x = _block(b, x, masks[i], biases[i], description, i, style, plan.batch, fits)
    head.compile(b, x.out, style, d, ranges, fits, plan.batch)
    return b.finish()


def _embeddings(b: Builder, description: Description, style: Style, plan: Plan) -> Normed:
    d, ranges = description.dimensions, description.ranges
    rows, bound = plan.batch * plan.seq, ranges.embeddings
    table = style.table(bound)
    b.layer("embeddings")
    with b.label("embeddings"):
        if description.embeddings == "public":
            x = b.input("embeddings", table.ring, table.frac, (rows, d.embedding), bound)
        else:
            # one-hot of the word and of the token type side by side, against the two tables stacked
            entries = d.vocabulary + d.token_types
            onehot = b.input("onehot", table.ring, 0, (rows, entries), 1.0)
            weight = b.weight("embeddings", table.ring, table.frac, (entries, d.embedding), "matrix")
            (opened,) = b.open(onehot)
            op = MatmulWeight(rows, entries, d.embedding, table.ring)
            (x,) = b.emit(op, [opened, weight], [(table.ring, table.frac, (rows, d.embedding), bound)])
        positions = b.weight("positions", table.ring, table.frac, (d.positions, d.embedding), "share")
        cube = b.view(x, shape=(plan.batch, plan.seq, d.embedding))
        x = b.add(cube, b.view(positions, slices=((0, 0, plan.seq),)), bound=bound)
    with b.label("layernorm"):
        x = b.view(x, shape=(rows, d.embedding))
        found = required(ranges.embedding_norm, "ranges.embedding_norm")
        normed = style.norm(b, x, norm_of("embeddings.norm", found, d.epsilon, ranges.layers[0].norm1))
    if d.embedding == d.hidden:
        return normed
    bound = required(ranges.embedding_projection, "ranges.embedding_projection")
    with b.label("projection"):
        return style.project_embeddings(b, normed.out, "embeddings.projection", d.hidden, bound)


def _biases(b: Builder, description: Description, style: Style, n: int) -> list[Wire | None]:
    """The bias of relative positions [heads, n, n] in the type of each layer's scores, one table for each type."""
    d = description.dimensions
    if not d.relative_buckets:
        return [None] * d.layers
    types = [style.bias(layer.scores) for layer in description.ranges.layers]
    wires = {}
    with b.label("relative positions"):
        for fxp in dict.fromkeys(types):
            shape = (d.heads, d.relative_buckets)
            table = b.weight(f"relative.{fxp.frac}", fxp.ring, fxp.frac, shape, "share")
            op = RelativePositions(n, d.relative_buckets, d.relative_distance)
            (wires[fxp],) = b.emit(op, [table], [(fxp.ring, fxp.frac, (d.heads, n, n), 0.0)])
    return [wires[fxp] for fxp in types]


def _block(
    b: Builder,
    x: Normed,
    mask: Wire,
    bias: Wire | None,
    description: Description,
    i: int,
    style: Style,
    batch: int,
    fits: Fits,
) -> Normed:
    """Attention and feed-forward network, each added to what it read and normalized."""
    d, ranges, name = description.dimensions, description.ranges.layers[i], f"layer.{i}"
    style = style.chosen(description.choices_of(i))

    def add_and_norm(x: Normed, y: Wire, at: str, found: NormRange, after: NormRange | None) -> Normed:
        with b.label("layernorm"):
            total = style.residual(b, x.residual, y, found.input)
            return style.norm(b, total, norm_of(f"{name}.{at}", found, d.epsilon, after))

    with b.label("qkv"):
        heads = style.heads(b, x.out, f"{name}.qkv", d.heads, batch, ranges.qkv, ENCODER, mask=mask)
    bounds = AttentionBounds(ranges.qkv, ranges.scores, ranges.context)
    context = style.attend(b, heads, bounds, x.residual, ENCODER, mask=mask, bias=bias)
    with b.label("attention out"):
        y = style.linear(b, context, f"{name}.out", d.hidden, ranges.attention)
    x = add_and_norm(x, y, "norm1", ranges.norm1, ranges.norm2)
    zones, wide = activation_of(style, description, i, fits)
    with b.label("ffn in"):
        h = style.linear(b, x.out, f"{name}.ffn1", d.inner, wide)
    with b.label("gelu"):
        h = style.activation(b, d.activation, h, wide, x.residual, fits, ENCODER, zones)
    with b.label("ffn out"):
        y = style.linear(b, h, f"{name}.ffn2", d.hidden, ranges.ffn)
    after = description.ranges.layers[i + 1].norm1 if i + 1 < d.layers else None
    return add_and_norm(x, y, "norm2", ranges.norm2, after)
