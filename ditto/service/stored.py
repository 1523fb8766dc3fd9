"""What a server keeps on disk, for its owner's eyes only: tensors, seeds, and what a sharing is called.

Each is encrypted and authenticated (`storage.py`), and bound to whose it is and how its file is called: what is cut,
altered, or lies in another one's place is a DamagedFile, never garbage. With `storage: plaintext` a digest takes the
place of both; it has no key, so it finds accidents only.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import structlog
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from ditto import files
from ditto.engine.program import Wire
from ditto.errors import BadShare, ConfigError, DamagedFile
from ditto.ring import carrier, carrier_bytes
from ditto.ring.prg import SEED_BYTES
from ditto.service.storage import START, VARIABLE, Altered, Records, Storage

log = structlog.get_logger()
_DTYPES = {torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"}
_HEADER_LIMIT = 16 << 20
_RECORD = 1 << 20
PIECE = 1 << 20  # of a stream
_storage: Storage | None = None


def use(storage: Storage) -> None:
    """From now on, everything in this process is stored this way."""
    global _storage
    _storage = storage


def _in_use() -> Storage:
    if _storage is None:
        raise ConfigError(f"no storage key: nothing can be stored without storage_key or {VARIABLE}")
    return _storage


class Owner(NamedTuple):
    """Whose a file is: this server's part of this sharing. And what to do about a damaged one."""

    role: str
    share_id: str
    remedy: str = "share the model again"

    def context(self, path: Path, *more: object) -> bytes:
        """What a record is bound to besides its place."""
        return json.dumps([self.role, self.share_id, path.name, *more]).encode()

    def damaged(self, path: Path, what: str) -> DamagedFile:
        return DamagedFile(f"{self.role}: {path}: {what}; {self.remedy}", peer=self.role)

    @contextlib.contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.damaged(path, f"cannot be read: {error.strerror or error}") from error


# Seeds -------------------------------------------------------------------------------------------


def save_seed(path: Path, seed: bytes, owner: Owner) -> None:
    """Write 16 bytes. Raises BadShare for a seed of another length."""
    if len(seed) != SEED_BYTES:
        raise BadShare(f"a seed of {len(seed)} bytes; expected {SEED_BYTES}")
    files.write(path, _in_use().seal(seed, owner.context(path)), files.PRIVATE)


def load_seed(path: Path, owner: Owner) -> bytes:
    """What `save_seed` wrote. Raises DamagedFile."""
    with owner.reading(path):
        data = path.read_bytes()
    seed = _unsealed(path, data, owner, "not the seed that was stored here")
    if len(seed) != SEED_BYTES:
        raise owner.damaged(path, "not the seed that was stored here")
    return seed


def _unsealed(path: Path, data: bytes, owner: Owner, otherwise: str) -> bytes:
    try:
        return _in_use().unseal(data, owner.context(path))
    except Altered:
        raise owner.damaged(path, otherwise) from None


# Another key -------------------------------------------------------------------------------------


def is_under(path: Path, owner: Owner, storage: Storage, stream: bool = False) -> bool:
    """Was a file (`stream`: of `save_stream`) written under this storage's key? Its first record tells, whatever
    follows."""
    if stream:
        try:
            next(_streamed(path, owner, storage))
        except Altered:
            return False
        return True
    with owner.reading(path), path.open("rb") as file:
        start, rest = file.read(START), file.read(8)
        if path.suffix == ".safetensors":
            sealed, records = file.read(min(int.from_bytes(rest, "little"), _HEADER_LIMIT)), 2
        else:
            sealed, records = rest + file.read(), 1
    try:
        storage.resume(start, records).unseal(sealed, owner.context(path))
    except Altered:
        return False
    return True


def reseal(path: Path, owner: Owner) -> None:
    """Write a file of one record again, under the key in use. Raises DamagedFile."""
    with owner.reading(path):
        data = path.read_bytes()
    text = _unsealed(path, data, owner, "not what was stored here")
    files.write(path, _in_use().seal(text, owner.context(path)), files.PRIVATE)


# Tensors -----------------------------------------------------------------------------------------


def save_tensors(path: Path, wires: dict[str, Wire], tensors: Iterable[torch.Tensor], owner: Owner) -> None:
    """Write ring tensors, in the order of `wires`. Only one is in memory at a time.

    After the file's start: the header, its sealed length (8 bytes) first; then each tensor's bytes in the carrier of
    its ring, little-endian, in records of 1 MiB at most.
    """
    storage = _in_use()
    start, records = storage.begin(_count(wires))
    with files.replacing(path, files.PRIVATE) as fresh, fresh.open("wb") as file:
        header = records.seal(_header(wires), owner.context(path))
        file.write(start + len(header).to_bytes(8, "little") + header)
        for (name, wire), tensor in zip(wires.items(), tensors, strict=True):
            if tuple(tensor.shape) != tuple(wire.shape):
                raise BadShare(f"{name}: a share of shape {tuple(tensor.shape)}; expected {tuple(wire.shape)}")
            data = tensor.to(carrier(wire.ring)).contiguous().reshape(-1).numpy().view(np.uint8).data
            for first, last in _pieces(wire):
                file.write(records.seal(data[first:last], _context(path, wire, name, owner)))


