"""Texts to token ids, padded to a public bucket (all that the servers learn of a length), and back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from ditto.errors import BadCheckpoint, EmptyText, TextTooLong, UsageError
from ditto.models.tokenizer_files import END_OF_TEXT, of_the_library, read_backend

Text = str | tuple[str, str]  # a text, or a pair of texts: two segments of one sequence
Row = tuple[list[int], list[int]]  # token ids, token types
AT_ONCE = 4096  # texts that are cut at a time: what the library says of each takes far more than its tokens
BUCKETS = tuple(2**k for k in range(4, 16))  # 16 to 32,768 tokens


def padded(rows: Sequence[Row], width: int) -> Batch:
    """Rows of `width` tokens at most. Raises EmptyText for one without a token."""
    ids, types, mask = (torch.zeros((len(rows), width), dtype=torch.int64) for _ in range(3))
    for i, (row, kinds) in enumerate(rows):
        n = len(row)
        if not n:  # a tokenizer without special tokens, a text of characters that it drops
            raise EmptyText("text without a token")
        # masked positions are computed all the same; a copy of the last token ([SEP]), its type included, keeps their
        # embeddings and attention scores in the range of real ones, where [PAD] drives them to three times it
        ids[i], types[i] = row[-1], kinds[-1]
        ids[i, :n], types[i, :n], mask[i, :n] = torch.tensor(row), torch.tensor(kinds), 1
    return Batch(ids, types, mask)


def padded_width(longest: int, limit: int) -> int:
    """The smallest bucket that holds `longest` tokens, `limit` at most: a length is hidden at any length."""
    return min((n for n in BUCKETS if longest <= n <= limit), default=limit)


@dataclass
class Batch:
    """Token ids, token types and attention mask (1 for tokens, 0 for padding): each [B, N] int64."""

    ids: torch.Tensor
    types: torch.Tensor
    mask: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.ids.shape[0], self.ids.shape[1]

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.types.to(device), self.mask.to(device))


@dataclass(frozen=True)
class Piece:
    """A token's place in what was asked: which segment (None: a special token), which of its words, which characters
    of it."""

    segment: int | None
    word: int | None
    start: int
    end: int


@dataclass
class Prompts:
    """Token ids [B, N] int64, padded on the right, and how many of each row are the prompt's."""

    ids: torch.Tensor
    lengths: list[int]

    @property
    def shape(self) -> tuple[int, int]:
        return self.ids.shape[0], self.ids.shape[1]


