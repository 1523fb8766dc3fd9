"""What a model's owner says of its public files, signed with the key of the owner's certificate.

The statement is canonical JSON: one content, one text. It names the model, its owner, the description by SHA-256 and
each file by name, size and SHA-256. The signature is by the certificate's key (ECDSA with SHA-256; RSA-PSS with SHA-256
for a key of RSA) over a prefix and the statement. The prefix keeps it apart from what the same key signs in TLS, which
begins otherwise.

Whoever passes these on can withhold them. To change one byte takes the owner's key, or the authority's.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Annotated, Literal, NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ditto.errors import CertificateError, IntegrityError
from ditto.names import NAME
from ditto.net.config import Tls
from ditto.net.identity import UNREADABLE, Identity, identity_of
from ditto.net.tls import load_revocations, load_tls, parse_certificate
from ditto.wire import control_pb2

PREFIX = b"ditto public part 1\n"
LONGEST = 16 << 10  # bytes of a statement, and of a certificate
_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SignedFile(_Said):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]{0,60}\.[a-z]{1,8}$")]
    size: Annotated[int, Field(ge=0, le=1 << 40)]  # bytes
    sha256: Sha256


class Statement(_Said):
    """Files are in the order of their names, each once."""

    format: Literal[1] = 1
    model: Annotated[str, StringConstraints(pattern=NAME)]
    owner: Annotated[str, StringConstraints(min_length=1, max_length=200)]  # an identity, as client/alice
    description: Sha256  # of its text
    files: Annotated[tuple[SignedFile, ...], Field(min_length=1, max_length=16, strict=False)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        names = [file.name for file in self.files]
        if names != sorted(set(names)):
            raise ValueError("files out of order, or one twice")
        return self

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def digests(self) -> dict[str, str]:
        return {file.name: file.sha256 for file in self.files}

    def encoded(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


def read_statement(data: bytes) -> Statement:
    """Raises IntegrityError for anything but the one encoding of a statement."""
    try:
        if len(data) > LONGEST:
            raise ValueError("too long")
        found = Statement.model_validate_json(data)
        if found.encoded() != data:
            raise ValueError("not canonical")
    except ValidationError as error:
        what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)[:3])
        raise IntegrityError(f"no statement of a model's owner: {what}") from None
    except ValueError as error:
        raise IntegrityError(f"no statement of a model's owner: {error}") from None
    return found


# The owner ---------------------------------------------------------------------------------------


def sign(statement: Statement, tls: Tls) -> control_pb2.PublicHead:
    """As the client whose files these are. Raises CertificateError for files that are none, or another's key."""
    pems = load_tls(tls, "client")
    if (mine := str(identity_of(x509.load_pem_x509_certificate(pems.cert)))) != statement.owner:
        raise CertificateError(f"{tls.cert} is for {mine}, not for {statement.owner}")
    said = statement.encoded()
    key = serialization.load_pem_private_key(pems.key, None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(PREFIX + said, ec.ECDSA(hashes.SHA256()))
    elif isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(PREFIX + said, _PSS, hashes.SHA256())
    else:
        raise CertificateError(f"{tls.key}: models are signed by a key of an elliptic curve, or of RSA")
    return control_pb2.PublicHead(statement=said, signature=signature, certificate=pems.cert)


def own_identity(tls: Tls) -> Identity:
    """Who a client is by its own certificate. Raises CertificateError."""
    return identity_of(x509.load_pem_x509_certificate(load_tls(tls, "client").cert))


# Whoever asks ------------------------------------------------------------------------------------


class Trust(NamedTuple):
    """By what an asker judges certificates: its own authority, and the serials that this one has revoked."""

    root: x509.Certificate
    revoked: frozenset[int]

    @classmethod
    def of(cls, tls: Tls) -> Trust:
        """Read from the configured files. Raises CertificateError; without a list, nothing is revoked."""
        root = parse_certificate(load_tls(tls, "client").ca, tls.ca)
        return cls(root, load_revocations(tls.crl, root).serials if tls.crl else frozenset())

    def holder(self, pem: bytes) -> tuple[Identity, x509.Certificate]:
        """Whom a client's certificate is for. Raises CertificateError unless the authority signed it, it holds now, is
        not revoked, and is a client's."""
        try:
            if len(pem) > LONGEST:
                raise ValueError
            found = x509.load_pem_x509_certificate(pem)
            begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
            found.public_key()
        except UNREADABLE:
            raise CertificateError("the owner's certificate cannot be read") from None
        try:
            found.verify_directly_issued_by(self.root)
        except Exception:  # signature or issuer, of several classes
            raise CertificateError("the owner's certificate is another authority's") from None
        who = identity_of(found)
        if who.role != "client":
            raise CertificateError(f"a model's owner is a client, not {who}")
        if found.serial_number in self.revoked:
            raise CertificateError(f"the certificate by which {who} signed was revoked: {who} shares the model again")
        if not begins <= dt.datetime.now(dt.UTC) <= ends:
            when = f"holds from {begins.date()} to {ends.date()}"
            raise CertificateError(f"the certificate by which {who} signed {when}: {who} shares the model again")
        return who, found


def check_signature(certificate: x509.Certificate, statement: bytes, signature: bytes) -> None:
    """Raises IntegrityError unless this certificate's key signed exactly this."""
    key = certificate.public_key()
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, PREFIX + statement, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, PREFIX + statement, _PSS, hashes.SHA256())
        else:
            raise InvalidSignature
    except InvalidSignature:
        raise IntegrityError("the statement on a model's files is not what the certificate's key signed") from None


def verify(head: control_pb2.PublicHead, trust: Trust) -> Statement:
    """What the owner said.

    1. The certificate is a client's, of the asker's own authority, valid now and not revoked: CertificateError.
    2. Its key signed the statement; 3. whose owner is the certificate's holder: IntegrityError.
    """
    # 1
    who, certificate = trust.holder(head.certificate)
    # 2
    check_signature(certificate, head.statement, head.signature)
    statement = read_statement(head.statement)
    # 3
    if statement.owner != str(who):
        raise IntegrityError(f"{who} signed for {statement.owner}")
    return statement
