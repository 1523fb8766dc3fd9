"""Loading Hugging Face checkpoints: config.json + model.safetensors + tokenizer files. No pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ditto.errors import BadCheckpoint, UnsupportedArchitecture
from ditto.models.tensors import read_tensors
from ditto.models.tokenizer import Tokenizer

QUAD = "quad"  # the name of MPCFormer's replacement for GELU in a checkpoint's configuration; no other library has it
ARCHITECTURES = ("BertModel", "BertForSequenceClassification", "GPT2LMHeadModel")
LAYER = {
    "attention.self.query": ("hidden", "hidden"),
    "attention.self.key": ("hidden", "hidden"),
    "attention.self.value": ("hidden", "hidden"),
    "attention.output.dense": ("hidden", "hidden"),
    "intermediate.dense": ("inner", "hidden"),
    "output.dense": ("hidden", "inner"),
    "attention.output.LayerNorm": ("hidden",),
    "output.LayerNorm": ("hidden",),
}


@dataclass
class Checkpoint:
    """A model in plaintext, at its owner: tensors by their names below `bert.` or `transformer.`, config in BERT's
    names whatever the architecture, where it came from."""

    architecture: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    directory: Path | None = None

    @property
    def quad(self) -> bool:
        """Was it trained with Quad in the place of GELU?"""
        return self.config.get("activation") == QUAD

    @property
    def causal(self) -> bool:
        """Does it generate text?"""
        return self.architecture == "GPT2LMHeadModel"

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer (tokenizer.json or vocab.txt)."""
        if self.directory is None:
            raise BadCheckpoint("a model with random weights has no tokenizer")
        return Tokenizer.load(self.directory)


def expected(config: dict[str, Any], architecture: str) -> dict[str, tuple[int, ...]]:
    """Names (below `bert.` or `transformer.`) and shapes of the tensors that an architecture needs."""
    if architecture == "GPT2LMHeadModel":
        return _expected_gpt2(config)
    sizes = {"hidden": config["hidden_size"], "inner": config["intermediate_size"]}
    hidden = sizes["hidden"]
    need: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config.get("type_vocab_size", 2), hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        for part, names in LAYER.items():
            shape = tuple(sizes[n] for n in names)
            need[f"encoder.layer.{i}.{part}.weight"] = shape
            need[f"encoder.layer.{i}.{part}.bias"] = shape[:1]
    if architecture == "BertForSequenceClassification":
        labels = len(config.get("id2label") or {0: "", 1: ""})
        need |= {"pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,)}
        need |= {"classifier.weight": (labels, hidden), "classifier.bias": (labels,)}
    return need


def _expected_gpt2(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """GPT-2 keeps its projections as [inputs, outputs]; the language-model head is the word embeddings."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    need: dict[str, tuple[int, ...]] = {
        "wte.weight": (config["vocab_size"], hidden),
        "wpe.weight": (config["max_position_embeddings"], hidden),
    }
    for i in range(config["num_hidden_layers"]):
        for name, shape in (
            ("attn.c_attn", (hidden, 3 * hidden)),
            ("attn.c_proj", (hidden, hidden)),
            ("mlp.c_fc", (hidden, inner)),
            ("mlp.c_proj", (inner, hidden)),
        ):
            need |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[1:]}
        need |= {f"h.{i}.{norm}.{part}": (hidden,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    return need | {"ln_f.weight": (hidden,), "ln_f.bias": (hidden,)}


def _gpt2_config(config: dict[str, Any]) -> dict[str, Any]:
    """GPT-2's own names for the sizes, as BERT calls them. Raises UnsupportedArchitecture for variants."""
    activation = config.get("activation_function", "gelu_new")
    plain = (
        activation in ("gelu_new", "gelu_pytorch_tanh", QUAD)
        and config.get("scale_attn_weights", True)
        and not config.get("scale_attn_by_inverse_layer_idx", False)
        and config.get("tie_word_embeddings", True)
    )
    if not plain:
        raise UnsupportedArchitecture("only GPT-2 with tanh-GELU or Quad, scaled attention and tied embeddings")
    names = {
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "vocab_size": "vocab_size", "max_position_embeddings": "n_positions",
    }  # fmt: skip
    sizes: dict[str, Any] = {ours: config[theirs] for ours, theirs in names.items()}
    return sizes | {
        "intermediate_size": config.get("n_inner") or 4 * config["n_embd"],
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "activation": QUAD if activation == QUAD else "gelu_new",
    }


def load_checkpoint(directory: Path) -> Checkpoint:
    """Load and check a checkpoint. Raises BadCheckpoint naming the file or tensor, or UnsupportedArchitecture."""
    directory = Path(directory)
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{directory / 'config.json'}: {error}") from error
    names = config.get("architectures") or []
    architecture = names[0] if names else ""
    if architecture not in ARCHITECTURES:
        raise UnsupportedArchitecture(f"{architecture or 'no architecture'}: supported are {', '.join(ARCHITECTURES)}")
    if config.get("hidden_act", "gelu") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedArchitecture("only GELU activations and absolute positions are supported")
    raw = read_tensors(directory)
    raw = {name.removeprefix("bert.").removeprefix("transformer."): tensor for name, tensor in raw.items()}
    try:
        if architecture == "GPT2LMHeadModel":
            config = _gpt2_config(config)
        need = expected(config, architecture)
    except KeyError as error:
        raise BadCheckpoint(f"config.json: {error} is missing") from error
    for name, shape in need.items():
        if name not in raw:
            raise BadCheckpoint(f"tensor {name} is missing")
        if tuple(raw[name].shape) != shape:
            raise BadCheckpoint(f"tensor {name}: shape {tuple(raw[name].shape)}, expected {shape}")
    return Checkpoint(architecture, config, {n: raw[n].float() for n in need}, directory)
