"""Keys of point functions, and inverses by lines at the nodes of their trees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from uniform import chi_square, chi_square_limit

from ditto.ops import InverseTree, Masked
from ditto.ops.lines import inverse
from ditto.planning.lossy import lossy_step
from ditto.ring.dpf import Blocks, Generator, Values, control, correct, generate, rooted, shares

DEPTH, VALUED = 6, 4


def drawn(seed: int, *shape: int) -> Blocks:
    return np.random.default_rng(seed).integers(0, 1 << 64, shape, np.uint64)


def keys(depth: int, valued: int, seed: int = 1) -> tuple[Generator, Blocks, Blocks, Values, Values]:
    """Of every point: the generator, both roots, the corrections of blocks and values, and what the values shall be."""
    generator, count = Generator(bytes(range(16))), 1 << depth
    roots, betas = drawn(seed, 2, count, 2), drawn(seed + 1, valued, count, 2).view(np.int64)
    return generator, roots, *generate(generator, roots, np.arange(count), depth, betas), betas


def levels(generator: Generator, roots: Blocks, blocks: Blocks, party: int) -> list[Blocks]:
    """A party's whole trees: the blocks of each depth, [nodes, T, 2]."""
    found = [rooted(roots[party], party)[None]]
    for correction in blocks:
        children = generator.children(found[-1])
        correct(children, found[-1], correction)
        found.append(children.reshape(-1, *children.shape[2:]))
    return found


def test_values_are_those_of_the_path_and_none_beside_it() -> None:
    """Every point of a domain, every node of every depth that has values."""
    generator, roots, blocks, values, betas = keys(DEPTH, VALUED)
    first, second = (levels(generator, roots, blocks, party) for party in (0, 1))
    for at, depth in enumerate(range(DEPTH - VALUED + 1, DEPTH + 1)):
        whole = sum(shares(generator, x[depth], values[at], p) for p, x in enumerate((first, second)))
        want = np.zeros_like(whole)
        points = np.arange(1 << DEPTH)
        want[points >> (DEPTH - depth), points] = betas[at]
        assert np.array_equal(whole, want)


def test_blocks_are_the_same_beside_the_path_alone() -> None:
    generator, roots, blocks, _, _ = keys(DEPTH, VALUED)
    first, second = (levels(generator, roots, blocks, party) for party in (0, 1))
    points = np.arange(1 << DEPTH)
    for depth in range(DEPTH + 1):
        path = points >> (DEPTH - depth) == np.arange(1 << depth)[:, None]
        same = (first[depth] == second[depth]).all(-1)
        assert np.array_equal(same, ~path)
        assert np.array_equal(control(first[depth]) != control(second[depth]), path)
        if depth:  # every seed has both bits of the key's root but one
            assert not np.any(first[depth][..., 0] & 2)


@pytest.mark.parametrize("party", [0, 1])
def test_what_a_party_is_given_looks_alike_for_all_points(party: int) -> None:
    """One point many times, as the worst that a party may meet: bytes of corrections, and of what it makes of them."""
    generator, count = Generator(bytes(16)), 1 << 12
    for point in (0, (1 << DEPTH) - 1):
        betas = np.ones((VALUED, count, 2), np.int64)
        roots = drawn(3 + point, 2, count, 2)
        blocks, values = generate(generator, roots, np.full(count, point), DEPTH, betas)
        leaves = levels(generator, roots, blocks, party)[-1]
        for found in (blocks, values, shares(generator, leaves, values[-1], party)):
            assert chi_square(np.ascontiguousarray(found).tobytes()) < chi_square_limit()
        assert np.array_equal(np.unique(blocks[..., 0] & np.uint64(3)), np.arange(4))  # both control bits, either way


