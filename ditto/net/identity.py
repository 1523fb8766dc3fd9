"""Who somebody is: a role and, for people and programs, a name, in a URI of the certificate.

`ditto://party0` is a server, `ditto://client/alice` a client. The URI is one of the certificate's subject alternative
names; there is exactly one, in exactly this spelling. What belongs to whom is decided by it, never by the common name.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from ditto.errors import CertificateError, UsageError
from ditto.names import NAME, ROLES

# What the library raises for a certificate, a request or a list that it cannot read, or only in parts.
UNREADABLE = (
    ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip
SCHEME = "ditto://"


class Identity(NamedTuple):
    """`str()` gives "client/alice" or "party0"; a server's name is empty."""

    role: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.role}/{self.name}" if self.name else self.role

    @property
    def uri(self) -> str:
        return f"{SCHEME}{self}"

    @property
    def file(self) -> str:
        """How the files of its key and its certificate are called: "client-alice", "party0"."""
        return f"{self.role}-{self.name}" if self.name else self.role


class Holder(NamedTuple):
    """Whom a certificate is for, and its serial number."""

    identity: Identity
    serial: int


def identity(role: str, name: str = "") -> Identity:
    """A client has a name, by the rule of model names; there is one server of each role. Raises UsageError."""
    if role not in ROLES:
        raise UsageError(f"{role[:100]!r} is no role: {', '.join(ROLES)}")
    if role != "client":
        if name:
            raise UsageError(f"only a client has a name, not {role}")
    elif not re.fullmatch(NAME, name):
        rule = "letters, digits, '.', '_' and '-', a letter or digit first, at most 64"
        raise UsageError(f"{name[:100]!r} is no client's name: {rule}")
    return Identity(role, name)


def parse(uri: str) -> Identity:
    """The identity that a URI spells out; raises CertificateError if it is none, or in another spelling."""
    role, _, name = uri.removeprefix(SCHEME).partition("/")
    try:
        found = identity(role, name)
    except UsageError as error:
        raise CertificateError(f"{uri[:100]!r} is no {SCHEME} identity: {error}") from None
    if found.uri != uri:
        raise CertificateError(f"{uri[:100]!r} is no identity: {found.uri} is")
    return found


def identity_in(names: x509.SubjectAlternativeName) -> Identity:
    """The one identity among a certificate's or a request's alternative names. Raises CertificateError."""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    uris = [uri for uri in uris if uri.lower().startswith("ditto:")]
    if len(uris) != 1:
        raise CertificateError(f"a certificate has one {SCHEME} name, its identity; this one has {len(uris)}")
    return parse(uris[0])


def identity_of(certificate: x509.Certificate) -> Identity:
    """Raises CertificateError for a certificate without an identity, or with more than one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except UNREADABLE:
        names = x509.SubjectAlternativeName([])
    return identity_in(names)


@functools.lru_cache(maxsize=1024)
def _holder(pem: bytes) -> Holder:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except UNREADABLE:
        raise CertificateError("the caller's certificate cannot be read") from None
    return Holder(identity_of(certificate), certificate.serial_number)


def certificate(context: grpc.ServicerContext) -> bytes:
    """The caller's, in PEM, as the TLS handshake checked it. Raises CertificateError without one."""
    pems = list(context.auth_context().get("x509_pem_cert") or ())
    if len(pems) != 1:
        raise CertificateError("the caller has no certificate")
    return bytes(pems[0])


def holder(context: grpc.ServicerContext) -> Holder:
    """The caller of this call, from the certificate that the TLS handshake checked. Raises CertificateError."""
    return _holder(certificate(context))


def caller(context: grpc.ServicerContext) -> Identity:
    """The identity of the caller of this call. Raises CertificateError."""
    return holder(context).identity
