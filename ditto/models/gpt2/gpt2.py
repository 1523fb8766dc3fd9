"""The protocol of an architecture, for GPT-2."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ditto.engine.plan import Plan
from ditto.engine.program import Program
from ditto.errors import RangeError, TextTooLong, UnsupportedArchitecture, UsageError
from ditto.functions.fit import Fits
from ditto.models.architecture import Answer, Config, Shapes, Tensors, Texts
from ditto.models.description import Description, Dimensions, Ranges, round_up
from ditto.models.gpt2.floats import continue_texts, forward, logits
from ditto.models.gpt2.program import compile_gpt2
from ditto.models.gpt2.weights import arranged, gpt2_weights, shapes
from ditto.models.ranges import LOGITS_MARGIN, Observe, Seen, largest, scores_of, silent
from ditto.models.tokenizer import Prompts, Tokenizer
from ditto.presets import preset_of
from ditto.ring import carrier
from ditto.ring.fixedpoint import decode

PADDED = 16  # texts that calibration also takes with their padding
QUAD = "quad"  # MPCFormer's replacement for GELU in a checkpoint's configuration; no other library has it
TANH = ("gelu_new", "gelu_pytorch_tanh")
NAMES = {
    "hidden": "n_embd", "layers": "n_layer", "heads": "n_head", "vocabulary": "vocab_size", "positions": "n_positions",
}  # fmt: skip


class GPT2:
    """A `Generator`: GPT2LMHeadModel with tied embeddings. Its tensors keep the checkpoint's names."""

    answer = Answer.text
    prefixes = ("transformer.",)

    # The checkpoint --------------------------------------------------------------------------------

    def dimensions(self, config: Config) -> Dimensions:
        activation = config.get("activation_function", "gelu_new")
        plain = (
            activation in (*TANH, QUAD)
            and config.get("scale_attn_weights", True)
            and not config.get("scale_attn_by_inverse_layer_idx", False)
            and config.get("tie_word_embeddings", True)
        )
        if not plain:
            raise UnsupportedArchitecture("only GPT-2 with tanh-GELU or Quad, scaled attention and tied embeddings")
        sizes: dict[str, Any] = {ours: config[theirs] for ours, theirs in NAMES.items()}
        return Dimensions(
            **sizes,
            embedding=sizes["hidden"],
            inner=config.get("n_inner") or 4 * sizes["hidden"],
            epsilon=float(config.get("layer_norm_epsilon", 1e-5)),
            activation="quad" if activation == QUAD else "tanh gelu",
        )

    def expected(self, d: Dimensions) -> Shapes:
        return shapes(d)

    def adopt(self, tensors: Tensors, d: Dimensions) -> Tensors:
        return {name: tensors[name] for name in shapes(d)}

    def shapes(self, d: Dimensions) -> Shapes:
        return shapes(d)

    # Calibration -----------------------------------------------------------------------------------

    def batches(self, tokenizer: Tokenizer, texts: list[Any], d: Dimensions) -> list[Texts]:
        """All texts as one, in windows of all positions, so that late ones count; and some as padded prompts."""
        limit = d.positions
        ids = tokenizer.encode_prompts(["\n".join(texts)], sys.maxsize, bucket=False).ids
        starts = range(0, ids.shape[1], limit)
        rows: list[Texts] = [Prompts(ids[:, i : i + limit], [min(limit, ids.shape[1] - i)]) for i in starts]
        for text in texts[:PADDED]:
            with contextlib.suppress(TextTooLong):  # its windows count
                rows.append(tokenizer.encode_prompts([text], limit))
        return rows

    def calibrate(self, t: Tensors, d: Dimensions, seen: Seen) -> tuple[Ranges, Tensors]:
        return self.ranges(t, d, seen), arranged(t, [seen.order(i) for i in range(d.layers)])

    def seen(self, t: Tensors, d: Dimensions, batches: Sequence[torch.Tensor]) -> Seen:
        """What a plaintext forward shows of itself over token ids."""
        seen = Seen()
        with torch.inference_mode():
            for ids in batches:
                seen(d.layers, "logits", logits(t, forward(t, d, ids, seen)))
        return seen

    def ranges(self, t: Tensors, d: Dimensions, seen: Seen) -> Ranges:
        """Of what was seen; neurons are in the order of their own ranges (`Seen.order`)."""
        count = d.layers
        return Ranges(
            embeddings=round_up(sum(largest(t[f"{part}.weight"]) for part in ("wte", "wpe"))),
            layers=tuple(seen.layer(i, "ln_1", "ln_2") for i in range(count)),
            final=seen.norm(count, "ln_f"),
            logits=seen.bound(count, "logits", LOGITS_MARGIN),
        )

    def compile(self, description: Description, plan: Plan, stage: int = 0, fits: Fits | None = None) -> Program:
        return compile_gpt2(description, plan, stage, fits or description.fits)

    def weights(self, description: Description, t: Tensors) -> Tensors:
        return gpt2_weights(description, t)

    # The client ------------------------------------------------------------------------------------

    def encode(
        self, description: Description, program: Program, batch: Texts, tables: Tensors | None = None
    ) -> Tensors:
        """Prompts padded on the right: one-hot rows of words and positions, the padding for later tokens' attention,
        and which token is a prompt's last. Raises UsageError for lengths that are no lengths."""
        (size, n), lengths = batch.shape, _lengths(batch)
        if len(lengths) != size or any(not 1 <= length <= n for length in lengths):
            raise UsageError(f"lengths {lengths} of {size} prompts in {n} columns")
        count = torch.tensor(lengths)
        padding = (torch.arange(n)[None, :] >= count[:, None]).long()
        scores = [scores_of(layer) for layer in description.ranges.layers]
        inputs = preset_of(description.preset).style.encode_masks(scores, padding)
        inputs["onehot"] = _onehot(description, program, batch.ids.reshape(-1), torch.arange(n).repeat(size))
        if "last" in program.inputs:
            inputs["last"] = torch.zeros((size, 1, n), dtype=carrier(program.inputs["last"].ring))
            inputs["last"][torch.arange(size), 0, count - 1] = 1
        return inputs

    def encode_next(self, description: Description, program: Program, ids: list[int], positions: list[int]) -> Tensors:
        return {"onehot": _onehot(description, program, torch.tensor(ids), torch.tensor(positions))}

    def logits(self, program: Program, outputs: Tensors) -> torch.Tensor:
        wire = program.outputs["logits"]
        return decode(outputs["logits"], wire.ring, wire.frac)

    def tokens(self, description: Description, outputs: Tensors) -> list[int]:
        tokens: list[int] = outputs["token"].tolist()
        if any(not 0 <= token < description.dimensions.vocabulary for token in tokens):
            raise RangeError("the servers' choice is no token: the logits left their calibrated range")
        return tokens

    def decode(self, description: Description, program: Program, outputs: Tensors, batch: Texts) -> list[Any]:
        """The next token's logits."""
        rows: list[Any] = self.logits(program, outputs).tolist()
        return rows

    def floats(self, t: Tensors, d: Dimensions, batch: Texts, observe: Observe) -> torch.Tensor:
        found = logits(t, forward(t, d, batch.ids, observe))
        observe(d.layers, "logits", found)
        return found

    def reference(self, t: Tensors, d: Dimensions, batch: Texts) -> list[Any]:
        with torch.inference_mode():
            found = self.floats(t, d, batch, silent)
        return [row[n - 1].tolist() for row, n in zip(found, _lengths(batch), strict=True)]

    def continue_texts(
        self, t: Tensors, d: Dimensions, texts: list[list[int]], count: int,
        choose: Callable[[torch.Tensor], list[int]], stop: int | None = None,
    ) -> list[list[int]]:  # fmt: skip
        return continue_texts(t, d, texts, count, choose, stop)


def _lengths(batch: Texts) -> list[int]:
    return batch.lengths if isinstance(batch, Prompts) else [int(n) for n in batch.mask.sum(1)]


def _onehot(description: Description, program: Program, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    words, longest = description.dimensions.vocabulary, description.dimensions.positions
    if int(ids.min()) < 0 or int(ids.max()) >= words or int(positions.max()) >= longest:
        raise UsageError(f"token ids below {words} and positions below {longest} expected")
    wire = program.inputs["onehot"]
    onehot = torch.zeros(wire.shape, dtype=carrier(wire.ring))
    rows = torch.arange(len(ids))
    onehot[rows, ids] = 1
    onehot[rows, words + positions] = 1
    return onehot