class Tokenizer:
    """A Hugging Face tokenizer: tokenizer.json, vocab.txt (WordPiece), or vocab.json with merges.txt (byte-level)."""

    def __init__(self, backend: Backend) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._lock = threading.RLock()  # cutting changes the library's settings while it lasts

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Raises BadCheckpoint when none of these files is there, or naming the one that cannot be read."""
        return cls(read_backend(directory))

    @property
    def size(self) -> int:
        """One more than the largest token id, added tokens included: the rows that an embedding table needs."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, texts: Sequence[Text], max_length: int) -> Batch:
        """Encode and pad to the smallest bucket that holds the longest, `max_length` at most.

        A pair becomes one sequence of two segments, with the token types that the tokenizer gives them (0 and 1 for
        BERT, 0 for Roberta and MPNet). Raises EmptyText for a text or a segment without a character, TextTooLong.
        """
        segments = [text if isinstance(text, tuple) else (text,) for text in texts]
        if not segments or not all(part.strip() for parts in segments for part in parts):
            raise EmptyText("empty text")
        rows = self._rows(list(texts))
        longest = max(len(row.ids) for row in rows)
        if longest > max_length:
            raise TextTooLong(f"text of {longest} tokens: this model takes at most {max_length}")
        return padded([(row.ids, row.type_ids) for row in rows], padded_width(longest, max_length))

    def cut(self, texts: Sequence[Text], most: int) -> list[Row]:
        """Each text's (or pair's) tokens and their types, `most` at most: what is too long loses its end, of a pair
        the longer segment first. Raises UsageError where `most` has no room for a token of each segment."""
        room = most - self._backend.num_special_tokens_to_add(any(isinstance(text, tuple) for text in texts))
        if room < 2:
            raise UsageError(f"{most} tokens: too few for a pair and this tokenizer's special tokens")
        with self._cutting(most):
            return self.whole(texts)

    @contextlib.contextmanager
    def _cutting(self, most: int) -> Iterator[None]:
        """What this thread encodes meanwhile is cut; others wait."""
        with self._lock:
            self._backend.enable_truncation(most, strategy="longest_first")
            try:
                yield
            finally:
                self._backend.no_truncation()

    def whole(self, texts: Sequence[Text]) -> list[Row]:
        """Each text's (or pair's) tokens and their types, however many."""
        parts = (list(texts[at : at + AT_ONCE]) for at in range(0, len(texts), AT_ONCE))
        return [(row.ids, row.type_ids) for part in parts for row in self._rows(part)]

    def pieces(self, text: Text, most: int) -> list[Piece]:
        """Where the tokens come from, of a text or pair that is cut to `most` tokens as `cut` does."""
        with self._cutting(most):
            (found,) = self._rows([text])
        places = zip(found.sequence_ids, found.word_ids, found.offsets, strict=True)
        return [Piece(segment, word, *span) for segment, word, span in places]

    def _rows(self, texts: list[Any]) -> list[Any]:
        """Raises BadCheckpoint for a text that this tokenizer has no tokens for, not even one for the unknown."""
        with self._lock, of_the_library("the tokenizer cannot take this text"):
            rows: list[Any] = self._backend.encode_batch(texts)
        return rows

    def check(self, words: int) -> None:
        """Raises BadCheckpoint for ids beyond so many embeddings."""
        if self.size > words:
            raise BadCheckpoint(
                f"a tokenizer of {self.size:,} ids, a model of {words:,} embeddings: another model's tokenizer? Or "
                "were words added? Then call model.resize_token_embeddings(len(tokenizer)) in transformers, and save it"
            )

    @property
    def special(self) -> set[int]:
        """The ids of special tokens."""
        return {i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}

    @property
    def end_of_text(self) -> int | None:
        """The id of '<|endoftext|>', where the vocabulary has it."""
        token: int | None = self._backend.token_to_id(END_OF_TEXT)
        return token

    def encode_prompts(self, texts: list[str], max_length: int, bucket: bool = True) -> Prompts:
        """Encode for a causal model: padded on the right with the end of text, or the last token where there is none.

        The width is the smallest bucket that holds the longest prompt, `max_length` at most; without `bucket` it is
        the longest prompt's, which the servers then learn. White space alone is a prompt. Raises EmptyText for a
        prompt without a token, TextTooLong.
        """
        rows = [row.ids for row in self._rows(texts)]
        if not rows or not all(rows):
            raise EmptyText("empty prompt")
        longest = max(map(len, rows))
        if longest > max_length:
            raise TextTooLong(f"prompt of {longest} tokens: at most {max_length} fit")
        width = padded_width(longest, max_length) if bucket else longest
        end = self.end_of_text
        padded = [row + [row[-1] if end is None else end] * (width - len(row)) for row in rows]
        return Prompts(torch.tensor(padded, dtype=torch.int64), [len(row) for row in rows])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens, special ones included; bytes that are no UTF-8 come as U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text

    def stream(self) -> TextStream:
        """Decode token by token. Raises UsageError for a vocabulary that is not byte-level."""
        if not isinstance(self._backend.decoder, decoders.ByteLevel):
            raise UsageError("only byte-level tokenizers decode token by token")
        return TextStream(self._backend)


class TextStream:
    """Text as its tokens arrive: a token may end within a character, which is held back until it is complete.

    All that `push` and `finish` return is, joined, what `Tokenizer.decode` returns for all the tokens.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._decoder = decoders.DecodeStream(skip_special_tokens=False)
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """Take one token id; return the characters that it completes (none, often, for emoji)."""
        text = self._decoder.step(self._backend, token)
        if text is None:
            self._held.append(token)
            return ""
        self._held.clear()
        return text

    def finish(self) -> str:
        """The end: what is left of an incomplete character (U+FFFD), or nothing."""
        # DecodeStream has no end and keeps what it holds back to itself; this begins where a character
        # does, so it decodes alone
        text: str = self._backend.decode(self._held, skip_special_tokens=False)
        return text
