"""The protocol of an architecture, for an encoder: names and sizes are the family's, the rest is here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from ditto.engine.plan import Plan
from ditto.engine.program import Program
from ditto.errors import UsageError
from ditto.functions.fit import Fits
from ditto.models.architecture import Answer, Config, Shapes, Tensors, Texts
from ditto.models.description import Description, Dimensions, Ranges, round_up
from ditto.models.encoder.config import problem_type
from ditto.models.encoder.embeddings import one_hot, places
from ditto.models.encoder.floats import EMBEDDINGS, EXACT, Functions, forward, token_types
from ditto.models.encoder.heads import SPAN, EveryToken, Head, Hidden
from ditto.models.encoder.names import Names
from ditto.models.encoder.program import compile_encoder
from ditto.models.encoder.weights import arranged, encoder_weights
from ditto.models.ranges import Observe, Seen, centre, largest, scores_of, silent
from ditto.models.tokenizer import Batch, Tokenizer
from ditto.presets import preset_of
from ditto.ring.fixedpoint import decode, encode


@dataclass(frozen=True)
class Encoder:
    """One class of a family: how it names things, how it reads its configuration, what stands on top.

    `skipped`: rows of the table of positions before the first token's (RoBERTa counts from 2). `inner`: modules of the
    head that are the encoder's in a checkpoint, below its prefix (BERT's pooler).
    """

    names: Names
    sizes: Callable[[Config], Dimensions]
    prefix: str
    head: Head = Hidden()  # noqa: RUF009 (frozen, without state)
    skipped: int = 0
    inner: tuple[str, ...] = ()

    @property
    def answer(self) -> Answer:
        return self.head.answer

    @property
    def prefixes(self) -> tuple[str, ...]:
        return (self.prefix,)

    def dimensions(self, config: Config) -> Dimensions:
        found = self.sizes(config)
        tokens = {"positions": found.positions - self.skipped, "labels": self.head.labels(config)}
        if self.answer is Answer.labels:
            tokens["problem_type"] = problem_type(config)
        return Dimensions(**(found.model_dump() | tokens))

    # The checkpoint --------------------------------------------------------------------------------

    def expected(self, d: Dimensions) -> Shapes:
        need = {theirs: shape for _, theirs, shape in self.names.rows(d, self.skipped)}
        ours = self.head.shapes(d)
        for theirs, module in self.head.names().items():
            need |= {f"{theirs}.{part}": ours[f"{module}.{part}"] for part in ("weight", "bias")}
        return need

    def adopt(self, tensors: Tensors, d: Dimensions) -> Tensors:
        found = {ours: tensors[theirs] for ours, theirs, _ in self.names.rows(d, self.skipped)}
        found["embeddings.position.weight"] = found["embeddings.position.weight"][self.skipped :]
        for theirs, module in self.head.names().items():
            found |= {f"{module}.{part}": tensors[f"{theirs}.{part}"] for part in ("weight", "bias")}
        return found

    def release(self, tensors: Tensors, d: Dimensions) -> Tensors:
        """What `adopt` took, by the names that transformers give: those of the encoder with the prefix if there is a
        head. Rows of positions before the first token's are zeros, as transformers begin with them."""
        modules = self.head.names()
        prefix = self.prefix if modules else ""
        found = {f"{prefix}{theirs}": tensors[ours] for ours, theirs, _ in self.names.rows(d, self.skipped)}
        table = f"{prefix}{self.names.position}.weight"
        found[table] = F.pad(found[table], (0, 0, self.skipped, 0))
        for theirs, module in modules.items():
            name = f"{prefix}{theirs}" if theirs in self.inner else theirs
            found |= {f"{name}.{part}": tensors[f"{module}.{part}"] for part in ("weight", "bias")}
        return found

    def shapes(self, d: Dimensions) -> Shapes:
        return {ours: shape for ours, _, shape in self.names.rows(d)} | self.head.shapes(d)

    # Calibration -----------------------------------------------------------------------------------

    def batches(self, tokenizer: Tokenizer, texts: list[Any], d: Dimensions) -> list[Texts]:
        return [tokenizer.encode([text], d.positions) for text in texts]

    def calibrate(self, t: Tensors, d: Dimensions, seen: Seen) -> tuple[Ranges, Tensors]:
        return self.ranges(t, d, seen), arranged(t, [seen.order(i) for i in range(d.layers)])

    def seen(self, t: Tensors, d: Dimensions, batches: Sequence[Texts], functions: Functions = EXACT) -> Seen:
        """What a plaintext forward with these functions shows of itself over token batches."""
        seen = Seen()
        with torch.inference_mode():
            for batch in batches:
                assert isinstance(batch, Batch)
                self.head.floats(t, forward(t, d, batch, seen, functions=functions), seen)
        return seen

    def ranges(self, t: Tensors, d: Dimensions, seen: Seen) -> Ranges:
        """Of what was seen; neurons are in the order of their own ranges (`Seen.order`)."""
        tables = [t[f"embeddings.{part}.weight"] for part in ("word", "position")]
        if d.token_types:
            tables.append(t["embeddings.type.weight"])
        return Ranges(
            embeddings=round_up(sum(largest(table) for table in tables)),
            embedding_norm=seen.norm(EMBEDDINGS, "norm"),
            embedding_projection=seen.bound(EMBEDDINGS, "projection") if d.embedding != d.hidden else None,
            layers=tuple(seen.layer(i, "norm1", "norm2") for i in range(d.layers)),
            **self.head.ranges(seen),
        )

    def compile(self, description: Description, plan: Plan, stage: int = 0, fits: Fits | None = None) -> Program:
        if stage:
            raise UsageError(f"{description.architecture} generates no text")
        return compile_encoder(self.head, description, plan, fits or description.fits)

    def weights(self, description: Description, t: Tensors) -> Tensors:
        return encoder_weights(description, t, self.head.first)

    # The client ------------------------------------------------------------------------------------

    def encode(
        self, description: Description, program: Program, batch: Batch, tables: Tensors | None = None
    ) -> Tensors:
        """One-hot rows (or looked-up embeddings) and the padding mask. Raises UsageError without the public tables."""
        style, d = preset_of(description.preset).style, description.dimensions
        inputs = style.encode_masks([scores_of(layer) for layer in description.ranges.layers], 1 - batch.mask)
        ids, types = self.places(description, batch)
        if int(ids.min()) < 0 or int(ids.max()) >= d.vocabulary:
            raise UsageError(f"token ids below {d.vocabulary} expected: is this the model's tokenizer?")
        if description.embeddings == "public":
            if not tables:
                raise UsageError("this model's embeddings are public: the client needs its tables")
            x = tables["embeddings.word.weight"][ids]
            if d.token_types:
                x = x + tables["embeddings.type.weight"][types]
            wire = program.inputs["embeddings"]
            inputs["embeddings"] = encode(centre(x) if style.centred else x, wire.ring, wire.frac)
            return inputs
        for name, found in places(d, ids, types, d.vocabulary).items():
            inputs[name] = one_hot(found, program.inputs[name])
        return inputs

    def places(self, description: Description, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows of the tables the program reads: words and types [B N], padding's as the preset has them."""
        found = batch.ids, token_types(batch, description.dimensions)
        if preset_of(description.preset).style.repeats:
            found = tuple(torch.where(batch.mask.bool(), x, x[:, :1]) for x in found)  # type: ignore[assignment]
        return found[0].reshape(-1), found[1].reshape(-1)

    def decode(self, description: Description, program: Program, outputs: Tensors, batch: Batch) -> list[Any]:
        name, wire = next(iter(program.outputs.items()))
        return self.head.answers(decode(outputs[name], wire.ring, wire.frac), batch, description.dimensions)

    def floats(self, t: Tensors, d: Dimensions, batch: Batch, observe: Observe) -> torch.Tensor:
        return self.head.floats(t, forward(t, d, batch, observe), observe)

    def reference(self, t: Tensors, d: Dimensions, batch: Batch) -> list[Any]:
        with torch.inference_mode():
            return self.head.answers(self.floats(t, d, batch, silent), batch, d)


def family(name: str, encoder: Encoder, classifier: Head) -> dict[str, Encoder]:
    """The classes that all families have, by name. A checkpoint of a masked language model is taken for its encoder."""
    return {
        f"{name}Model": encoder,
        f"{name}ForMaskedLM": encoder,
        f"{name}ForSequenceClassification": replace(encoder, head=classifier),
        f"{name}ForTokenClassification": replace(encoder, head=EveryToken("classifier")),
        f"{name}ForQuestionAnswering": replace(encoder, head=EveryToken("qa_outputs", SPAN)),
    }
