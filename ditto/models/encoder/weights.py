"""An encoder's tensors as its programs take them."""

from __future__ import annotations

import torch

from ditto.functions.layernorm import deviation_scale, residual_type
from ditto.models.architecture import Tensors
from ditto.models.description import Description
from ditto.models.encoder.embeddings import tables
from ditto.models.ranges import activation_of, centre, folded, neuron_scales, scores_of
from ditto.presets import preset_of
from ditto.presets.style import ENCODER


def arranged(t: Tensors, orders: list[torch.Tensor]) -> Tensors:
    """The same encoder with the neurons of each block in another order."""
    t = dict(t)
    for i, order in enumerate(orders):
        at = f"layer.{i}"
        for name in ("ffn1.weight", "ffn1.bias"):
            t[f"{at}.{name}"] = t[f"{at}.{name}"][order]
        t[f"{at}.ffn2.weight"] = t[f"{at}.ffn2.weight"][:, order]
    return t


def encoder_weights(description: Description, t: Tensors, first: str) -> Tensors:
    """Real weights by the program's names, matrices [inputs, outputs]: Q and K scaled by the preset, gamma by its
    constant.

    Where the preset asks for it, what is added up before a LayerNorm is centred: tables by row, weights and biases
    over the output features; and what reads one has its gamma and beta in it: the module `first` of a head, too.
    """
    d, style = description.dimensions, preset_of(description.preset).style
    into_norm = centre if style.centred else lambda x: x
    real: Tensors = {}

    def linear(ours: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
        real[f"{ours}.weight"], real[f"{ours}.bias"] = weight, bias

    def norm(name: str, width: int) -> None:
        gamma, beta = t[f"{name}.weight"] * deviation_scale(width), t[f"{name}.bias"]
        real[f"{name}.gamma"], real[f"{name}.beta"] = gamma, beta
        linear(f"{name}.mean", gamma[:, None] / width, beta.mean()[None])

    def after(norm: str, ours: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
        if norm and style.folded:
            weight, bias = folded(t[f"{norm}.weight"], t[f"{norm}.bias"], weight, bias)
        linear(ours, weight, bias)

    types = into_norm(t["embeddings.type.weight"]) if d.token_types else None
    real |= tables(d, into_norm(t["embeddings.word.weight"]), types)
    real["positions"] = into_norm(t["embeddings.position.weight"])
    if style.repeats:
        real["positions.first"] = real["positions"][0]
        real["positions"] = real["positions"] - real["positions.first"]
    norm("embeddings.norm", d.embedding)
    if d.embedding != d.hidden:
        w, bias = t["embeddings.projection.weight"].t(), t["embeddings.projection.bias"]
        if style.centred:  # one column more, the mean of the others
            w, bias = (torch.cat([x, x.mean(-1, keepdim=True)], -1) for x in (w, bias))
        after("embeddings.norm", "embeddings.projection", w, bias)
    if d.relative_buckets:
        for layer in description.ranges.layers:
            fxp = style.bias(scores_of(layer))
            real[f"relative.{fxp.ring}.{fxp.frac}"] = t["relative.weight"].t()
    before = "embeddings.norm" if d.embedding == d.hidden else ""  # what a block reads
    for i in range(d.layers):
        at = f"layer.{i}"
        q, k, v = ((t[f"{at}.{p}.weight"].t(), t[f"{at}.{p}.bias"]) for p in ("query", "key", "value"))
        by_q, by_k = style.scales(scores_of(description.ranges.layers[i]), d.hidden // d.heads)
        qkv = torch.cat([q[0] * by_q, k[0] * by_k, v[0]], 1), torch.cat([q[1] * by_q, k[1] * by_k, v[1]])
        after(before, f"{at}.qkv", *qkv)
        scale = neuron_scales(style, description, i).to(t[f"{at}.ffn1.weight"].device)
        linear(f"{at}.out", into_norm(t[f"{at}.out.weight"].t()), into_norm(t[f"{at}.out.bias"]))
        after(f"{at}.norm1", f"{at}.ffn1", t[f"{at}.ffn1.weight"].t() * scale, t[f"{at}.ffn1.bias"] * scale)
        ffn2 = into_norm(t[f"{at}.ffn2.weight"].t()) / scale[:, None]
        linear(f"{at}.ffn2", ffn2, into_norm(t[f"{at}.ffn2.bias"]))
        own, ranges = style.chosen(description.choices_of(i)), description.ranges.layers[i]
        if own.halves(d.activation, ENCODER):
            both = real[f"{at}.ffn1.weight"], real[f"{at}.ffn1.bias"]
            bounds = activation_of(style, description, i, description.fits)[1], ranges.ffn
            sums = residual_type(ranges.norm2.input)
            linear(f"{at}.half", *own.half(both, real[f"{at}.ffn2.weight"], bounds, sums.ring))
        norm(f"{at}.norm1", d.hidden)
        norm(f"{at}.norm2", d.hidden)
        before = f"{at}.norm2"
    for part in ("pooler", "classifier"):
        if f"{part}.weight" in t:
            after(before if part == first else "", part, t[f"{part}.weight"].t(), t[f"{part}.bias"])
    return real
