"""Texts to token ids, padded to a public bucket (all that the servers learn of a length), and back."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.implementations.byte_level_bpe import ByteLevelBPETokenizer

from ditto.errors import BadCheckpoint, EmptyText, TextTooLong, UsageError

BUCKETS = (16, 32, 64, 128, 256, 512)
END_OF_TEXT = "<|endoftext|>"
BYTE_PAIRS = ("vocab.json", "merges.txt")


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (Radford et al. 2019)."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    other = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(other)}


_BYTES = _byte_alphabet()


def byte_pairs(directory: Path) -> ByteLevelBPETokenizer:
    """GPT-2's byte-level BPE, without special tokens. Raises BadCheckpoint naming the file that is missing or wrong."""
    vocabulary, merges = (directory / name for name in BYTE_PAIRS)
    for path in (vocabulary, merges):
        if not path.is_file():
            raise BadCheckpoint(f"{path}: no such file; GPT-2's tokenizer is {' and '.join(BYTE_PAIRS)}")
    try:
        return ByteLevelBPETokenizer(str(vocabulary), str(merges), add_prefix_space=False)
    except Exception as error:  # the Rust library raises nothing narrower
        raise BadCheckpoint(f"{directory}: {' and '.join(BYTE_PAIRS)} are not a byte-level BPE: {error}") from error


@dataclass
class Batch:
    """Token ids, token types and attention mask (1 for tokens, 0 for padding): each [B, N] int64."""

    ids: torch.Tensor
    types: torch.Tensor
    mask: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.ids.shape[0], self.ids.shape[1]


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

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Raises BadCheckpoint when none of these files is there, or when those of a byte-level BPE cannot be read."""
        if (directory / "tokenizer.json").exists():
            return cls(Backend.from_file(str(directory / "tokenizer.json")))
        if (directory / "vocab.txt").exists():
            words = BertWordPieceTokenizer(str(directory / "vocab.txt"))
            return cls(words._tokenizer)
        if all((directory / name).exists() for name in BYTE_PAIRS):
            pieces = byte_pairs(directory)
            if pieces.token_to_id(END_OF_TEXT) is not None:
                pieces.add_special_tokens([END_OF_TEXT])  # one token also where it stands in a text
            return cls(pieces._tokenizer)
        raise BadCheckpoint(f"{directory}: neither tokenizer.json, vocab.txt, nor vocab.json with merges.txt")

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
        rows = [row.ids for row in self._backend.encode_batch(texts)]
        if not rows or not all(rows):
            raise EmptyText("empty prompt")
        longest = max(map(len, rows))
        if longest > max_length:
            raise TextTooLong(f"prompt of {longest} tokens: at most {max_length} fit")
        width = min(n for n in (*BUCKETS, max_length) if longest <= n <= max_length) if bucket else longest
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
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Take one token id; return the characters that it completes (none, often, for emoji)."""
        piece = self._backend.id_to_token(token) or ""
        # an added token is text as it stands, unless the alphabet happens to hold all of it: the same characters
        known = all(c in _BYTES for c in piece)
        return self._decoder.decode(bytes(_BYTES[c] for c in piece) if known else piece.encode())

    def finish(self) -> str:
        """What is left of an incomplete character (U+FFFD), or nothing."""
        return self._decoder.decode(b"", final=True)
