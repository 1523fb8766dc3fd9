"""BERT: architecture -> program."""

from __future__ import annotations

from typing import Any

from ditto.errors import RangeError, UsageError
from ditto.functions import ScoreType, gelu, layernorm, linear, softmax_numerator, tanh
from ditto.functions.linear import fraction_bits
from ditto.functions.softmax import reciprocal_of_sum
from ditto.ops import Matmul, MatmulWeight
from ditto.program import Builder, Program, Wire

EMBEDDING_RING, EMBEDDING_FRAC = 16, 12  # fewer fraction bits where the tables' values need the room
HIDDEN_FRAC = 8


def score_types(spec: dict[str, Any]) -> list[ScoreType]:
    """The score type of each layer: the narrowest circle that its calibrated scores fit. Raises RangeError."""
    try:
        return [ScoreType.of(layer["scores"]) for layer in spec["calibration"]["layers"]]
    except ValueError as error:
        raise RangeError(f"{error} do not fit any score type") from error


def embedding_frac(spec: dict[str, Any]) -> int:
    """Fraction bits of the embedding tables: as many as their calibrated sum leaves in the ring."""
    return fraction_bits(spec["calibration"]["embeddings"]["bound"], EMBEDDING_RING, EMBEDDING_FRAC)


def compile_bert(spec: dict[str, Any], batch: int, seq: int) -> Program:
    """Compile for `batch` sentences of `seq` tokens. Activations are [batch * seq, H] on (32, 8) between blocks."""
    config, ranges = spec["config"], spec["calibration"]
    if not 1 <= seq <= spec["max_length"] or batch < 1:
        raise UsageError(f"batch {batch}, length {seq}: this model takes 1 to {spec['max_length']} tokens")
    b = Builder()
    x = _embeddings(b, spec, batch, seq)
    kinds = score_types(spec)
    # the same padding on the circle of each type in use
    masks = {
        kind: b.input(f"mask.{kind.frac}", 16, kind.frac, (batch, 1, 1, seq), 0.0) for kind in dict.fromkeys(kinds)
    }
    for i in range(config["num_hidden_layers"]):
        b.layer(f"layer {i}")
        kind = kinds[i]
        x = _block(b, x, masks[kind], config, ranges["layers"][i], kind, f"layer.{i}", batch, seq)
    if spec["architecture"] == "BertForSequenceClassification":
        b.layer("head")
        b.output("logits", _head(b, x, spec, batch, seq))
    else:
        b.output("hidden", x)
    return b.program


def _embeddings(b: Builder, spec: dict[str, Any], batch: int, seq: int) -> Wire:
    config, ranges = spec["config"], spec["calibration"]["embeddings"]
    rows, width = batch * seq, config["hidden_size"]
    frac = embedding_frac(spec)
    b.layer("embeddings")
    b.label("embeddings")
    if spec["embeddings"] == "public":
        x = b.input("embeddings", EMBEDDING_RING, frac, (rows, width), ranges["bound"])
    else:
        # one-hot of the word and of the token type side by side, against the two tables stacked
        entries = config["vocab_size"] + config.get("type_vocab_size", 2)
        onehot = b.input("onehot", EMBEDDING_RING, 0, (rows, entries), 1.0)
        table = b.weight("embeddings", EMBEDDING_RING, frac, (entries, width), "matrix")
        (opened,) = b.open(onehot)
        op = MatmulWeight(rows, entries, width, EMBEDDING_RING)
        (x,) = b.emit(op, [opened, table], [(EMBEDDING_RING, frac, (rows, width), ranges["bound"])])
    positions = b.weight("positions", EMBEDDING_RING, frac, (config["max_position_embeddings"], width), "share")
    cube = b.view(x, shape=(batch, seq, width))
    x = b.add(cube, b.view(positions, slices=((0, 0, seq),)), bound=ranges["bound"])
    b.label("layernorm")
    eps = config.get("layer_norm_eps", 1e-12)
    x = b.view(x, shape=(rows, width))
    return layernorm(b, x, "embeddings.norm", tuple(ranges["var"]), eps, ranges["out"])


