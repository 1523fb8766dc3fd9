"""What a client does in plaintext: encode a batch, decode the outputs, compute the answer to compare with."""

from __future__ import annotations

from typing import Any

import torch

from ditto.engine.program import Program
from ditto.errors import UsageError
from ditto.models.bert_float import classify, forward
from ditto.models.gpt2_client import encode_prompts
from ditto.models.ranges import centre
from ditto.models.tokenizer import Batch
from ditto.presets import preset_of
from ditto.ring import carrier
from ditto.ring.fixedpoint import decode, encode

Tensor = torch.Tensor


def encode_inputs(
    spec: dict[str, Any], program: Program, batch: Batch, public_table: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Ring integers of the program's inputs: one-hot rows (or looked-up embeddings) and the padding mask.

    With public embeddings, `public_table` holds the word and token-type tables (fp32). Raises UsageError without.
    """
    if spec["architecture"] == "GPT2LMHeadModel":
        return encode_prompts(spec, program, batch.ids, batch.mask.sum(1).tolist())
    style = preset_of(spec["preset"]).style
    inputs = style.encode_masks(spec, 1 - batch.mask)
    ids, types = batch.ids.reshape(-1), batch.types.reshape(-1)
    if spec["embeddings"] == "public":
        if public_table is None:
            raise UsageError("this model's embeddings are public: the client needs its tables")
        words = public_table["embeddings.word_embeddings.weight"][ids]
        x = words + public_table["embeddings.token_type_embeddings.weight"][types]
        wire = program.inputs["embeddings"]
        inputs["embeddings"] = encode(centre(x) if style.centred else x, wire.ring, wire.frac)
    else:
        wire = program.inputs["onehot"]
        onehot = torch.zeros(wire.shape, dtype=carrier(wire.ring))
        rows = torch.arange(len(ids))
        onehot[rows, ids] = 1
        onehot[rows, spec["config"]["vocab_size"] + types] = 1
        inputs["onehot"] = onehot
    return inputs


def decode_outputs(
    spec: dict[str, Any], program: Program, outputs: dict[str, Tensor], batch: Batch
) -> list[list[float]]:
    """One vector a text: logits, or the mean of the hidden states over its tokens."""
    size, n = batch.shape
    values = {name: decode(outputs[name], w.ring, w.frac) for name, w in program.outputs.items()}
    if "logits" in values:
        logits: list[list[float]] = values["logits"].tolist()
        return logits
    return _pool(values["hidden"].reshape(size, n, -1), batch)


def _pool(hidden: Tensor, batch: Batch) -> list[list[float]]:
    weights = batch.mask[..., None].to(hidden.dtype)
    pooled: list[list[float]] = ((hidden * weights).sum(1) / weights.sum(1)).tolist()
    return pooled


def plain_float(tensors: dict[str, Tensor], spec: dict[str, Any], batch: Batch) -> list[list[float]]:
    """The same answer by the plaintext model in fp32."""
    with torch.inference_mode():
        hidden = forward(tensors, spec["config"], batch.ids, batch.types, batch.mask)
        if spec["architecture"] == "BertForSequenceClassification":
            logits: list[list[float]] = classify(tensors, hidden).tolist()
            return logits
        return _pool(hidden, batch)
