"""What a server keeps on disk, for its owner's eyes only: tensors, seeds, and what a sharing is called.

Each carries a SHA-256 digest that is checked when it is read. It also covers whose the file is and how it is called:
what is cut, altered, or lies in another one's place is a DamagedFile, never garbage. The digest has no key, so it finds
accidents; who can write here can also write a digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import structlog
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from ditto import files
from ditto.engine.program import Wire
from ditto.errors import BadShare, DamagedFile
from ditto.ring import carrier
from ditto.ring.prg import SEED_BYTES

log = structlog.get_logger()
_DTYPES = {torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"}
_METADATA = "__metadata__"
_HEADER_LIMIT = 16 << 20
_BLOCK = 1 << 20


class Owner(NamedTuple):
    """Whose a file is: this server's part of this sharing."""

    role: str
    share_id: str

    def hash(self, path: Path, *context: object) -> Any:
        """SHA-256, begun with what the digest is to cover besides the content."""
        return hashlib.sha256(json.dumps([*self, path.name, *context]).encode())

    def damaged(self, path: Path, what: str) -> DamagedFile:
        return DamagedFile(f"{self.role}: {path}: {what}; share the model again", peer=self.role)

    @contextlib.contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.damaged(path, f"cannot be read: {error.strerror or error}") from error


# Seeds -------------------------------------------------------------------------------------------


def save_seed(path: Path, seed: bytes, owner: Owner) -> None:
    """Write 16 bytes, and the digest after them. Raises BadShare for a seed of another length."""
    if len(seed) != SEED_BYTES:
        raise BadShare(f"a seed of {len(seed)} bytes; expected {SEED_BYTES}")
    files.write(path, seed + _seed_digest(path, seed, owner), files.PRIVATE)


def load_seed(path: Path, owner: Owner) -> bytes:
    """What `save_seed` wrote. Raises DamagedFile."""
    with owner.reading(path):
        data = path.read_bytes()
    seed, digest = data[:SEED_BYTES], data[SEED_BYTES:]
    if len(seed) != SEED_BYTES or digest != _seed_digest(path, seed, owner):
        raise owner.damaged(path, "not the seed that was stored here")
    return seed


def _seed_digest(path: Path, seed: bytes, owner: Owner) -> bytes:
    found = owner.hash(path)
    found.update(seed)
    return bytes(found.digest())


# Tensors -----------------------------------------------------------------------------------------


def save_tensors(path: Path, wires: dict[str, Wire], tensors: Iterable[torch.Tensor], owner: Owner) -> None:
    """Write ring tensors, in the order of `wires`, as a safetensors file. Only one is in memory at a time.

    The metadata of the file's header has each tensor's digest, filled in when the data is written.
    """
    digests = dict.fromkeys(wires, "0" * 64)
    with files.replacing(path, files.PRIVATE) as fresh, fresh.open("wb") as file:
        file.write(_header(wires, digests))
        for (name, wire), tensor in zip(wires.items(), tensors, strict=True):
            if tuple(tensor.shape) != tuple(wire.shape):
                raise BadShare(f"{name}: a share of shape {tuple(tensor.shape)}; expected {tuple(wire.shape)}")
            data = tensor.to(carrier(wire.ring)).contiguous().reshape(-1).numpy().data
            file.write(data)
            found = _tensor_hash(path, wire, name, owner)
            found.update(data)
            digests[name] = found.hexdigest()
        file.seek(0)
        file.write(_header(wires, digests))


def load_tensors(path: Path, wires: dict[str, Wire], owner: Owner) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file that `save_tensors` wrote for the same wires. Raises DamagedFile for any other.

    Each is a private mapping of its own: it takes memory when it is read and gives it back when it is dropped. Its
    digest is checked through a small buffer, so that the check takes none.
    """
    with owner.reading(path), path.open("rb") as file:
        offset, digests = _read_header(path, file, wires, owner)
        for name, wire in wires.items():
            file.seek(offset)
            found = _tensor_hash(path, wire, name, owner)
            for block in _blocks(file, _nbytes(wire)):
                found.update(block)
            if found.hexdigest() != digests[name]:
                raise owner.damaged(path, f"{name} is not what was stored here")
            raw = np.memmap(file, dtype=np.uint8, mode="c", offset=offset, shape=(_nbytes(wire),))
            offset += _nbytes(wire)
            yield name, torch.from_numpy(raw).view(carrier(wire.ring)).reshape(wire.shape)


def _nbytes(wire: Wire) -> int:
    return math.prod(wire.shape) * carrier(wire.ring).itemsize


def _tensor_hash(path: Path, wire: Wire, name: str, owner: Owner) -> Any:
    """The type is covered, too: integers of other fraction bits, or of a narrower ring, would be another value."""
    return owner.hash(path, name, wire.ring, wire.frac, list(wire.shape))


def _blocks(file: BufferedReader, nbytes: int) -> Iterator[memoryview]:
    """The next `nbytes` bytes, or what there is of them, in pieces that share one buffer."""
    buffer = memoryview(bytearray(min(nbytes, _BLOCK)))
    while nbytes and (count := file.readinto(buffer[: min(nbytes, _BLOCK)])):
        yield buffer[:count]
        nbytes -= count


def _entries(wires: dict[str, Wire]) -> dict[str, dict[str, Any]]:
    """A safetensors header's entries: type, shape and place of every tensor, one after the other."""
    entries = {}
    offset = 0
    for name, wire in wires.items():
        end = offset + _nbytes(wire)
        dtype = _DTYPES[carrier(wire.ring)]
        entries[name] = {"dtype": dtype, "shape": list(wire.shape), "data_offsets": [offset, end]}
        offset = end
    return entries


