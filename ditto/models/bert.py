"""BERT: architecture -> program, in the style of a preset."""

from __future__ import annotations

from typing import Any

from ditto.engine.program import Builder, Program, Wire
from ditto.errors import UsageError, VersionMismatch
from ditto.ops import MatmulWeight
from ditto.presets import preset_of
from ditto.presets.style import Style

FORMAT = 2  # of descriptions and encoded weights; 2: what leads into a LayerNorm is centred


def compile_bert(spec: dict[str, Any], batch: int, seq: int) -> Program:
    """Compile for `batch` sentences of `seq` tokens. Activations are shares [batch * seq, H].

    Raises UsageError for a shape that the model does not take, VersionMismatch for a description of another format.
    """
    config, ranges = spec["config"], spec["calibration"]
    if not 1 <= seq <= spec["max_length"] or batch < 1:
        raise UsageError(f"batch {batch}, length {seq}: this model takes 1 to {spec['max_length']} tokens")
    if spec.get("format") != FORMAT:  # its weights would be read as what they are not
        raise VersionMismatch("this model was imported by another version of ditto; import and share it again")
    style = preset_of(spec["preset"]).style
    b = Builder()
    x, residual = _embeddings(b, spec, style, batch, seq)
    for i, mask in enumerate(style.masks(b, spec, batch, seq)):
        b.layer(f"layer {i}")
        x, residual = _block(b, x, residual, mask, config, ranges["layers"][i], style, f"layer.{i}", batch, seq)
    if spec["architecture"] == "BertForSequenceClassification":
        b.layer("head")
        b.output("logits", _head(b, x, spec, style, batch, seq))
    else:
        b.output("hidden", x)
    return b.program


def _embeddings(b: Builder, spec: dict[str, Any], style: Style, batch: int, seq: int) -> tuple[Wire, Wire]:
    config, ranges = spec["config"], spec["calibration"]["embeddings"]
    rows, width = batch * seq, config["hidden_size"]
    ring, frac = style.embedding_type(spec)
    b.layer("embeddings")
    b.label("embeddings")
    if spec["embeddings"] == "public":
        x = b.input("embeddings", ring, frac, (rows, width), ranges["bound"])
    else:
        # one-hot of the word and of the token type side by side, against the two tables stacked
        entries = config["vocab_size"] + config.get("type_vocab_size", 2)
        onehot = b.input("onehot", ring, 0, (rows, entries), 1.0)
        table = b.weight("embeddings", ring, frac, (entries, width), "matrix")
        (opened,) = b.open(onehot)
        op = MatmulWeight(rows, entries, width, ring)
        (x,) = b.emit(op, [opened, table], [(ring, frac, (rows, width), ranges["bound"])])
    positions = b.weight("positions", ring, frac, (config["max_position_embeddings"], width), "share")
    cube = b.view(x, shape=(batch, seq, width))
    x = b.add(cube, b.view(positions, slices=((0, 0, seq),)), bound=ranges["bound"])
    b.label("layernorm")
    eps = config.get("layer_norm_eps", 1e-12)
    return style.norm(b, b.view(x, shape=(rows, width)), "embeddings.norm", ranges, eps)


def _block(
    b: Builder,
    x: Wire,
    residual: Wire,
    mask: Wire,
    config: dict[str, Any],
    ranges: dict[str, Any],
    style: Style,
    name: str,
    batch: int,
    seq: int,
) -> tuple[Wire, Wire]:
    eps, width = config.get("layer_norm_eps", 1e-12), x.shape[1]

    def add_and_norm(y: Wire, residual: Wire, at: str) -> tuple[Wire, Wire]:
        b.label("layernorm")
        total = style.residual(b, residual, y, ranges[at]["in"])
        return style.norm(b, total, f"{name}.{at}", ranges[at], eps)

    context = style.attention(b, x, mask, ranges, name, config["num_attention_heads"], batch, seq)
    b.label("attention out")
    y = style.project(b, context, f"{name}.out", width, ranges["norm1"]["in"])
    x, residual = add_and_norm(y, residual, "norm1")
    b.label("ffn in")
    h = style.project(b, x, f"{name}.ffn1", config["intermediate_size"], ranges["gelu"])
    h = style.gelu(b, h, ranges["gelu"])
    y = style.project(b, h, f"{name}.ffn2", width, ranges["norm2"]["in"])
    return add_and_norm(y, residual, "norm2")


def _head(b: Builder, x: Wire, spec: dict[str, Any], style: Style, batch: int, seq: int) -> Wire:
    """Pooler (tanh of a dense layer on [CLS]) and classifier: logits [batch, labels]."""
    ranges, width = spec["calibration"]["head"], x.shape[1]
    labels = len(spec["config"].get("id2label") or {0: "", 1: ""})
    b.label("pooler")
    cls = b.view(b.view(x, shape=(batch, seq, width)), slices=((1, 0, 1),), shape=(batch, width))
    y = style.tanh(b, style.project(b, cls, "pooler", width, ranges["pooler"]), ranges["pooler"])
    b.label("classifier")
    return style.project(b, y, "classifier", labels, ranges["logits"])