def test_every_word_of_a_key_counts() -> None:
    generator, roots, blocks, values, _ = keys(4, 1)
    want = [shares(generator, levels(generator, roots, blocks, party)[-1], values[0], party) for party in (0, 1)]
    for bit in (0, 1, 2, 64, 127):
        for depth in range(4):
            other = blocks.copy()
            other[depth, :, bit // 64] ^= np.uint64(1 << (bit % 64))
            found = [
                shares(generator, levels(generator, roots, other, party)[-1], values[0], party) for party in (0, 1)
            ]
            assert not np.array_equal(found[0] + found[1], want[0] + want[1])
    another = Generator(bytes(15) + b"\1")
    assert not np.array_equal(another.values(roots[0]), generator.values(roots[0]))


@pytest.mark.parametrize(
    ("roots", "alpha", "depth", "betas"),
    [
        ((2, 3, 2), [0, 1, 8], 3, (1, 3, 2)),
        ((2, 3, 2), [0, 1, -1], 3, (1, 3, 2)),
        ((2, 2, 2), [0, 1, 2], 3, (1, 3, 2)),
        ((2, 3, 2), [0, 1, 2], 3, (4, 3, 2)),
        ((2, 3, 2), [0, 1, 2], 3, (1, 3, 1)),
        ((2, 3, 2), [0, 1, 2], 63, (1, 3, 2)),
    ],
)
def test_what_is_no_point_function_is_refused(
    roots: tuple[int, ...], alpha: list[int], depth: int, betas: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"points of|outside"):
        generate(Generator(bytes(16)), drawn(1, *roots), np.array(alpha), depth, np.zeros(betas, np.int64))


# Inverses ----------------------------------------------------------------------------------------

TREES = [
    InverseTree((2048,), 29, 6, 13, 40, True, 30, 448),
    InverseTree((2048,), 36, 6, 26, 60, True, 50, 448),
    InverseTree((2048,), 10, 6, 4, 40, False, 38, 448),
    InverseTree((2048,), 23, 3, 11, 48, False, 42, 56),
    InverseTree((2048,), 22, 6, 12, 40, True, 32, 900),
]


@pytest.mark.parametrize("op", TREES, ids=lambda op: f"{op.n}-{op.low}-{'root' if op.root else 'inverse'}")
def test_lines_are_as_near_as_stated(op: InverseTree) -> None:
    """Numbers of all octaves, from `first` to the last one of the circle that is one, under eight masks each."""
    last = (1 << (op.n + op.low)) - (1 << op.low) - 1
    octaves = torch.linspace(0, 1, op.shape[0], dtype=torch.float64)
    w = (op.first * (last / op.first) ** octaves).round().to(torch.int64).clamp(op.first, last)
    want = inverse(w.double(), op.root) * 2.0**op.scale
    generator = torch.Generator().manual_seed(4)
    for _ in range(8):
        (y,) = lossy_step(op, [w], generator)
        assert ((y - want).abs() <= op.relative * want + op.rounding).all()
        assert (y - want).abs().max() > 0.5 * op.relative * want.min()  # so the bound is one


def test_ends_cover_the_circle_once() -> None:
    """Of every mask and every masked value of a small circle exactly one end is on the path: the values of all ends add
    up to one, and without an end they do not."""
    op = InverseTree((1 << 9,), 9, 2, 7, 64, True, 40, 28)
    r = torch.arange(1 << 9)
    roots = torch.from_numpy(drawn(5, 2, len(r) + 1, 2).view(np.int64))
    k = op.correlate(r, roots)
    generator = Generator(k["salt"].numpy().tobytes())
    for m in (0, 1, 2, 77, 255, 256, 340, 511):
        found = []
        for party in (0, 1):
            root = rooted(roots[party, :-1].numpy().view(np.uint64), party)
            at = np.full(len(r), m)
            nodes, indices, depths = op._ends(generator, root, k["blocks"].numpy().view(np.uint64), at)
            assert len(nodes) == 8 * op.n - 16
            found.append(shares(generator, nodes, k["values"].numpy()[depths - 4], party))
        ones, parts = (found[0] + found[1]).transpose(2, 0, 1)
        assert np.array_equal(np.sort(ones, 0)[-1], np.ones(len(r))) and np.array_equal(ones.sum(0), np.ones(len(r)))
        left = (op.low + op.n - depths)[:, None]
        w = (m - r.numpy()) % (1 << 9)
        index, size = (ones * indices).sum(0), (ones * left).sum(0)
        q = (((index << size) + (m & ((1 << size) - 1)) - w) % (1 << 9)) / 2.0 ** (size - op.low)
        assert np.abs(parts.sum(0) - q).max() <= 0.5
        assert (index[size > op.low] >= 8).all(), "wide intervals are far from 0"


def test_a_tree_costs_what_it_says() -> None:
    """16 bytes of blocks a depth, two numbers for each depth from 4 on, 16 bytes of salt: to each party."""
    op = TREES[0]
    assert op.cost().dealer == 2 * (16 + 2048 * (13 * 16 + 10 * 2 * 5))
    assert op.received(True) == op.received(False) == op.cost().dealer // 2
    assert replace(op, shape=(1, 1)).cost().dealer == 2 * (16 + 13 * 16 + 10 * 2 * 5)
    assert op.cost().rounds == op.cost().online == 0


def test_a_key_alone_says_nothing_of_the_mask() -> None:
    """Whatever the mask, one party's results of a thousand keys are uniform."""
    op = InverseTree((4096,), 20, 6, 10, 64, True, 40, 448)
    generator = torch.Generator().manual_seed(9)
    for mask in (0, 12345):
        roots = torch.randint(-(2**62), 2**62, (2, 4097, 2), generator=generator) << 1
        k = op.correlate(torch.full(op.shape, mask), roots)
        for party in (0, 1):
            x = Masked(torch.full(op.shape, 54321), torch.empty(0))
            (y,) = op.online(Alone(party), {**k, "roots": roots[party]}, x)
            assert chi_square(y.numpy().tobytes()) < chi_square_limit()


class Alone:
    """A party that nothing is asked of."""

    def __init__(self, party: int) -> None:
        self.party = party
