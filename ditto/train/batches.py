"""Labelled texts as tokens, in batches of like lengths, in an order that follows from seed and epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ditto.errors import EmptyText
from ditto.models.tokenizer import Batch, Text, Tokenizer, padded
from ditto.train.data import Example
from ditto.train.objective import Objective
from ditto.train.run import digest
from ditto.train.seeds import generator

Tensor = torch.Tensor
POOL = 16  # batches whose examples are sorted by length together


class Labelled:
    """Examples as tokens. `lengths`: of each one's longest row."""

    def __init__(self, tokenizer: Tokenizer, examples: Sequence[Example], objective: Objective, most: int) -> None:
        """Rows are cut to `most` tokens. Raises EmptyText for no example."""
        if not examples:
            raise EmptyText("no example")
        columns: list[list[Text]] = [[example.text for example in examples]]
        if objective.pooling == "mean":
            columns = [[example.text[part] for example in examples] for part in (0, 1)]
        self._rows = [tokenizer.cut(column, most) for column in columns]
        self.labels = torch.tensor([example.label for example in examples], dtype=torch.float32)
        self.lengths = [max(len(ids) for ids, _ in rows) for rows in zip(*self._rows, strict=True)]

    def batch(self, picked: Sequence[int], device: torch.device) -> tuple[Batch, Tensor]:
        """Rows as wide as the longest of them, and labels [examples] fp32. Of pairs whose texts are rows of their own,
        the first ones come before the second ones."""
        rows = [column[i] for column in self._rows for i in picked]
        width = max(self.lengths[i] for i in picked)
        return padded(rows, width).to(device), self.labels[list(picked)].to(device)

    def digest(self) -> str:
        """By what is in it and in which order."""
        numbers = [[n for row in rows for part in (row[0], row[1], [-1]) for n in part] for rows in self._rows]
        return digest([self.labels, *(torch.tensor(row, dtype=torch.int32) for row in numbers)])


class LengthOrder:
    """Which examples are in the batch of a step. An epoch takes all of them once:

    1. permute them, by seed and epoch;
    2. sort each `POOL` batches of them by length;
    3. cut them into batches, of which the last may be smaller;
    4. permute the batches.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int) -> None:
        self._lengths, self._size, self._seed = lengths, size, seed
        self.batches = -(-len(lengths) // size)  # in an epoch
        self._epoch, self._cut = -1, list[list[int]]()

    def at(self, step: int) -> list[int]:
        epoch, batch = divmod(step, self.batches)
        if epoch != self._epoch:
            self._epoch, self._cut = epoch, self._made(epoch)
        return self._cut[batch]

    def _made(self, epoch: int) -> list[list[int]]:
        random = generator(self._seed, epoch)
        order = torch.randperm(len(self._lengths), generator=random).tolist()  # 1
        pool = POOL * self._size
        for at in range(0, len(order), pool):  # 2
            order[at : at + pool] = sorted(order[at : at + pool], key=self._lengths.__getitem__)
        cut = [order[at : at + self._size] for at in range(0, len(order), self._size)]  # 3
        return [cut[i] for i in torch.randperm(len(cut), generator=random).tolist()]  # 4


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """All examples, in batches of like lengths, shortest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[at : at + size] for at in range(0, len(order), size)]
