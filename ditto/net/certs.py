"""Certificates of a cluster: one authority, one certificate for each server, and one for each client.

A certificate carries its holder's identity as a URI (`ditto.net.identity`), which servers check on every call. A
server's also carries its role as a DNS name, by which a caller knows that it reached the dealer and not some other
holder of a certificate; a client's carries no DNS name or address at all, and may not be used by a server.

A key is best made where it is used, with a request that the authority signs: `make_request` there, `sign` here. `issue`
makes both in one place, for one machine. The authority's key stays in its directory and is not needed by any process.
"""

from __future__ import annotations

import datetime as dt
import getpass
import ipaddress
import re
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ditto import files
from ditto.errors import CertificateError, UsageError
from ditto.names import NAME, ROLES, SERVERS
from ditto.net.identity import UNREADABLE, Identity, identity, identity_in, identity_of
from ditto.net.tls import load_revocations, parse_certificate, refuse_expired

LOCAL = ("localhost", "127.0.0.1")
LIFETIME = dt.timedelta(days=365)
AUTHORITY_LIFETIME = dt.timedelta(days=3650)
# A host name that nobody can take for a role: no wildcard, no final dot, no empty label.
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.IGNORECASE | re.ASCII)


class Wanted(NamedTuple):
    """What a certificate is for: checked, ready to be signed."""

    identity: Identity
    hosts: tuple[str, ...]
    key: ec.EllipticCurvePublicKey

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)


def login_name() -> str:
    """This user's, where it may name a client, else "local"."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a user without an entry, as in containers
        name = ""
    return name if re.fullmatch(NAME, name) else "local"


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the public key: the same for a request and its certificate, to be compared by other means."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex(":", 2)


# Everything for one machine ----------------------------------------------------------------------


def init_certs(dir: Path, hosts: list[str], lifetime: dt.timedelta = LIFETIME, client: str = "local") -> None:
    """Write the authority (`ca.pem`, `ca.key`, an empty `crl.pem`) and a pair `ROLE.pem`, `ROLE.key` for each role.

    Servers' certificates are valid for localhost and `hosts`; `client.pem` is that of `client`. A role's name among
    `hosts` is left out. Whatever stands there is replaced as a whole: certificates of an older authority would not
    match. Raises UsageError for what is no host name or no client's name.
    """
    holder = identity("client", client)
    everywhere = check_hosts([host for host in hosts if host not in ROLES])
    authority = init_authority(dir)
    for role in SERVERS:
        authority.issue(identity(role), everywhere, dir / role, lifetime)
    authority.issue(holder, (), dir / "client", lifetime)


def init_authority(dir: Path) -> Authority:
    """Write `ca.pem`, `ca.key` and an empty `crl.pem`: a new authority, which has signed nothing yet."""
    files.make_directory(dir, 0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ditto authority")])
    ca = (
        _builder(name, name, key.public_key(), dt.datetime.now(dt.UTC) + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_pair(dir, "ca", ca, key)
    authority = Authority(dir)
    authority.publish([])
    return authority


def complete(dir: Path) -> bool:
    """Whether `init_certs` has been here, and none of its certificates is from before there were identities."""
    try:
        return all(identity_of(load_certificate(dir / f"{role}.pem")).role == role for role in ROLES) and all(
            (dir / name).exists() for name in ("ca.pem", "crl.pem")
        )
    except CertificateError:
        return False


# Where the key is used ---------------------------------------------------------------------------


def check_hosts(hosts: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Names and addresses of a server, each once, localhost first.

    Raises UsageError for what is none, and for a role's name in any spelling: by it a caller knows a server.
    """
    for host in hosts:
        if host.lower() in ROLES:
            raise UsageError(f"{host} is a role: no certificate may carry another role's name")
        if not _HOST.fullmatch(host) and not _is_address(host):
            raise UsageError(f"{host[:100]!r} is no host name and no address")
    return tuple(dict.fromkeys((*LOCAL, *hosts)))


def make_request(who: Identity, hosts: list[str], dir: Path, *, new_key: bool = False) -> tuple[Path, Wanted]:
    """Write `NAME.key` (mode 0600; one that stands there is kept, unless `new_key`) and the request `NAME.csr` for it.

    Returns the request's path and what it asks for. Raises UsageError for hosts of a client, or bad ones.
    """
    wanted_hosts = _hosts_of(who, hosts)
    files.make_directory(dir, 0o700)
    path = dir / f"{who.file}.key"
    if path.exists() and not new_key:
        key = _load_key(path)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        files.write(path, _private_pem(key), files.PRIVATE)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(who.uri), *map(_general_name, wanted_hosts)])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(who))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    out = dir / f"{who.file}.csr"
    files.write(out, request.public_bytes(serialization.Encoding.PEM))
    return out, Wanted(who, wanted_hosts, key.public_key())


