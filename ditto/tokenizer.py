"""Texts to token ids, padded to a public bucket (all that the servers learn of a length)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

from ditto.errors import BadCheckpoint, EmptyText, TextTooLong

BUCKETS = (16, 32, 64, 128, 256, 512)


@dataclass
class Batch:
    """Token ids, token types and attention mask (1 for tokens, 0 for padding): each [B, N] int64."""

    ids: torch.Tensor
    types: torch.Tensor
    mask: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.ids.shape[0], self.ids.shape[1]


class Tokenizer:
    """A Hugging Face tokenizer, loaded from tokenizer.json or vocab.txt."""

    def __init__(self, backend: Backend) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Raises BadCheckpoint when neither file is there."""
        if (directory / "tokenizer.json").exists():
            return cls(Backend.from_file(str(directory / "tokenizer.json")))
        if (directory / "vocab.txt").exists():
            words = BertWordPieceTokenizer(str(directory / "vocab.txt"))
            return cls(words._tokenizer)
        raise BadCheckpoint(f"{directory}: neither tokenizer.json nor vocab.txt")

    def encode(self, texts: list[str], max_length: int) -> Batch:
        """Encode and pad to the smallest bucket that holds the longest. Raises EmptyText, TextTooLong."""
        if not texts or any(not text.strip() for text in texts):
            raise EmptyText("empty text")
        rows = self._backend.encode_batch(texts)
        longest = max(len(row.ids) for row in rows)
        bucket = min((n for n in BUCKETS if n >= longest), default=longest)
        if longest > max_length:
            raise TextTooLong(f"text of {longest} tokens: this model takes at most {max_length}")
        width = min(bucket, max_length)
        ids, types, mask = (torch.zeros((len(rows), width), dtype=torch.int64) for _ in range(3))
        for i, row in enumerate(rows):
            n = len(row.ids)
            ids[i, :n] = torch.tensor(row.ids)
            # masked positions are computed all the same; a copy of the last token ([SEP]) keeps their attention
            # scores in the range of real ones, where [PAD] drives them to three times it
            ids[i, n:] = row.ids[-1]
            types[i, :n] = torch.tensor(row.type_ids)
            mask[i, :n] = 1
        return Batch(ids, types, mask)
