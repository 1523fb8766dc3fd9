"""The certificate files of one process: read, checked, and read again when they change.

A process needs no restart for a new certificate. Files are looked at (not read) before each handshake of a server and
each call of a client; what has changed is read and checked as at the start, and what does not pass leaves the last good
files in force, with a line in the log.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ditto.errors import CertificateError
from ditto.net.config import Tls
from ditto.net.identity import UNREADABLE, identity_of

log = structlog.get_logger()
T = TypeVar("T")


class Pems(NamedTuple):
    """PEM bytes: the authority, and a key with its certificate."""

    ca: bytes
    key: bytes
    cert: bytes


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {error.strerror} (run `ditto certs init`)") from None


def parse_certificate(pem: bytes, path: Path) -> x509.Certificate:
    """The certificate in a file, its key and its dates readable. Raises CertificateError."""
    try:
        found = x509.load_pem_x509_certificate(pem)
        found.public_key(), found.not_valid_after_utc
    except UNREADABLE:
        raise CertificateError(f"{path} is not a PEM certificate") from None
    return found


def refuse_expired(certificate: x509.Certificate, path: Path) -> None:
    """Raises CertificateError."""
    if certificate.not_valid_after_utc < dt.datetime.now(dt.UTC):
        day = certificate.not_valid_after_utc.date()
        raise CertificateError(f"{path} expired on {day} (renew it: `ditto certs --help`)")


def load_tls(tls: Tls, role: str) -> Pems:
    """The files, after checking that this authority signed this certificate for this role, and that the key is its own.

    Raises CertificateError; also for a certificate without an identity, with which nobody could be told from others.
    """
    ca, key, cert = _read(tls.ca), _read(tls.key), _read(tls.cert)
    own, root = parse_certificate(cert, tls.cert), parse_certificate(ca, tls.ca)
    try:
        own.verify_directly_issued_by(root)
    except Exception:  # signature or issuer, of several classes
        raise CertificateError(f"{tls.cert} was not signed by the CA in {tls.ca}") from None
    try:
        identity = identity_of(own)
    except CertificateError as error:
        raise CertificateError(f"{tls.cert}: {error} (earlier versions had none: make it anew)") from None
    if identity.role != role:
        raise CertificateError(f"{tls.cert} is for {identity}, not for {role}")
    for path, certificate in ((tls.cert, own), (tls.ca, root)):
        refuse_expired(certificate, path)
    try:
        secret = serialization.load_pem_private_key(key, None)
    except (*UNREADABLE, TypeError):
        raise CertificateError(f"{tls.key} is not a PEM key without a password") from None
    if secret.public_key() != own.public_key():
        raise CertificateError(f"{tls.key} is not the key of {tls.cert}")
    return Pems(ca, key, cert)


class Watched(Generic[T]):
    """What some files hold, loaded again when one of them changes. `load` raises CertificateError for what is bad."""

    def __init__(self, paths: tuple[Path, ...], load: Callable[[], T]) -> None:
        self._paths, self._load, self._lock = paths, load, threading.Lock()
        self._state = self._look()  # before they are read: a change in between is seen next time
        self._value = load()

    def _look(self) -> list[tuple[int, ...]]:
        states: list[tuple[int, ...]] = []
        for path in self._paths:
            try:
                found = path.stat()
                states.append((found.st_ino, found.st_size, found.st_mtime_ns))
            except OSError:
                states.append(())
        return states

    def current(self) -> T:
        """The last good value; the same object as long as nothing changes."""
        with self._lock:
            state = self._look()
            if state != self._state:
                self._state = state
                try:
                    self._value = self._load()
                    log.info("certificate files read again", files=[str(path) for path in self._paths])
                except CertificateError as error:
                    log.warning("changed certificate files refused, the last good ones stay", reason=str(error))
            return self._value


def watch(tls: Tls, role: str) -> Watched[Pems]:
    """The files of `load_tls`, kept up to date. Raises CertificateError if they are bad now."""
    return Watched((tls.ca, tls.key, tls.cert), lambda: load_tls(tls, role))


def server_credentials(files: Watched[Pems]) -> grpc.ServerCredentials:
    """Mutual TLS with the files as they are at each handshake; connections that stand go on."""

    def configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pems.key, pems.cert)], root_certificates=pems.ca)

    seen = files.current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        if (pems := files.current()) is seen:
            return None  # what is in force stays
        seen = pems
        return configuration(pems)

    return grpc.dynamic_ssl_server_credentials(
        configuration(seen),
        changed,  # type: ignore[arg-type]  # the stubs do not know that None is allowed
        require_client_authentication=True,
    )


# Revocation --------------------------------------------------------------------------------------


class RevocationList(NamedTuple):
    """A checked list of the authority: its number, which only grows, and the serials of certificates that end early."""

    number: int
    serials: frozenset[int]


def load_revocations(path: Path, root: x509.Certificate) -> RevocationList:
    """The list in `path`, after checking that `root` signed it. Raises CertificateError."""
    try:
        crl = x509.load_pem_x509_crl(_read(path))
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        ours = crl.issuer == root.subject and crl.is_signature_valid(root.public_key())  # type: ignore[arg-type]
        serials = frozenset(entry.serial_number for entry in crl)
    except (*UNREADABLE, TypeError):
        raise CertificateError(f"{path} is not a revocation list in PEM") from None
    if not ours:
        raise CertificateError(f"{path} was not signed by this cluster's authority")
    return RevocationList(number, serials)


class Revocations:
    """The list that a server goes by. A damaged, foreign, older or missing file leaves the last good list in force."""

    def __init__(self, path: Path, tls: Tls, files: Watched[Pems]) -> None:
        self._path, self._files = path, files
        self._last = (b"", -1)  # the authority and the number of the list in force
        # With another authority's certificates comes that one's list, whichever is written first.
        self._watched = Watched((path, tls.ca, tls.key, tls.cert), self._load)

    def _load(self) -> frozenset[int]:
        ca = self._files.current().ca
        found = load_revocations(self._path, x509.load_pem_x509_certificate(ca))
        if ca == self._last[0] and found.number < self._last[1]:
            raise CertificateError(f"{self._path} is list {found.number}, older than list {self._last[1]}")
        self._last = (ca, found.number)
        return found.serials

    def __contains__(self, serial: object) -> bool:
        return serial in self._watched.current()
