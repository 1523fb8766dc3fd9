"""Any bytes, read as choices; and several parts in one input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_LENGTH = 3  # bytes before each part


class Source:
    """Choices, each from the next bytes; after the last byte every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def ended(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        self._at += count
        return found

    def below(self, end: int) -> int:
        """0 <= n < end."""
        return int.from_bytes(self.take((max(end - 1, 1).bit_length() + 7) // 8)) % end

    def choice(self, of: Sequence[T]) -> T:
        return of[self.below(len(of))]

    def one_in(self, n: int) -> bool:
        """Rarely true; false after the end."""
        return self.below(n) == n - 1

    def blob(self, most: int = 64) -> bytes:
        return self.take(self.below(most))


def pack(parts: Sequence[bytes]) -> bytes:
    """Several messages or files as one input; what is longer than a length can say is cut."""
    cut = [part[: (1 << 8 * _LENGTH) - 1] for part in parts]
    return b"".join(len(part).to_bytes(_LENGTH) + part for part in cut)


def unpack(data: bytes) -> list[bytes]:
    """What was packed; of any other bytes, what can be made of them."""
    parts = []
    while data:
        size = int.from_bytes(data[:_LENGTH])
        parts.append(data[_LENGTH : _LENGTH + size])
        data = data[_LENGTH + size :]
    return parts
