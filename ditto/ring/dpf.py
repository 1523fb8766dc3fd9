"""Distributed point functions: two keys whose values differ at one secret point, and at its prefixes, alone.

A key is a binary tree of seeds (Boyle, Gilboa, Ishai, "Function secret sharing: improvements and extensions", CCS
2016, figure 1) with a value for each node of some depths (incremental: Boneh, Boyle, Corrigan-Gibbs, Gilboa, Ishai,
"Lightweight techniques for private heavy hitters", 2021). A node is a block of 128 bits: bit 0 is its control bit t,
bit 1 is 0, the others are its seed. Its children are AES(k0, block) xor block and the same under k1, without bit 1; its
value comes from k2. The keys' secrecy rests on that as a pseudo-random generator of a random block under public k
(Matyas, Meyer, Oseas 1985; Guo, Katz, Wang, Yu, "Efficient and secure multiparty computation from fixed-key block
ciphers", 2020). `salt` sets k0, k1, k2; both parties know it.

1. Both parties begin at roots of their own, with t = 0 and t = 1.
2. A correction of a depth is xored onto the children of nodes with t = 1. It is such that at a node beside the path to
   alpha both parties have the same block from there on, and on the path different seeds and different t.
3. The value of a node: v of its seed, and where t = 1 the depth's value correction more; the second party's is negated.
   Beside the path the parties' values cancel; on it they add up to beta.

So one party's key is random but for the corrections: blocks and values of its own, xored with or added to what the
other party has from a seed that this one does not know.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ditto.ring.prg import ROOM, derive

Blocks = npt.NDArray[np.uint64]  # [..., 2]
Values = npt.NDArray[np.int64]  # [..., 2], on Z_2^64
_ONE, _T, _OTHER = np.uint64(1), np.uint64(1), ~np.uint64(3)  # of a block's first word: bit 0, and all but bits 0 and 1
_SEED = ~np.uint64(2)


class Generator:
    """The pseudo-random generator of a tree: children and values of blocks. `salt` is any 16 bytes."""

    def __init__(self, salt: bytes) -> None:
        keys = [derive(salt, "point function", number) for number in range(3)]
        self._ciphers = [Cipher(algorithms.AES(key), modes.ECB()).encryptor() for key in keys]

    def _hash(self, which: int, blocks: Blocks, out: Blocks | None = None) -> Blocks:
        room = np.empty(blocks.nbytes + ROOM, np.uint8)
        self._ciphers[which].update_into(blocks.view(np.uint8).reshape(-1).data, room.data)
        found = room[: blocks.nbytes].view(np.uint64).reshape(blocks.shape)
        return np.bitwise_xor(found, blocks, out=found if out is None else out)

    def children(self, blocks: Blocks) -> Blocks:
        """[n, T, 2] -> [n, 2, T, 2], left and right, before their correction."""
        blocks = np.ascontiguousarray(blocks)
        found = np.empty((len(blocks), 2, *blocks.shape[1:]), np.uint64)
        for side in (0, 1):
            self._hash(side, blocks, out=found[:, side])
        found[..., 0] &= _SEED
        return found

    def values(self, blocks: Blocks) -> Values:
        """Two numbers of each, before their correction."""
        found: Values = self._hash(2, np.ascontiguousarray(blocks)).view(np.int64)
        return found


def control(blocks: Blocks) -> Blocks:
    """Control bits, as 0 or all ones."""
    bits: Blocks = np.negative(blocks[..., 0] & _T)
    return bits


def rooted(roots: Blocks, party: int) -> Blocks:
    """Random blocks as roots of a party's trees."""
    found = roots.copy()
    found[..., 0] = (found[..., 0] & _OTHER) | np.uint64(party)
    return found


def correct(children: Blocks, parents: Blocks, correction: Blocks) -> None:
    """Correct children [n, 2, T, 2] of these parents by their depth's [T, 2], of which bit 0 is for the control bit of
    left ones, bit 1 for that of right ones. Word by word, since loops over two words are slow."""
    t, first = control(parents), correction[:, 0]
    children[:, 0, :, 0] ^= first & _SEED & t
    children[:, 1, :, 0] ^= (first & _OTHER | first >> _ONE & _T) & t
    children[..., 1] ^= (correction[:, 1] & t)[:, None]


def generate(
    generator: Generator, roots: Blocks, alpha: npt.NDArray[np.int64], depth: int, betas: Values
) -> tuple[Blocks, Values]:
    """Corrections of trees for alpha [T] in [0, 2^depth): of blocks [depth, T, 2], and of values [d, T, 2] for the d
    deepest depths, of which betas [d, T, 2] has the values. roots: of both parties, [2, T, 2].

    Raises ValueError for shapes that do not fit, or a point outside.
    """
    count, valued = len(alpha), len(betas)
    if roots.shape != (2, count, 2) or betas.shape != (valued, count, 2) or not valued <= depth < 63:
        raise ValueError(f"roots {roots.shape} and values {betas.shape} for {count} points of {depth} bits")
    if count and not 0 <= alpha.min() <= alpha.max() < 1 << depth:
        raise ValueError(f"a point outside of [0, 2^{depth})")
    nodes = np.stack([rooted(roots[party], party) for party in (0, 1)])
    blocks, values = np.empty((depth, count, 2), np.uint64), np.empty((valued, count, 2), np.int64)
    each = np.arange(count)
    for level in range(depth):
        side = alpha >> (depth - 1 - level) & 1
        children = generator.children(nodes)  # [party, side, T, 2]
        both = children[0] ^ children[1]
        right = side.astype(np.uint64)
        blocks[level] = both[1 - side, each]  # beside the path: the same seed
        blocks[level, :, 0] &= _OTHER
        blocks[level, :, 0] |= (both[0, :, 0] & _T) ^ right ^ _ONE  # t differs on the path
        blocks[level, :, 0] |= ((both[1, :, 0] & _T) ^ right) << _ONE
        correct(children, nodes, blocks[level])
        nodes = children[:, side, each]
        at = level - (depth - valued)
        if at >= 0:  # the party with t = 1 has the correction: the first one adds it, the second one subtracts it
            first, second = generator.values(nodes)
            sign = 1 - 2 * (nodes[1, :, :1] & _T).astype(np.int64)
            values[at] = sign * (betas[at] - first + second)
    return blocks, values


def shares(generator: Generator, nodes: Blocks, corrections: Values, party: int) -> Values:
    """A party's shares of the values at nodes [..., 2], whose depths have these corrections."""
    found = generator.values(nodes)
    found += corrections & control(nodes)[..., None].view(np.int64)
    return np.negative(found) if party else found
