"""GPT-2's tensors: their shapes, and as its programs take them."""

from __future__ import annotations

import math

import torch

from ditto.functions.layernorm import deviation_scale
from ditto.models.architecture import Shapes, Tensors
from ditto.models.description import Description, Dimensions
from ditto.models.ranges import centre, folded, neuron_scales
from ditto.presets import preset_of

Tensor = torch.Tensor


def shapes(d: Dimensions) -> Shapes:
    """GPT-2 keeps its projections as [inputs, outputs]; the language-model head is the word embeddings."""
    need: Shapes = {"wte.weight": (d.vocabulary, d.hidden), "wpe.weight": (d.positions, d.hidden)}
    for i in range(d.layers):
        for name, shape in (
            ("attn.c_attn", (d.hidden, 3 * d.hidden)),
            ("attn.c_proj", (d.hidden, d.hidden)),
            ("mlp.c_fc", (d.hidden, d.inner)),
            ("mlp.c_proj", (d.inner, d.hidden)),
        ):
            need |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[1:]}
        need |= {f"h.{i}.{norm}.{part}": (d.hidden,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    return need | {"ln_f.weight": (d.hidden,), "ln_f.bias": (d.hidden,)}


def arranged(t: Tensors, orders: list[Tensor]) -> Tensors:
    """The same model with the neurons of each block in another order."""
    t = dict(t)
    for i, order in enumerate(orders):
        at = f"h.{i}.mlp"
        t[f"{at}.c_fc.weight"] = t[f"{at}.c_fc.weight"][:, order]
        t[f"{at}.c_fc.bias"] = t[f"{at}.c_fc.bias"][order]
        t[f"{at}.c_proj.weight"] = t[f"{at}.c_proj.weight"][order]
    return t


def gpt2_weights(description: Description, t: Tensors) -> Tensors:
    """Real weights by the programs' names, matrices [inputs, outputs].

    Queries are scaled by 1/sqrt(d), gamma by the constant of the inverse deviation. A folded style has
    W' = diag(gamma) W and b' = beta W + b after each LayerNorm; a centred one has what leads into the residual
    stream without its mean over the features.
    """
    d, style = description.dimensions, preset_of(description.preset).style
    real: Tensors = {"embeddings": torch.cat([t["wte.weight"], t["wpe.weight"]])}

    def after_norm(name: str, norm: str, theirs: str, w: Tensor, bias: Tensor) -> None:
        gamma, beta = t[f"{theirs}.weight"], t[f"{theirs}.bias"]
        if style.folded:
            w, bias = folded(gamma, beta, w, bias)
        else:
            real[f"{norm}.gamma"], real[f"{norm}.beta"] = gamma * deviation_scale(d.hidden), beta
        real[f"{name}.weight"], real[f"{name}.bias"] = w, bias

    def into_stream(name: str, w: Tensor, bias: Tensor) -> None:
        for part, x in (("weight", w), ("bias", bias)):
            real[f"{name}.{part}"] = centre(x) if style.centred else x

    shrink = torch.ones(3 * d.hidden, device=t["wte.weight"].device)
    shrink[: d.hidden] = 1 / math.sqrt(d.hidden // d.heads)
    for i in range(d.layers):
        at, to = f"h.{i}", f"layer.{i}"
        qkv, bias = t[f"{at}.attn.c_attn.weight"] * shrink, t[f"{at}.attn.c_attn.bias"] * shrink
        after_norm(f"{to}.qkv", f"{to}.norm1", f"{at}.ln_1", qkv, bias)
        into_stream(f"{to}.out", t[f"{at}.attn.c_proj.weight"], t[f"{at}.attn.c_proj.bias"])
        wider = neuron_scales(style, description, i).to(shrink.device)
        fc, bias = t[f"{at}.mlp.c_fc.weight"] * wider, t[f"{at}.mlp.c_fc.bias"] * wider
        after_norm(f"{to}.ffn1", f"{to}.norm2", f"{at}.ln_2", fc, bias)
        into_stream(f"{to}.ffn2", t[f"{at}.mlp.c_proj.weight"] / wider[:, None], t[f"{at}.mlp.c_proj.bias"])
    after_norm("head", "final", "ln_f", t["wte.weight"].t(), torch.zeros(d.vocabulary, device=shrink.device))
    if style.centred:
        real["embeddings"] = centre(real["embeddings"])
    return real