def _header(wires: dict[str, Wire], digests: dict[str, str]) -> bytes:
    """Its length (8 bytes), then JSON, filled up with spaces to a multiple of 8."""
    text = json.dumps({_METADATA: digests} | _entries(wires)).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_header(path: Path, file: BufferedReader, wires: dict[str, Wire], owner: Owner) -> tuple[int, dict[str, str]]:
    """Where the data begins, and each tensor's digest. Raises DamagedFile unless the file is of these wires."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _HEADER_LIMIT):
        raise owner.damaged(path, "the header is cut short")
    raw = file.read(length)
    try:
        found: dict[str, Any] = json.loads(raw)
        digests: dict[str, str] = dict(found.pop(_METADATA))
    except (ValueError, TypeError, AttributeError, KeyError):
        raise owner.damaged(path, "the header is damaged") from None
    begin, expected = 8 + length, _entries(wires)
    for name in (*expected, *found):
        if name not in found:
            raise owner.damaged(path, f"{name} is missing")
        if name not in expected:
            raise owner.damaged(path, f"{name} is no tensor of this program")
    for name, other in zip(expected, found, strict=True):
        if name != other:
            raise owner.damaged(path, f"{other} is in the place of {name}; stored for another program")
        if found[name] != expected[name]:
            raise owner.damaged(path, f"{name} is stored as {found[name]}; expected {expected[name]}")
        if begin + expected[name]["data_offsets"][1] > size:
            raise owner.damaged(path, f"{name} is cut short")
    if digests.keys() != expected.keys() or begin + sum(map(_nbytes, wires.values())) != size:
        raise owner.damaged(path, "there is more, or less, in it than its tensors")
    if length.to_bytes(8, "little") + raw != _header(wires, digests):
        raise owner.damaged(path, "the header is damaged")
    return begin, digests


# Entries -----------------------------------------------------------------------------------------


class StoredEntry(BaseModel):
    """What a server knows of one sharing, as JSON with its digest."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


E = TypeVar("E", bound=StoredEntry)


def save_entry(path: Path, entry: StoredEntry, owner: Owner) -> None:
    fields = entry.model_dump()
    files.write(path, json.dumps(fields | {"digest": _entry_digest(path, fields, owner)}), files.PRIVATE)


def load_entry(path: Path, kind: type[E], owner: Owner) -> E:
    """What `save_entry` wrote. Raises DamagedFile, which does not quote the content: it may be secret."""
    with owner.reading(path):
        data = path.read_bytes()
    try:
        fields = dict(json.loads(data))
        digest = fields.pop("digest", None)
        entry = kind.model_validate(fields)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise owner.damaged(path, wrong) from None
    except (ValueError, TypeError):
        raise owner.damaged(path, "no JSON document of a sharing") from None
    if digest != _entry_digest(path, entry.model_dump(), owner):
        raise owner.damaged(path, "not the entry that was stored here")
    return entry


def readable_entries(paths: Iterable[Path], kind: type[E], owner_of: Callable[[Path], Owner]) -> Iterator[E]:
    """Every entry that can be read. A damaged one must not stop the server: it is set aside as NAME.damaged."""
    for path in paths:
        try:
            yield load_entry(path, kind, owner_of(path))
        except DamagedFile as error:
            log.error("entry set aside", reason=str(error))
            with contextlib.suppress(OSError):
                path.rename(path.with_name(path.name + ".damaged"))


def _entry_digest(path: Path, fields: dict[str, Any], owner: Owner) -> str:
    found = owner.hash(path)
    found.update(json.dumps(fields, sort_keys=True).encode())
    return str(found.hexdigest())
