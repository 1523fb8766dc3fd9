"""Sizes from a configuration in BERT's names; each family passes its own where they differ."""

from __future__ import annotations

from typing import Any, get_args

from ditto.errors import BadCheckpoint, UnsupportedArchitecture
from ditto.models.architecture import Config
from ditto.models.description import Dimensions, Problem

MOST = 10_001  # labels that are counted: one more than a description takes
BERT = {
    "hidden": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "inner": "intermediate_size", "vocabulary": "vocab_size", "positions": "max_position_embeddings",
}  # fmt: skip


def labels(config: Config) -> tuple[str, ...]:
    """The labels of a classifier in order; two without a name where the configuration has none, as transformers do."""
    named = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(min(int(config.get("num_labels", 2)), MOST))}
    try:
        order = {int(i): str(label) for i, label in named.items()}
    except (AttributeError, ValueError):
        raise BadCheckpoint("config.json: id2label does not name labels by number") from None
    if sorted(order) != list(range(len(order))):
        raise BadCheckpoint("config.json: id2label does not name labels 0, 1, 2, …")
    return tuple(order[i] for i in range(len(order)))


def problem_type(config: Config) -> Problem:
    """What a classifier's logits are. Without a word on it one of its labels is right, as transformers takes it."""
    named = config.get("problem_type") or "single_label_classification"
    for known in get_args(Problem):
        if known == named:
            found: Problem = known
            return found
    raise BadCheckpoint(f"config.json: problem_type {str(named)[:100]!r}: one of {', '.join(get_args(Problem))}")


def dimensions(
    config: Config, *, names: dict[str, str] = BERT, activation: str = "hidden_act", **sizes: Any
) -> Dimensions:
    """Sizes by the family's names; `positions` are the rows of its table. `sizes` has what else differs.

    Raises UnsupportedArchitecture for variants that the programs do not have, KeyError for a missing size.
    """
    if config.get(activation, "gelu") != "gelu":
        raise UnsupportedArchitecture(f"only GELU activations are supported, not {config[activation]!r}")
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UnsupportedArchitecture(f"only absolute positions are supported, not {positions!r}")
    if config.get("is_decoder"):
        raise UnsupportedArchitecture("an encoder that attends like a decoder is not supported")
    if config.get("add_cross_attention"):
        raise UnsupportedArchitecture("attention to another text's states is not supported")
    found: dict[str, Any] = {ours: config[theirs] for ours, theirs in names.items()}
    found |= {"embedding": found["hidden"], "epsilon": float(config.get("layer_norm_eps", 1e-12))}
    return Dimensions(**(found | sizes))
