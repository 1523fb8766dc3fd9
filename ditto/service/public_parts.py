"""What a model's owner published for those who ask it: kept at the coordinator beside the list of models.

One file a part: the length of its head (4 bytes), the head as it travels, the files' bytes. It is stored as a stream,
encrypted as all else (`stored.py`), under a name of its own that the model's entry has; so a part takes the place of an
older one in the moment in which the entry does, and what no entry names is removed at the next start.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog
from cryptography import x509
from google.protobuf.message import DecodeError

from ditto import files
from ditto.errors import IntegrityError, LimitExceeded, UsageError
from ditto.models.description import parse
from ditto.models.tokenizer_files import PUBLISHED, files_digest
from ditto.names import ID
from ditto.net.signed import LONGEST, Statement, check_signature, read_statement
from ditto.service.stored import PIECE, Owner, load_stream, save_stream
from ditto.wire import control_pb2

log = structlog.get_logger()
DIRECTORY = "public"
MB = 1 << 20


class PublicParts:
    """Any thread may call."""

    def __init__(self, data_dir: Path, most_mb: int) -> None:
        self._root, self._most_mb = data_dir / DIRECTORY, most_mb
        files.make_directory(self._root, 0o700)

    def sweep(self, named: Iterable[str]) -> None:
        """Remove what no entry names: when the server starts, and nothing is under way."""
        kept = set(named)
        for path in self._root.iterdir():
            if re.fullmatch(ID, path.name) and path.name not in kept:
                log.info("public part without a model removed")
                path.unlink(missing_ok=True)

    def receive(self, model: control_pb2.Model, head: control_pb2.PublicHead, pem: bytes, pieces: Iterator[bytes],
                owner: str) -> str:  # fmt: skip
        """Store a part as it arrives from the holder of a certificate; the name of its file.

        1. The head: signed by the key of the connection's certificate, of this model, description and owner, and of
           files that are a tokenizer's. Whoever asks checks all that again.
        2. The size that it states, against `max_public_mb`, before a byte of a file is taken.
        3. The files, to the disk as they come, against their digests.

        Raises IntegrityError, UsageError, LimitExceeded, StorageError; nothing is left then.
        """
        # 1
        if len(head.signature) > LONGEST or len(pem) > LONGEST:
            raise IntegrityError("coordinator: a signature or a certificate that is too long", peer="coordinator")
        check_signature(x509.load_pem_x509_certificate(pem), head.statement, head.signature)
        said = read_statement(head.statement)
        digest = hashlib.sha256(model.description.encode()).hexdigest()
        if (said.model, said.owner, said.description) != (model.model, owner, digest):
            raise UsageError("a public part of another model, description or owner")
        check_files(said, parse(model.description).tokenizer)
        # 2
        if said.size > self._most_mb * MB:
            raise LimitExceeded(
                f"coordinator: public files of {-(-said.size // MB):,} MB; it takes at most {self._most_mb:,} "
                "(max_public_mb)", peer="coordinator",
            )  # fmt: skip
        # 3
        kept = control_pb2.PublicHead(statement=head.statement, signature=head.signature, certificate=pem)
        name, start = secrets.token_hex(16), kept.SerializeToString()
        begin = len(start).to_bytes(4, "little") + start
        save_stream(self._root / name, _in_pieces(begin, checked(said, pieces)), _owner(name))
        return name

    def pieces(self, name: str) -> Iterator[control_pb2.PublicPiece]:
        """The head, then the files' bytes. Raises DamagedFile, as late as where the damage is."""
        path, owner = self._root / name, _owner(name)
        records = load_stream(path, owner)
        first = bytes(next(records, b""))
        begin = 4 + int.from_bytes(first[:4], "little")
        try:
            head = control_pb2.PublicHead.FromString(first[4:begin])
        except DecodeError:
            raise owner.damaged(path, "no head of a public part") from None
        yield control_pb2.PublicPiece(head=head)
        if first[begin:]:
            yield control_pb2.PublicPiece(data=first[begin:])
        for record in records:
            yield control_pb2.PublicPiece(data=bytes(record))

    def remove(self, name: str) -> None:
        """A part that no entry names any more, if there was one. What cannot be removed goes at the next start."""
        if name:
            with contextlib.suppress(OSError):
                (self._root / name).unlink(missing_ok=True)


def check_files(said: Statement, expected: str) -> None:
    """Raises UsageError unless these are a tokenizer's files, and those that the description means."""
    if unknown := said.digests.keys() - PUBLISHED:
        raise UsageError(f"no file of a tokenizer: {', '.join(sorted(unknown))}")
    if files_digest(said.digests) != expected:
        raise UsageError("these are not the files that the description means; import the model again")


def checked(said: Statement, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The files' bytes as they come, however they are cut. Raises IntegrityError where they are not what was stated."""
    rest = b""
    for file in said.files:
        found, left = hashlib.sha256(), file.size
        while left:
            rest = rest or next(pieces, b"")
            if not rest:
                raise IntegrityError(f"{file.name}: cut short")
            part, rest = rest[:left], rest[left:]
            found.update(part)
            left -= len(part)
            yield part
        if found.hexdigest() != file.sha256:
            raise IntegrityError(f"{file.name} is not what its owner signed")
    if rest or next(pieces, None) is not None:
        raise IntegrityError("more came than the files that were stated")


def _in_pieces(start: bytes, parts: Iterator[bytes]) -> Iterator[bytes]:
    """Cut anew, in pieces of PIECE bytes but for the last one."""
    held = bytearray(start)
    for part in parts:
        held += part
        while len(held) >= PIECE:
            yield bytes(held[:PIECE])
            del held[:PIECE]
    yield bytes(held)


def _owner(name: str) -> Owner:
    return Owner("coordinator", name, "its owner has to share the model again")