def read_request(path: Path) -> Wanted:
    """What a signing request asks for. Raises CertificateError where it may not have it, or is no request.

    Identity and hosts come from its alternative names; nothing else in it gets into a certificate.
    """
    try:
        request = x509.load_pem_x509_csr(_read(path))
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        valid, key = request.is_signature_valid, request.public_key()
    except UNREADABLE:
        raise CertificateError(f"{path} is not a signing request with an identity") from None
    if not valid:
        raise CertificateError(f"{path}: the request was not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        raise CertificateError(f"{path}: the key must be an elliptic curve's, P-256 or P-384")
    try:
        who = identity_in(names)
        return Wanted(who, _hosts_of(who, _hosts_in(names, who)), key)
    except (CertificateError, UsageError) as error:
        raise CertificateError(f"{path}: {error}") from None


def _hosts_in(names: x509.SubjectAlternativeName, who: Identity) -> list[str]:
    hosts = []
    for name in names:
        if isinstance(name, x509.DNSName | x509.IPAddress):
            hosts.append(str(name.value))
        elif name.value != who.uri:
            raise CertificateError("the request has a name that is neither a host nor an identity")
    return hosts


# The authority -----------------------------------------------------------------------------------


class Authority:
    """`ca.pem`, `ca.key` and `crl.pem` in one directory: signs certificates and the list of revoked ones."""

    def __init__(self, dir: Path) -> None:
        self._crl = dir / "crl.pem"
        self._root, self._key = load_certificate(dir / "ca.pem"), _load_key(dir / "ca.key")
        if self._key.public_key() != self._root.public_key():
            raise CertificateError(f"{dir / 'ca.key'} is not the key of ca.pem")
        try:
            self._root.verify_directly_issued_by(self._root)
            self._id = self._root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except (*UNREADABLE, InvalidSignature, TypeError):
            raise CertificateError(f"{dir / 'ca.pem'} is no authority of `ditto certs`, or damaged") from None
        refuse_expired(self._root, dir / "ca.pem")

    def sign(self, wanted: Wanted, out: Path, lifetime: dt.timedelta = LIFETIME) -> x509.Certificate:
        """Write a certificate for what was read from a request; never longer valid than the authority itself."""
        certificate = self._certificate(wanted, lifetime)
        files.write(out, certificate.public_bytes(serialization.Encoding.PEM))
        return certificate

    def issue(
        self, who: Identity, hosts: list[str] | tuple[str, ...], stem: Path, lifetime: dt.timedelta = LIFETIME
    ) -> tuple[Wanted, x509.Certificate]:
        """A new key and its certificate, `STEM.key` and `STEM.pem`."""
        key = ec.generate_private_key(ec.SECP256R1())
        wanted = Wanted(who, _hosts_of(who, hosts), key.public_key())
        certificate = self._certificate(wanted, lifetime)
        _write_pair(stem.parent, stem.name, certificate, key)
        return wanted, certificate

    def revoke(self, certificate: x509.Certificate) -> bool:
        """Put a certificate of this authority on the list; False if it stands there. Raises CertificateError."""
        identity_of(certificate)  # the authority's own has none
        try:
            certificate.verify_directly_issued_by(self._root)
        except Exception:  # signature or issuer, of several classes
            raise CertificateError("this certificate is another authority's") from None
        if certificate.serial_number in load_revocations(self._crl, self._root).serials:
            return False
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
        known = x509.load_pem_x509_crl(_read(self._crl))
        self.publish([*known, entry.revocation_date(dt.datetime.now(dt.UTC)).build()])
        return True

    def publish(self, entries: list[x509.RevokedCertificate]) -> None:
        """Sign these entries as the next list; the empty one is the first."""
        number = load_revocations(self._crl, self._root).number + 1 if entries else 1
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._root.subject)
            .last_update(now - dt.timedelta(minutes=5))
            .next_update(self._root.not_valid_after_utc)  # lists are pushed, nobody waits for the next
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for entry in entries:
            builder = builder.add_revoked_certificate(entry)
        files.write(self._crl, builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _certificate(self, wanted: Wanted, lifetime: dt.timedelta) -> x509.Certificate:
        who, root = wanted.identity, self._root
        until = min(dt.datetime.now(dt.UTC) + lifetime, root.not_valid_after_utc)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(who.uri)]
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if who.role in SERVERS:  # servers call each other, too, and each its own health check
            names += map(_general_name, (who.role, *wanted.hosts))
            usage.append(ExtendedKeyUsageOID.SERVER_AUTH)
        return (
            _builder(_subject(who), root.subject, wanted.key, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(wanted.key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._id), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def load_certificate(path: Path) -> x509.Certificate:
    return parse_certificate(_read(path), path)


# Pieces ------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {error.strerror}") from None


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path} is not the PEM key of an elliptic curve, without a password")
    return key


def _hosts_of(who: Identity, hosts: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    if who.role in SERVERS:
        return check_hosts(hosts)
    if hosts:
        raise UsageError(f"{who} is a client: its certificate carries no host")
    return ()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def _general_name(host: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(host)) if _is_address(host) else x509.DNSName(host)


def _subject(who: Identity) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(who)[:64])])  # for readers; the URI is what counts


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5))
        .not_valid_after(until)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates, key_cert_sign=sign_certificates, crl_sign=sign_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_pair(dir: Path, name: str, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    files.write(dir / f"{name}.key", _private_pem(key), files.PRIVATE)
    files.write(dir / f"{name}.pem", cert.public_bytes(serialization.Encoding.PEM))
