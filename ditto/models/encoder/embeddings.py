"""Embeddings of an encoder's tokens: what the client sends of them, and how the program looks them up."""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F

from ditto.engine.parts import in_blocks, rows
from ditto.engine.program import Builder, Wire
from ditto.functions.fixed import FixedPoint
from ditto.models.description import Dimensions
from ditto.ops import Matmul, MatmulWeight
from ditto.ring import carrier

Tensor = torch.Tensor
MOST = 6  # log2 of the most words in a block


def block_of(d: Dimensions) -> int:
    """Words in a block of the table, a power of two: what opens the fewest numbers for a token, its block's one-hot
    row, the block itself and the word's place there. 1: no blocks, the row is the word's."""
    sizes = [1 << k for k in range(1, MOST + 1)]
    best = min(sizes, key=lambda size: ceil(d.vocabulary / size) + size * (d.embedding + 1))
    return best if ceil(d.vocabulary / best) + best * (d.embedding + 1) < d.vocabulary else 1


def tables(d: Dimensions, words: Tensor, types: Tensor | None) -> dict[str, Tensor]:
    """The program's matrices: words by block, the last one filled up with zeros, and token types; without blocks both
    in one."""
    size = block_of(d)
    if size == 1:
        return {"embeddings": words if types is None else torch.cat([words, types])}
    found = {"embeddings": F.pad(words, (0, 0, 0, -len(words) % size)).reshape(-1, size * words.shape[1])}
    return found if types is None else found | {"embeddings.type": types}


def places(d: Dimensions, ids: Tensor, types: Tensor, words: int) -> dict[str, Tensor]:
    """By name of the program's input, where each token's row has its ones, for a table of `words`: [count, ones]."""
    size = block_of(d)
    if size == 1:
        both = [ids, words + types] if d.token_types else [ids]
        return {"onehot": torch.stack(both, 1)}
    found = {"onehot": ids[:, None] // size, "within": ids[:, None] % size}
    return found | ({"types": types[:, None]} if d.token_types else {})


def one_hot(found: Tensor, wire: Wire) -> Tensor:
    """Those rows as the input `wire` has them."""
    onehot = torch.zeros((wire.shape[0], wire.shape[-1]), dtype=carrier(wire.ring))
    return onehot.scatter_(1, found, 1).reshape(wire.shape)


def looked_up(b: Builder, d: Dimensions, table: FixedPoint, count: int, bound: float, hold: int) -> Wire:
    """[count, H] of secret words and token types.

    Without blocks: one-hot rows of the word and of the token type side by side, against both tables stacked. One round.
    With blocks of n words, two:
    1. The one-hot row of the word's block against the table of blocks: [count, n, H], opened.
    2. The one-hot row of its place within, against that; and that of the token type.
    """
    size, ring = block_of(d), table.ring
    entries = d.vocabulary + d.token_types if size == 1 else ceil(d.vocabulary / size)
    onehot = b.input("onehot", ring, 0, (count, entries), 1.0)
    words = b.weight("embeddings", ring, table.frac, (entries, size * d.embedding), "matrix")

    def against(b: Builder, some: Wire, matrix: Wire, bound: float = bound) -> Wire:
        (opened,) = b.open(some)
        (count, inner), columns = opened.shape, matrix.shape[1]
        op = MatmulWeight(count, inner, columns, ring)
        return b.emit(op, [opened, matrix], [(ring, table.frac, (count, columns), bound)])[0]

    if size == 1:
        return in_blocks(b, hold, count, lambda b, i, j: [against(b, rows(b, onehot, 0, i, j), words)])[0]
    within = b.input("within", ring, 0, (count, 1, size), 1.0)
    kinds = None
    if d.token_types:
        kinds = b.input("types", ring, 0, (count, d.token_types), 1.0)
        matrix = b.weight("embeddings.type", ring, table.frac, (d.token_types, d.embedding), "matrix")

    def of_tokens(b: Builder, first: int, last: int) -> list[Wire]:
        block = against(b, rows(b, onehot, 0, first, last), words, 0.0)  # 1; a table's numbers leave no range
        block, place = b.open(b.view(block, shape=(last - first, size, d.embedding)), rows(b, within, 0, first, last))
        op = Matmul(place.shape, block.shape, ring)  # 2
        (x,) = b.emit(op, [place, block], [(ring, table.frac, op.shape, bound)])
        x = b.view(x, shape=(last - first, d.embedding))
        return [x if kinds is None else b.add(x, against(b, rows(b, kinds, 0, first, last), matrix), bound=bound)]

    return in_blocks(b, hold, count, of_tokens)[0]
