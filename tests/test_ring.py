"""Rings, packing, digit products and seeds against Python integers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.ring import batched_product, carrier, pack, packed, shift_right, signed, unpack, unsigned, wire_bytes
from ditto.ring.digits import digits_of, half, matrix_of, subtract
from ditto.ring.fixedpoint import decode, encode
from ditto.ring.kernels import COLUMNS, FEW, RingMatrix, carrier_class, kernel_of
from ditto.ring.packing import AT_ONCE
from ditto.ring.prg import BLOCK, Prg, derive, new_seed

RINGS = (8, 16, 24, 32, 40, 48, 56, 64)


def int8_is_exact() -> bool:
    """int8 products saturate, or are not built, on some processors; `kernel_of` passes over them there."""
    a = torch.full((20, 64), -128, dtype=torch.int8)
    try:
        return bool((torch._int_mm(a, a.t()) == 64 * 128 * 128).all())
    except RuntimeError:
        return False


NO_INT8 = pytest.mark.skipif(not int8_is_exact(), reason="no exact int8 products on this processor")
KERNELS = ("integer", "float64", pytest.param("int8", marks=NO_INT8))


def random_ring(shape: tuple[int, ...], bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-(2**62), 2**62, shape, generator=generator) * 2 + torch.randint(0, 2, shape, generator=generator)
    flat = x.reshape(-1)
    edges = [2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 0, -1, 0x80, 0x7F80, -129]
    for at, edge in enumerate(edges[: len(flat)]):
        flat[at] = edge
    return x.to(carrier(bits))


@pytest.mark.parametrize("at_once", [8, 24, AT_ONCE])
@given(st.integers(1, 64), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40))
def test_pack_roundtrip(at_once: int, bits: int, values: list[int]) -> None:
    """The bytes are those of the layout that is stated, by Python's integers, however many elements are taken at once:
    nothing of a carrier's other bits, nor of memory that nobody wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditto.ring.packing.AT_ONCE", at_once)
        _roundtrip(bits, values)


