"""Tokenised texts on a device, by padded width: batches of one width and one size, in an order that a seed gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ditto.errors import EmptyText
from ditto.models.tokenizer import Batch, Row, Text, Tokenizer, padded, padded_width
from ditto.train.seeds import generator

Tensor = torch.Tensor


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
        """Texts are cut to `longest` tokens. Raises EmptyText for no text, or one without a token."""
        if not texts:
            raise EmptyText("no text to train on")
        self.size, self._seed, self._device = size, seed, torch.device(device)
        self.count, found = len(texts), _by_width(tokenizer, texts, longest)
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
        random = generator(self._seed, epoch)
        found: list[tuple[int, Tensor]] = []
        for number, group in enumerate(self.groups):
            order = torch.randperm(len(group.place), generator=random)
            filled = order.repeat(-(-self.size // len(order)) + 1)[: -(-len(order) // self.size) * self.size]
            found += [(number, picked) for picked in torch.split(filled.to(self._device), self.size)]
        return [found[i] for i in torch.randperm(len(found), generator=random).tolist()]

    def sample(self, count: int) -> list[Batch]:
        """About `count` of the texts, the same ones for a seed, of all widths, each once."""
        chosen = torch.zeros(self.count, dtype=torch.bool)
        chosen[torch.randperm(self.count, generator=generator(self._seed, "sample"))[:count]] = True
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


def _by_width(tokenizer: Tokenizer, texts: Sequence[Text], longest: int) -> dict[int, list[tuple[int, Row]]]:
    found: dict[int, list[tuple[int, Row]]] = {}
    for place, row in enumerate(tokenizer.cut(texts, longest)):
        found.setdefault(padded_width(len(row[0]), longest), []).append((place, row))
    return found


def _merged(found: dict[int, list[tuple[int, Row]]], size: int) -> list[tuple[int, list[tuple[int, Row]]]]:
    """Narrowest first; those of which there are too few for a batch go with the next wider."""
    merged: list[tuple[int, list[tuple[int, Row]]]] = []
    waiting: list[tuple[int, Row]] = []
    for width in sorted(found):
        waiting = waiting + found[width]
        if len(waiting) >= size or width == max(found):
            merged.append((width, waiting))
            waiting = []
    return merged


def _group(rows: list[tuple[int, Row]], width: int) -> Group:
    batch = padded([row for _, row in rows], width)
    return Group(batch.ids, batch.types, batch.mask, torch.tensor([place for place, _ in rows]))
