"""A shared model as the coordinator has it: what is listed, and how its owner registers it with what is public."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ditto.errors import UsageError
from ditto.models.description import Description, parse
from ditto.models.tokenizer_files import digest_of_files
from ditto.net.config import Tls
from ditto.net.signed import SignedFile, Statement, own_identity, sign
from ditto.net.transport import CHUNK
from ditto.wire import control_pb2


@dataclass(frozen=True)
class SharedModel:
    """A model as the coordinator lists it. Its word on the owner is for display: what is asked, and of whom, the
    parties check against each job's terms."""

    text: str  # of its description
    owner: str

    @property
    def description(self) -> Description:
        """Raises BadDescription, VersionMismatch."""
        return parse(self.text)

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def digest(self) -> str:
        """SHA-256 of the description, in hexadecimal digits: by it versions are told apart."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def with_files(description: Description, files: Mapping[str, bytes]) -> Description:
    """A description that means these files of a tokenizer (`ditto.models.tokenizer_files.published`)."""
    return description.model_copy(update={"tokenizer": digest_of_files(files)})


@dataclass(frozen=True)
class Registration:
    """A model as its owner's client registers it; without files, nobody can ask it who did not import it."""

    name: str
    text: str
    files: Mapping[str, bytes]
    head: control_pb2.PublicHead | None

    @classmethod
    def of(cls, description: Description, files: Mapping[str, bytes], tls: Tls) -> Registration:
        """Signed with the client's key. Raises UsageError where the description means other files, CertificateError
        for a key that signs nothing."""
        text, head = description.text(), None
        if files:
            if digest_of_files(files) != description.tokenizer:
                raise UsageError(f"the description of {description.name} means other files; import the model again")
            head = sign(_statement(description.name, text, files, tls), tls)
        return cls(description.name, text, files, head)

    def requests(self, share_id: str) -> Iterator[control_pb2.RegisterModelRequest]:
        """As it travels. The certificate is the connection's."""
        model = control_pb2.Model(model=self.name, share_id=share_id, description=self.text)
        if self.head is None:
            yield control_pb2.RegisterModelRequest(model=model)
            return
        head = control_pb2.PublicHead(statement=self.head.statement, signature=self.head.signature)
        yield control_pb2.RegisterModelRequest(model=model, public=head)
        for _, data in sorted(self.files.items()):
            for at in range(0, len(data), CHUNK):
                yield control_pb2.RegisterModelRequest(data=data[at : at + CHUNK])


def _statement(name: str, text: str, files: Mapping[str, bytes], tls: Tls) -> Statement:
    listed = tuple(
        SignedFile(name=file, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for file, data in sorted(files.items())
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Statement(model=name, owner=str(own_identity(tls)), description=digest, files=listed)