def _roundtrip(bits: int, values: list[int]) -> None:
    x = torch.tensor(values, dtype=torch.int64).to(carrier(bits))
    data, n, whole = pack(x, bits), len(values), bits // 8
    assert len(data) == wire_bytes(bits, n) == -(-bits * n // 8)
    elements = [v % 2**bits for v in values]
    high = sum(v >> (8 * whole) << (bits % 8 * i) for i, v in enumerate(elements))
    low = b"".join((v % 256**whole).to_bytes(whole, "little") for v in elements)
    assert data == low + high.to_bytes(len(data) - len(low), "little")
    for given_back in (data, bytearray(data)):
        back = unsigned(unpack(given_back, bits, (n,)), bits)
        assert [v % 2**bits for v in back.tolist()] == elements


@pytest.mark.parametrize("bits", [4, 20, 41])
def test_packing_takes_little_beside_what_it_returns(bits: int) -> None:
    """However large the tensor, what is in between is at most four arrays of 8 bytes for each element taken at once."""
    x = random_ring((32 * AT_ONCE,), bits, 2)
    data = packed(x, bits)
    # tracemalloc sees numpy's memory; the tensor that `unpack` returns is torch's
    works: list[tuple[Callable[[], object], int]]
    works = [(lambda: packed(x, bits), len(data)), (lambda: unpack(data, bits, x.shape), 0)]
    for work, returned in works:
        tracemalloc.start()
        try:
            found = work()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert found is not None and peak - returned <= 4 * 8 * AT_ONCE


@pytest.mark.parametrize("bits", [8, 24, 32, 39, 64])
def test_what_is_packed_or_unpacked_shares_memory_as_it_says(bits: int) -> None:
    """`packed` may be the tensor's memory and cannot be written to; `unpack` leaves alone what cannot be, and `pack`
    is a copy."""
    x = random_ring((5,), bits, 1)
    view, copy = packed(x, bits), pack(x, bits)
    assert view.readonly and view == copy
    own = unpack(view, bits, (5,))
    own += 1
    assert view == copy == pack(x, bits)
    x += 1
    assert copy == pack(x - 1, bits)
    for at in (0, 1):  # memory that can be written to, aligned or not
        room = bytearray(at) + bytearray(copy)
        assert torch.equal(unsigned(unpack(memoryview(room)[at:], bits, (5,)), bits), unsigned(x - 1, bits))


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


def remainders(product: torch.Tensor, bits: int) -> list[list[int]]:
    return [[v % 2**bits for v in row] for row in product.tolist()]


def by_python(a: torch.Tensor, b: torch.Tensor, bits: int) -> list[list[int]]:
    left, right = a.tolist(), list(zip(*b.tolist(), strict=True))
    return [[sum(x * y for x, y in zip(row, col, strict=True)) % 2**bits for col in right] for row in left]


def near_extreme(k: int, base: int) -> torch.Tensor:
    """Numbers whose balanced digits are all near the least one; their low bits differ, so that inexact sums show."""
    x = torch.zeros(k, dtype=torch.int64)
    for i in range(-(-64 // base)):
        digit = torch.arange(k) * (i + 3) % max(1, 2 ** (base - 1) // 1000) - 2 ** (base - 1)
        x += digit << (base * i)
    return x


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", RINGS)
@settings(max_examples=15, deadline=None)
@given(m=st.integers(1, 19), k=st.integers(1, 300), n=st.integers(1, 35), seed=st.integers(0, 99))
def test_product(kernel: str, bits: int, m: int, k: int, n: int, seed: int) -> None:
    a, b = random_ring((m, k), bits, seed), random_ring((k, n), bits, seed + 1)
    assert remainders(RingMatrix(b, bits, kernel).product(a), bits) == by_python(a, b, bits)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize("n", [1, 2, 35])
def test_product_of_single_numbers(kernel: str, bits: int, n: int) -> None:
    """One digit is a matrix of one row, of which a library may take either stride."""
    a, b = random_ring((3, 1), bits, 1), random_ring((1, n), bits, 2)
    assert remainders(RingMatrix(b, bits, kernel).product(a), bits) == by_python(a, b, bits)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize(("m", "k"), [(1, 300), (FEW, 9000), (FEW + 1, 20)])
def test_product_with_the_whole_matrix(kernel: str, bits: int, m: int, k: int) -> None:
    a, b = random_ring((m, k), bits, 5), random_ring((k, 7), bits, 6)
    whole = RingMatrix(b, bits, kernel)
    whole.keep_whole()
    want = torch.matmul(a.long(), b.long())
    assert torch.equal(signed(whole.product(a), bits), signed(want, bits))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", (*RINGS, 63))
@pytest.mark.parametrize("k", [1024, 1025, 4097, 16384])
def test_product_of_long_rows(kernel: str, bits: int, k: int) -> None:
    """Sums at their largest: every digit of both operands is the extreme one, of the ring and of each base."""
    a, b = torch.full((FEW + 1, k), -(2 ** (bits - 1)), dtype=carrier(bits)), random_ring((k, 3), bits, 7)
    a[1] = random_ring((k,), bits, 8)
    b[:, 0] = -(2 ** (bits - 1))
    for row, base in enumerate((8, 16, 19, 20, 21, 22)):
        a[row % len(a)] = near_extreme(k, base)
        b[:, row % 3] = near_extreme(k, base)
        want = torch.matmul(a.long(), b.long())
        assert torch.equal(signed(RingMatrix(b, bits, kernel).product(a), bits), signed(want, bits))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", RINGS)
def test_plain_product(kernel: str, bits: int) -> None:
    """Rows of no, one and two entries; numbers that are small for their ring, and such that just are not."""
    sparse, b = torch.zeros((4, 9000), dtype=torch.int64), random_ring((9000, 7), bits, 6)
    sparse[1, 0], sparse[2, 8999], sparse[3, 0], sparse[3, 8200] = 1, -3, 1, -(2 ** (bits - 1))
    cases = [(sparse, b)]
    for size in (bits // 2 - 5, bits // 2 - 4, 25, 27):
        size = min(max(size, 1), bits - 1)
        edge = torch.full((6, 64), 2**size - 1)
        edge[::2] *= -1
        cases.append((edge, edge.t().contiguous().to(carrier(bits))))
    for x, w in cases:
        got = RingMatrix(w, bits, kernel).plain_product(x)
        assert torch.equal(signed(got, bits), signed(torch.matmul(x, signed(w, bits)), bits))


@pytest.mark.parametrize("bits", [7, 8, 12, 16, 20, 24, 32, 33, 40, 64])
def test_digits_of_a_matrix(bits: int) -> None:
    """Both ways, and F - T - H without leaving them: borrows pass through digits of all values, 0 included."""
    f, t = random_ring((40, 30), bits, 1), random_ring((40, 30), bits, 2)
    f[:20] = t[:20]
    f[:10] += half(bits) + torch.arange(10)[:, None].to(f.dtype) - 5
    digits = digits_of(f, bits)
    assert digits.shape == (30, -(-bits // 8), 40)
    values = sum(digits[:, -1 - s].long() << (8 * s) for s in range(digits.shape[1]))
    assert torch.equal(signed(values.t(), bits), signed(f, bits))
    assert torch.equal(signed(matrix_of(digits, bits).t(), bits), signed(f, bits))
    rest = digits_of(t, bits)
    subtract(digits, rest)
    assert torch.equal(signed(matrix_of(rest, bits).t(), bits), signed(f.long() - t.long() - half(bits), bits))


def test_product_with_many_columns() -> None:
    a, b = random_ring((FEW + 1, 40), 64, 1), random_ring((40, 2 * COLUMNS + 3), 64, 2)
    assert torch.equal(RingMatrix(b, 64, "float64").product(a), a @ b)


@pytest.mark.parametrize("bits", RINGS)
def test_the_chosen_kernel_is_exact(bits: int) -> None:
    a, b = random_ring((33, 513), bits, 3), random_ring((513, 9), bits, 4)
    chosen = RingMatrix(b, bits)
    assert chosen.kernel == kernel_of(carrier_class(bits))
    assert remainders(chosen.product(a), bits) == by_python(a, b, bits)


@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize("k", [1, 5, 1500])
def test_batched_product(bits: int, k: int) -> None:
    a, b = random_ring((2, 3, k), bits, 1), random_ring((2, k, 4), bits, 2)
    got = unsigned(batched_product(a, b, bits), bits)
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


def test_a_stream_goes_on_as_in_one_piece() -> None:
    """However it is asked, and across the blocks in which it is made: AES in counter mode from block 0 on."""
    size = BLOCK + 40
    whole = Cipher(algorithms.AES(bytes(16)), modes.CTR(bytes(16))).encryptor().update(bytes(3 * size))
    prg, got = Prg(bytes(16)), b""
    for n, bits in ((size, 8), (3, 8), (size // 8, 64), (5, 32), (BLOCK, 8)):
        got += pack(prg.ring((n,), bits), bits)
    assert got == whole[: len(got)] and len(got) > 3 * BLOCK


@given(st.floats(-100, 100))
def test_fixed_point(x: float) -> None:
    value = decode(encode(torch.tensor([x], dtype=torch.float64), 32, 18), 32, 18).item()
    assert abs(value - x) <= 2.0**-19 + 1e-12


def test_encode_refuses_overflow() -> None:
    with pytest.raises(OverflowError, match="does not fit"):
        encode(torch.tensor([200.0]), 16, 8)