def _block(
    b: Builder,
    x: Wire,
    mask: Wire,
    config: dict[str, Any],
    ranges: dict[str, Any],
    kind: ScoreType,
    name: str,
    batch: int,
    seq: int,
) -> Wire:
    eps = config.get("layer_norm_eps", 1e-12)
    context = _attention(b, x, mask, ranges, kind, name, config["num_attention_heads"], batch, seq)
    b.label("attention out")
    (opened,) = b.open(context)
    y = linear(b, opened, f"{name}.out", x.shape[1], ranges["norm1"]["in"])
    x = _residual_norm(b, x, y, f"{name}.norm1", ranges["norm1"], eps)
    b.label("ffn in")
    (opened,) = b.open(x)
    h = b.truncate(linear(b, opened, f"{name}.ffn1", config["intermediate_size"], ranges["gelu"]), 8)
    b.label("gelu")
    h = gelu(b, h, ranges["gelu"])
    frac = fraction_bits(h.bound, 16, HIDDEN_FRAC)
    (narrow,) = b.open(b.truncate(h, h.frac - frac, 16))
    wide = b.extend(narrow, 32)
    b.label("ffn out")
    (opened,) = b.open(wide)
    y = linear(b, opened, f"{name}.ffn2", x.shape[1], ranges["norm2"]["in"])
    return _residual_norm(b, x, y, f"{name}.norm2", ranges["norm2"], eps)


def _residual_norm(b: Builder, x: Wire, y: Wire, name: str, ranges: dict[str, Any], eps: float) -> Wire:
    """LayerNorm(x + y) with the sum on (24, 12)."""
    b.label("layernorm")
    small = b.truncate(y, y.frac - 12, 24) if y.frac > 12 else y
    total = b.add(small, x, ring=24, bound=ranges["in"])
    return layernorm(b, total, name, tuple(ranges["var"]), eps, ranges["out"])


def _attention(
    b: Builder,
    x: Wire,
    mask: Wire,
    ranges: dict[str, Any],
    kind: ScoreType,
    name: str,
    heads: int,
    batch: int,
    seq: int,
) -> Wire:
    """Multi-head attention up to the context on (32, 8), [rows, H]. 1/sqrt(d) is folded into the query weights."""
    rows, width = x.shape
    b.label("qkv")
    (opened,) = b.open(x)
    qkv = linear(b, opened, f"{name}.qkv", 3 * width, ranges["qkv"])
    frac = fraction_bits(ranges["qkv"], 16, HIDDEN_FRAC)
    (qkv,) = b.open(b.truncate(qkv, qkv.frac - frac, 16))

    def part(i: int, ring: int, dims: tuple[int, ...]) -> Wire:
        one = b.view(
            qkv, slices=((1, i * width, (i + 1) * width),), shape=(batch, seq, heads, width // heads), dims=dims
        )
        return b.extend(one, ring)

    b.label("scores")
    q, k, v = b.open(part(0, 32, (0, 2, 1, 3)), part(1, 32, (0, 2, 3, 1)), part(2, 40, (0, 2, 1, 3)))
    op = Matmul(q.shape, k.shape, 32)
    (s,) = b.emit(op, [q, k], [(32, 2 * frac, op.shape, kind.bound)])
    if 2 * frac < kind.frac:
        s = b.affine(s, 1, 0, kind.frac)
    s = b.truncate(s, s.frac - kind.frac, 16)
    b.label("softmax")
    e, total, limits = softmax_numerator(b, b.add(s, mask, bound=kind.bound), kind)
    inverse = reciprocal_of_sum(b, total, limits)
    b.label("context")
    (e_open,) = b.open(e)
    op = Matmul(e.shape, v.shape, 40)
    bound = limits[1] * ranges["qkv"]
    (context,) = b.emit(op, [e_open, v], [(40, e.frac + v.frac, op.shape, bound)])
    context, inverse = b.open(b.truncate(context, 8, 32), inverse)
    context, inverse = b.open(b.extend(context, 64), b.extend(inverse, 64))
    context = b.product(context, inverse, bound=ranges["context"])
    context = b.truncate(context, context.frac - HIDDEN_FRAC, 32)
    return b.view(b.view(context, dims=(0, 2, 1, 3)), shape=(rows, width))


def _head(b: Builder, x: Wire, spec: dict[str, Any], batch: int, seq: int) -> Wire:
    """Pooler (tanh of a dense layer on [CLS]) and classifier: logits [batch, labels]."""
    ranges, width = spec["calibration"]["head"], x.shape[1]
    labels = len(spec["config"].get("id2label") or {0: "", 1: ""})
    b.label("pooler")
    cls = b.view(b.view(x, shape=(batch, seq, width)), slices=((1, 0, 1),), shape=(batch, width))
    (opened,) = b.open(cls)
    y = b.truncate(linear(b, opened, "pooler", width, ranges["pooler"]), 8)
    y = tanh(b, y, ranges["pooler"])
    (narrow,) = b.open(b.truncate(y, y.frac - 12, 16))
    (opened,) = b.open(b.extend(narrow, 32))
    b.label("classifier")
    return linear(b, opened, "classifier", labels, ranges["logits"])
