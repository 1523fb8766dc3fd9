"""Tokenised texts on a device, by padded width: batches of one width and one size, in an order that a seed gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ditto.errors import UsageError
from ditto.models.tokenizer import BUCKETS, Batch, Text, Tokenizer, padded_width

Tensor = torch.Tensor
ENCODED = 1024  # texts that are encoded at once


class Group(NamedTuple):
    """Texts of one padded width: ids, types and mask [n, width], and the places that they have among all texts [n]."""

    ids: Tensor
    types: Tensor
    mask: Tensor
    place: Tensor

    def on(self, device: torch.device) -> Group:
        return Group(*(part.to(device) for part in self))

    def rows(self, picked: Tensor) -> Batch:
        return Batch(self.ids[picked], self.types[picked], self.mask[picked])


class Widths:
    """Texts padded as `Tokenizer.encode` pads them one by one, in batches of `size` texts of the same width.

    So a width is that of a request, and padding is no more of a batch than of its texts. Each epoch takes all texts of
    each width in an order of its own; the last batch of a width is filled up from the beginning of that order, so that
    all have one size. A width with fewer than `size` texts is padded to the next one, if there is any.
    """

    def __init__(
        self, tokenizer: Tokenizer, texts: Sequence[Text], longest: int, size: int, seed: int, device: str = "cpu"
    ) -> None:
        """Texts of more than `longest` tokens are left out and counted in `dropped`. Raises UsageError if all are."""
        self.size, self._seed, self._device = size, seed, torch.device(device)
        found = _by_width(tokenizer, texts, longest)
        self.count = sum(len(rows) for rows in found.values())
        self.dropped = len(texts) - self.count
        if not self.count:
            raise UsageError(f"no text of at most {longest} tokens")
        self.groups = [_group(rows, width).on(self._device) for width, rows in _merged(found, size)]
        self.steps = sum(-(-len(group.place) // size) for group in self.groups)  # of an epoch
        self._epoch, self._order = -1, list[tuple[int, Tensor]]()

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted over all epochs."""
        epoch, at = divmod(step, self.steps)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._epoch_order(epoch)
        group, picked = self._order[at]
        return self.groups[group].rows(picked)

    def _epoch_order(self, epoch: int) -> list[tuple[int, Tensor]]:
        mixed = hashlib.sha256(f"{self._seed}/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))
        found: list[tuple[int, Tensor]] = []
        for number, group in enumerate(self.groups):
            order = torch.randperm(len(group.place), generator=generator)
            filled = order.repeat(-(-self.size // len(order)) + 1)[: -(-len(order) // self.size) * self.size]
            found += [(number, picked) for picked in torch.split(filled.to(self._device), self.size)]
        return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]

    def sample(self, count: int) -> list[Batch]:
        """About `count` of the texts, the same ones for a seed, of all widths, each once."""
        generator = torch.Generator().manual_seed(self._seed)
        chosen = torch.zeros(self._most + 1, dtype=torch.bool)
        everything = torch.cat([group.place.cpu() for group in self.groups])
        chosen[everything[torch.randperm(len(everything), generator=generator)[:count]]] = True
        found: list[Batch] = []
        for group in self.groups:
            picked = chosen[group.place.cpu()].nonzero().flatten().to(self._device)
            found += [group.rows(part) for part in torch.split(picked, self.size) if len(part)]
        return found

    def everything(self) -> Iterator[tuple[Batch, Tensor]]:
        """All texts once, in batches of the same size as others: with the place of each row among the texts, -1 for
        rows that only fill a batch up."""
        for group in self.groups:
            count = len(group.place)
            for start in range(0, count, self.size):
                picked = torch.arange(start, start + self.size, device=self._device)
                index = torch.where(picked < count, group.place[picked % count], -1)
                yield group.rows(picked % count), index

    @property
    def _most(self) -> int:
        return max(int(group.place.max()) for group in self.groups)


Row = tuple[int, Tensor, Tensor]  # which text, its token ids and types


def _by_width(tokenizer: Tokenizer, texts: Sequence[Text], longest: int) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for start in range(0, len(texts), ENCODED):
        encoded = tokenizer.encode(texts[start : start + ENCODED], BUCKETS[-1])
        for i, n in enumerate(encoded.mask.sum(1).tolist()):
            if n <= longest:
                row = start + i, encoded.ids[i, :n], encoded.types[i, :n]
                found.setdefault(padded_width(n, longest), []).append(row)
    return found


def _merged(found: dict[int, list[Row]], size: int) -> list[tuple[int, list[Row]]]:
    """Narrowest first; those of which there are too few for a batch go with the next wider."""
    merged: list[tuple[int, list[Row]]] = []
    waiting: list[Row] = []
    for width in sorted(found):
        waiting = waiting + found[width]
        if len(waiting) >= size or width == max(found):
            merged.append((width, waiting))
            waiting = []
    return merged


def _group(rows: list[Row], width: int) -> Group:
    ids, types, mask = (torch.zeros((len(rows), width), dtype=torch.int64) for _ in range(3))
    for i, (_, row, kinds) in enumerate(rows):
        n = len(row)
        ids[i], types[i] = row[-1], kinds[-1]  # as `Tokenizer.encode` fills a row up
        ids[i, :n], types[i, :n], mask[i, :n] = row, kinds, 1
    return Group(ids, types, mask, torch.tensor([row[0] for row in rows]))
