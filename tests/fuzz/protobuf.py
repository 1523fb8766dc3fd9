"""Valid protobuf messages, changed field by field."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fuzz.mutate import flips, several
from fuzz.source import Source

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31), FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32), FieldDescriptor.CPPTYPE_UINT64: (0, 2**64),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31),
}  # fmt: skip
_NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 16, 17, 64, 255, 4096, 65_536, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1,
    -(2**31),
)  # fmt: skip
_REALS = (0.0, 1.0, -1.0, 1e308, float("inf"), float("-inf"), float("nan"), 1e-320)
MOST = 2**20  # bytes by which one change may lengthen a message: servers take messages of a few MB at most
TEXTS = ("", "a", "a" * 32, "0" * 32, "x" * 64, "../x", "\x00", "é" * 40, "x" * 100_000, "{}", "client/alice", "\u202e")


def changed(source: Source, message: Message, words: tuple[str, ...] = ()) -> bytes:
    """The bytes of a copy with a few changes; `words` are texts that mean something to who receives it."""
    copy = type(message)()
    copy.CopyFrom(message)
    several(source, lambda: _change(source, copy, words))
    data = copy.SerializeToString()
    return flips(source, data) if source.one_in(8) else data


def _change(source: Source, message: Any, words: tuple[str, ...]) -> None:
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = source.choice(fields)
    if field.message_type is None:
        _set(source, message, field, words)
    elif field.is_repeated:
        rows = getattr(message, field.name)
        if not rows or source.one_in(3):
            rows.add()
        elif source.one_in(3):
            del rows[source.below(len(rows))]
        _change(source, source.choice(rows), words) if rows else None
    elif source.one_in(4):
        message.ClearField(field.name)
    else:
        _change(source, getattr(message, field.name), words)


def _set(source: Source, message: Any, field: Any, words: tuple[str, ...]) -> None:
    if not field.is_repeated:
        setattr(message, field.name, _value(source, field, words, getattr(message, field.name)))
        return
    rows = getattr(message, field.name)
    if rows and source.one_in(3):
        del rows[source.below(len(rows))]
    else:
        value = _value(source, field, words, None)
        many = MOST // max(1, len(value) if isinstance(value, str | bytes) else 8)
        rows.extend([value] * (1 + min(2000, many) * source.one_in(8)))


def _value(source: Source, field: Any, words: tuple[str, ...], now: Any) -> Any:
    kind = field.cpp_type
    if kind in _RANGES:
        low, high = _RANGES[kind]
        number = source.choice(_NUMBERS) if now is None or not source.one_in(3) else now + source.choice((1, -1))
        return min(max(number, low), high - 1)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return source.choice(_REALS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return not now
    if field.type == FieldDescriptor.TYPE_BYTES:
        return flips(source, now or b"")
    if words and not source.one_in(2):
        return source.choice(words)
    if now and source.one_in(2):
        return flips(source, now.encode()).decode(errors="replace")
    return source.choice(TEXTS)
