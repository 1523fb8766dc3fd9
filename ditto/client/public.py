"""What is public of a shared model, fetched, checked and kept by whoever may ask it.

A client that may ask a model needs its description and its tokenizer's files, and neither weights nor checkpoint. The
coordinator passes them on. They are the owner's word, not the coordinator's (`ditto.net.signed`): it can withhold them,
but not change them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from ditto.client.client import Client
from ditto.client.publication import SharedModel
from ditto.client.store import StoredModel
from ditto.errors import DamagedFile, DittoError, IntegrityError, JobMismatch, UsageError
from ditto.files import replacing_directory
from ditto.models.description import Description
from ditto.models.tokenizer import Tokenizer
from ditto.models.tokenizer_files import PUBLISHED, files_digest
from ditto.net.signed import LONGEST, Statement, Trust, own_identity, verify
from ditto.wire import control_pb2

LARGEST = 256 << 20  # bytes of all files that a client takes, whatever a coordinator's limit is
RENEWALS = 3  # of a fetch during which the model was shared again
DESCRIPTION, HEAD, FILES = "description.json", "head", "tokenizer"  # in a directory of the cache


@dataclass(frozen=True)
class PublicModel:
    """A model that is not imported here: description and tokenizer, checked, in a directory of their own."""

    dir: Path
    description: Description
    owner: str
    digest: str  # SHA-256 of the description's text: the version

    @property
    def version(self) -> str:
        """As `StoredModel` has it."""
        return self.digest

    @property
    def files(self) -> Path:
        """Where its tokenizer lies."""
        return self.dir / FILES

    def tokenizer(self) -> Tokenizer:
        """Raises BadCheckpoint for one of more tokens than the model has embeddings."""
        found = Tokenizer.load(self.files)
        found.check(self.description.dimensions.vocabulary)
        return found

    @property
    def checkpoint(self) -> Path:
        """Raises UsageError: that is its owner's."""
        raise UsageError(
            f"{self.description.name} of {self.owner} is not imported here: --check, fp32 and public embeddings take "
            "its checkpoint (`ditto model import DIR`), which its owner does not publish"
        )


def served(client: Client, name: str, here: StoredModel | None, cache: Path) -> StoredModel | PublicModel:
    """What the servers hold under a name: what is imported here if it is the same version, else its public part.

    Versions are told apart by the description, which holds for the tokenizer's files, too. What is imported here and is
    another version is never asked with. Raises JobMismatch where it is the asker's own model, imported anew and not
    shared since; UnknownModel, and what `fetch` raises.
    """
    shared = client.shared(name)
    if here is not None and here.description == shared.description:
        return here
    if here is not None and shared.owner == str(own_identity(client.tls)):
        raise JobMismatch(f"what is shared as {name} is not what is imported here under this name; share it again")
    return fetch(client, name, cache, shared)


def fetch(client: Client, name: str, cache: Path, shared: SharedModel | None = None) -> PublicModel:
    """The public part of a shared model, from `cache` or from the coordinator.

    1. The coordinator says which description serves now, and whose it is (`shared`, if it has just said so).
    2. What was fetched for that description before is checked as if it came now: certificates are revoked, and disks
       fail. What does not pass is fetched anew.
    3. Fetched, a part has to be of that description and owner, and pass (`_said`); its files are held against their
       digests as they come. Only a whole part takes its place in the cache.

    Nothing is read of a file that was not checked. If the model is shared again meanwhile, all is done again. Raises
    UnknownModel, NotAllowed; ClusterError for a model that was shared without one; IntegrityError or CertificateError
    for what is not the owner's word.
    """
    trust = Trust.of(client.tls)
    # 1
    shared = shared or client.shared(name)
    for renewals in range(RENEWALS, -1, -1):
        # 2
        place = cache / shared.digest
        with contextlib.suppress(DittoError, OSError):
            return _kept(place, shared, trust)
        # 3
        try:
            _store(client.public_part(name), place, shared, trust)
            return _kept(place, shared, trust)
        except (IntegrityError, DamagedFile):
            before, shared = shared, client.shared(name)
            if shared == before or not renewals:
                raise
    raise AssertionError("the loop returns or raises")


def _said(head: control_pb2.PublicHead, shared: SharedModel, trust: Trust) -> Statement:
    """What the owner said of this model, the files included that the description means. Raises IntegrityError,
    CertificateError."""
    said = verify(head, trust)
    if said.model != shared.name:
        raise IntegrityError(f"{said.owner} signed this for {said.model}, not for {shared.name}")
    if said.owner != shared.owner:
        raise IntegrityError(f"the coordinator says that {shared.name} is of {shared.owner}; {said.owner} signed it")
    if said.description != shared.digest:
        raise IntegrityError(
            f"the description of {shared.name} that the coordinator gives is not the one that {said.owner} signed"
        )
    if said.digests.keys() - PUBLISHED or files_digest(said.digests) != shared.description.tokenizer:
        raise IntegrityError(f"these are not the files that the description of {shared.name} means")
    if said.size > LARGEST:
        raise IntegrityError(f"public files of {said.size:,} bytes: {LARGEST:,} at most")
    return said


def _store(pieces: Iterator[control_pb2.PublicPiece], place: Path, shared: SharedModel, trust: Trust) -> None:
    """Raises what the call raises, and IntegrityError, CertificateError, StorageError."""
    head = next(pieces, control_pb2.PublicPiece()).head
    said = _said(head, shared, trust)
    with replacing_directory(place) as fresh:
        (fresh / FILES).mkdir()
        rest = b""
        for file in said.files:
            found, left = hashlib.sha256(), file.size
            with (fresh / FILES / file.name).open("wb") as out:
                while left:
                    rest = rest or next(pieces, control_pb2.PublicPiece()).data
                    if not rest:
                        raise IntegrityError(f"{file.name} of {shared.name}: cut short")
                    part, rest = rest[:left], rest[left:]
                    found.update(part)
                    out.write(part)
                    left -= len(part)
            if found.hexdigest() != file.sha256:
                raise IntegrityError(f"{file.name} of {shared.name} is not what {said.owner} signed")
        (fresh / DESCRIPTION).write_text(shared.text, encoding="utf-8")
        (fresh / HEAD).write_bytes(head.SerializeToString())


def _kept(place: Path, shared: SharedModel, trust: Trust) -> PublicModel:
    """What the cache has, checked anew. Raises OSError, DamagedFile, IntegrityError, CertificateError."""
    try:
        head = control_pb2.PublicHead.FromString(_read(place / HEAD, 4 * LONGEST))
        text = _read(place / DESCRIPTION, LARGEST).decode()
    except (DecodeError, UnicodeDecodeError):
        raise DamagedFile(f"{place}: cannot be read") from None
    said = _said(head, shared, trust)
    if text != shared.text:
        raise DamagedFile(f"{place / DESCRIPTION}: not what was fetched")
    if {path.name for path in (place / FILES).iterdir()} != said.digests.keys():
        raise DamagedFile(f"{place / FILES}: not the files that were fetched")
    for file in said.files:
        data = _read(place / FILES / file.name, file.size)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise DamagedFile(f"{place / FILES / file.name}: not what was fetched")
    return PublicModel(place, shared.description, shared.owner, shared.digest)


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DamagedFile(f"{path}: longer than it was")
    return data