def load_tensors(path: Path, wires: dict[str, Wire], owner: Owner) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file that `save_tensors` wrote for the same wires. Raises DamagedFile for any other.

    Each is read when it is asked for, and handed out when all of it is known to be what was stored.
    """
    tag = _in_use().tag
    with owner.reading(path), path.open("rb") as file:
        records = _read_header(path, file, wires, owner)
        for name, wire in wires.items():
            raw, context = np.empty(carrier_bytes(wire.shape, wire.ring), np.uint8), _context(path, wire, name, owner)
            for first, last in _pieces(wire):
                try:
                    piece = records.unseal(file.read(last - first + tag), context)
                except Altered:
                    raise owner.damaged(path, f"{name} is not what was stored here") from None
                raw[first:last] = np.frombuffer(piece, np.uint8)
            yield name, torch.from_numpy(raw).view(carrier(wire.ring)).reshape(wire.shape)


def _pieces(wire: Wire) -> list[tuple[int, int]]:
    """Where each of a tensor's records begins and ends; there is at least one."""
    nbytes = carrier_bytes(wire.shape, wire.ring)
    return [(first, min(first + _RECORD, nbytes)) for first in range(0, max(nbytes, 1), _RECORD)]


def _count(wires: dict[str, Wire]) -> int:
    """Records of a file. The header is never the last one, so that it opens for another program, too, and says so."""
    return max(2, 1 + sum(len(_pieces(wire)) for wire in wires.values()))


def _context(path: Path, wire: Wire, name: str, owner: Owner) -> bytes:
    """The type is covered, too: integers of other fraction bits, or of a narrower ring, would be another value."""
    return owner.context(path, name, wire.ring, wire.frac, list(wire.shape))


def _entries(wires: dict[str, Wire]) -> dict[str, dict[str, Any]]:
    return {name: {"dtype": _DTYPES[carrier(w.ring)], "shape": list(w.shape)} for name, w in wires.items()}


def _header(wires: dict[str, Wire]) -> bytes:
    return json.dumps(_entries(wires)).encode()


def _read_header(path: Path, file: BufferedReader, wires: dict[str, Wire], owner: Owner) -> Records:
    """What opens the records after the header. Raises DamagedFile unless the file is of these wires."""
    storage, size = _in_use(), os.fstat(file.fileno()).st_size
    start, length = file.read(START), int.from_bytes(file.read(8), "little")
    begin = START + 8 + length
    if begin > size or length > _HEADER_LIMIT:
        raise owner.damaged(path, "the header is cut short")
    sealed = file.read(length)
    try:
        records = storage.resume(start, _count(wires))
        found: dict[str, Any] = dict(files.parse_json(bytes(records.unseal(sealed, owner.context(path)))))
    except (Altered, ValueError, TypeError):
        raise owner.damaged(path, "the header is not what was stored here") from None
    expected = _entries(wires)
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
    for name, wire in wires.items():
        begin += carrier_bytes(wire.shape, wire.ring) + storage.tag * len(_pieces(wire))
        if begin > size:
            raise owner.damaged(path, f"{name} is cut short")
    if begin != size:
        raise owner.damaged(path, "there is more in it than its tensors")
    return records


# Streams -----------------------------------------------------------------------------------------


def save_stream(path: Path, pieces: Iterable[bytes | memoryview], owner: Owner) -> None:
    """Write bytes whose number is not known yet as they come, in pieces of PIECE bytes but for the last one."""
    start, records = _in_use().begin(0)
    with files.replacing(path, files.PRIVATE) as fresh, fresh.open("wb") as file:
        file.write(start)
        held: bytes | memoryview = b""  # the last one is sealed as that
        for number, piece in enumerate(pieces):
            if number:
                file.write(records.seal(held, owner.context(path)))
            held = piece
        records.end()
        file.write(records.seal(held, owner.context(path)))


def load_stream(path: Path, owner: Owner) -> Generator[bytes | memoryview, None, None]:
    """What `save_stream` wrote, piece by piece. Raises DamagedFile, as late as where the damage is. The file is
    opened with the first piece, and closed with the last one or `close`."""
    try:
        yield from _streamed(path, owner, _in_use())
    except Altered:
        raise owner.damaged(path, "not what was stored here") from None


def _streamed(path: Path, owner: Owner, storage: Storage) -> Iterator[bytes | memoryview]:
    """Raises Altered."""
    with owner.reading(path), path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - START
        records = storage.resume(file.read(START), 0)
        while True:
            record = file.read(PIECE + storage.tag)
            left -= len(record)
            if left <= 0:
                records.end()
            yield records.unseal(record, owner.context(path))
            if left <= 0:
                return


# Entries -----------------------------------------------------------------------------------------


class StoredEntry(BaseModel):
    """What a server knows of one sharing, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


E = TypeVar("E", bound=StoredEntry)


def save_entry(path: Path, entry: StoredEntry, owner: Owner) -> None:
    text = json.dumps(entry.model_dump()).encode()
    files.write(path, _in_use().seal(text, owner.context(path)), files.PRIVATE)


def load_entry(path: Path, kind: type[E], owner: Owner) -> E:
    """What `save_entry` wrote. Raises DamagedFile, which does not quote the content: it may be secret."""
    with owner.reading(path):
        data = path.read_bytes()
    text = _unsealed(path, data, owner, "not the entry that was stored here")
    try:
        return kind.model_validate(files.parse_json(text))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise owner.damaged(path, wrong) from None
    except ValueError:
        raise owner.damaged(path, "no JSON document of a sharing") from None


def readable_entries(paths: Iterable[Path], kind: type[E], owner_of: Callable[[Path], Owner]) -> Iterator[E]:
    """Every entry that can be read. A damaged one must not stop the server: it is set aside as NAME.damaged."""
    for path in paths:
        try:
            yield load_entry(path, kind, owner_of(path))
        except DamagedFile as error:
            log.error("entry set aside", reason=str(error))
            with contextlib.suppress(OSError):
                path.rename(path.with_name(path.name + ".damaged"))
