"""Rings, packing, digit products and seeds against Python integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.fixedpoint import decode, encode
from ditto.matmul import ENGINES, FEW, DigitMatrix, digits_matmul, engine
from ditto.prg import Prg, derive, new_seed
from ditto.ring import carrier, matmul, pack, shift_right, signed, unpack, unsigned, wire_bytes

RINGS = (8, 16, 24, 32, 40, 48, 56, 64)


def random_ring(shape: tuple[int, ...], bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-(2**62), 2**62, shape, generator=generator) * 2 + torch.randint(0, 2, shape, generator=generator)
    flat = x.reshape(-1)
    edges = [2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 0, -1, 0x80, 0x7F80, -129]
    for at, edge in enumerate(edges[: len(flat)]):
        flat[at] = edge
    return x.to(carrier(bits))


@given(st.integers(1, 64), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40))
def test_pack_roundtrip(bits: int, values: list[int]) -> None:
    x = torch.tensor(values, dtype=torch.int64).to(carrier(bits))
    data = pack(x, bits)
    assert len(data) == wire_bytes(bits, len(values)) == -(-bits // 8) * len(values)
    back = unsigned(unpack(data, bits, (len(values),)), bits)
    mask = (1 << bits) - 1
    assert [v & mask for v in back.tolist()] == [v & mask for v in values]


def test_unpack_refuses_a_wrong_length() -> None:
    with pytest.raises(ValueError, match="expected 6"):
        unpack(b"12345", 24, (2,))


@given(st.integers(1, 64), st.integers(0, 63), st.integers(-(2**63), 2**63 - 1))
def test_shift_and_representatives(bits: int, t: int, value: int) -> None:
    x = torch.tensor([value], dtype=torch.int64).to(carrier(bits))
    low = value % 2**bits
    assert shift_right(x, min(t, bits), bits).item() & (2**64 - 1) == (low >> min(t, bits)) & (2**64 - 1) or t == 0
    assert signed(x, bits).item() == (low ^ (1 << (bits - 1))) - (1 << (bits - 1))
    assert unsigned(x, bits).item() % 2**64 == low


@pytest.mark.parametrize("bits", RINGS)
@settings(max_examples=15, deadline=None)
@given(m=st.integers(1, 19), k=st.integers(1, 300), n=st.integers(1, 35), seed=st.integers(0, 99))
def test_digit_product(bits: int, m: int, k: int, n: int, seed: int) -> None:
    a, b = random_ring((m, k), bits, seed), random_ring((k, n), bits, seed + 1)
    got = digits_matmul(a, DigitMatrix(b, bits))
    left, right = a.tolist(), list(zip(*b.tolist(), strict=True))
    want = [[sum(x * y for x, y in zip(row, col, strict=True)) % 2**bits for col in right] for row in left]
    assert [[v % 2**bits for v in row] for row in got.tolist()] == want


@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize(("m", "k"), [(1, 300), (FEW, 9000), (FEW + 1, 20)])
def test_product_with_the_whole_matrix(bits: int, m: int, k: int) -> None:
    a, b = random_ring((m, k), bits, 5), random_ring((k, 7), bits, 6)
    digits, whole = DigitMatrix(b, bits), DigitMatrix(b, bits)
    whole.keep_whole()
    assert torch.equal(signed(digits_matmul(a, digits), bits), signed(digits_matmul(a, whole), bits))


@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize("k", [4097, 16384])
def test_digit_product_of_long_rows(bits: int, k: int) -> None:
    a, b = torch.full((FEW + 1, k), -(2 ** (bits - 1)), dtype=carrier(bits)), random_ring((k, 3), bits, 7)
    a[1] = random_ring((k,), bits, 8)
    got = digits_matmul(a, DigitMatrix(b, bits))
    left, right = a.tolist(), list(zip(*b.tolist(), strict=True))
    want = [[sum(x * y for x, y in zip(row, col, strict=True)) % 2**bits for col in right] for row in left]
    assert [[v % 2**bits for v in row] for row in got.tolist()] == want


def test_every_engine_that_is_chosen_is_exact() -> None:
    a = torch.full((33, 513), -128, dtype=torch.int8)
    want = torch.matmul(a.long(), a.t().long())
    assert torch.equal(ENGINES[engine()](a, a.t().contiguous()).long(), want)


@pytest.mark.parametrize("bits", RINGS)
def test_batched_product(bits: int) -> None:
    a, b = random_ring((2, 3, 5), bits, 1), random_ring((2, 5, 4), bits, 2)
    got = unsigned(matmul(a, b, bits), bits)
    want = torch.matmul(a.long(), b.long())
    assert torch.equal(got, unsigned(want, bits))


def test_seeds_and_keys() -> None:
    seed = new_seed()
    assert len(seed) == 16 and seed != new_seed()
    assert derive(seed, "step", "a", 1) == derive(seed, "step", "a", 1)
    keys = {
        derive(seed, *c)
        for c in (("step", "a", 1), ("step", "a", 2), ("step", "a1"), ("stepa", 1), ("step", "a", "1", ""))
    }
    assert len(keys) == 5
    x, y = Prg(seed).ring((1000,), 24), Prg(seed).ring((1000,), 24)
    assert torch.equal(x, y) and not torch.equal(x, Prg(new_seed()).ring((1000,), 24))
    with pytest.raises(ValueError, match="must be 16"):
        Prg(b"short")


def test_aes_counter_mode_known_answer() -> None:
    """AES-128 of the zero block under the zero key (FIPS 197 / NIST AESAVS)."""
    assert pack(Prg(bytes(16)).ring((16,), 8), 8).hex() == "66e94bd4ef8a2c3b884cfa59ca342b2e"


@given(st.floats(-100, 100))
def test_fixed_point(x: float) -> None:
    value = decode(encode(torch.tensor([x], dtype=torch.float64), 32, 18), 32, 18).item()
    assert abs(value - x) <= 2.0**-19 + 1e-12


def test_encode_refuses_overflow() -> None:
    with pytest.raises(OverflowError, match="does not fit"):
        encode(torch.tensor([200.0]), 16, 8)
