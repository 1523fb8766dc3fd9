"""Plain text for language models: files, GPT-2's byte-level BPE, and the order in which training sees it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import torch

from ditto.errors import EmptyText, UsageError
from ditto.models.tokenizer_files import byte_pairs
from ditto.train.perplexity import windows
from ditto.train.seeds import generator

LINES = 4096


class BytePairs:
    """A tokenizer of vocab.json and merges.txt."""

    def __init__(self, directory: Path) -> None:
        """Raises BadCheckpoint naming the file that is missing or wrong."""
        self._backend = byte_pairs(directory)
        self.size = max(self._backend.get_vocab().values(), default=-1) + 1
        self.directory = directory

    def encode(self, text: str) -> torch.Tensor:
        """Token ids, int32 [N]. Lines are encoded on their own, line ends included, as they are."""
        lines = text.splitlines(keepends=True)
        found: list[torch.Tensor] = []
        for at in range(0, len(lines), LINES):
            rows = self._backend.encode_batch(lines[at : at + LINES])
            found.append(torch.tensor([i for row in rows for i in row.ids], dtype=torch.int32))
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int32)


def read_text(path: Path) -> str:
    """A text file, compressed where its name ends in .gz. Raises UsageError (absent, not UTF-8) or EmptyText."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"{path}: not a text file: {error}") from error
    if not text.strip():
        raise EmptyText(f"{path}: no text in this file")
    return text


class Order:
    """Chunks of a text in an order that follows from seed and epoch alone, so that a position is all there is to save.

    Each epoch is a permutation of all chunks; a batch may end one and begin the next, so none is left out.
    """

    def __init__(self, ids: torch.Tensor, context: int, seed: int) -> None:
        """Raises UsageError where the text has no chunk of `context` tokens and one more."""
        self._inputs, self._targets = windows(ids, context)
        self.chunks, self._seed = len(self._inputs), seed
        if not self.chunks:
            raise UsageError(f"the text to train on has {ids.numel()} tokens: less than a context of {context}")
        self._epoch, self._permutation = -1, torch.empty(0)

    def batch(self, position: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets [size, context] of the chunks from `position` on, counted over all epochs."""
        picked = torch.tensor([self._chunk(position + i) for i in range(size)])
        return self._inputs[picked].long(), self._targets[picked].long()

    def _chunk(self, position: int) -> int:
        epoch, at = divmod(position, self.chunks)
        if epoch != self._epoch:
            random = generator(self._seed, epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.chunks, generator=random)
        return int(self._permutation[at])
