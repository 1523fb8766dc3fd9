"""A process's own certificate, key and revocation list."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from cryptography import x509

from ditto.doctor.finding import Finding, failed, ok, warning
from ditto.errors import CertificateError
from ditto.net.config import Tls
from ditto.net.identity import identity_of
from ditto.net.tls import Pems, load_revocations, load_tls

SOON = 30  # days before the end of a certificate from which it should be renewed
RENEW = "renew it: `ditto certs request` and `ditto certs sign`, or `ditto certs issue --force` on one machine"


def days_left(certificate: x509.Certificate) -> int:
    return (certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)).days


def dated(subject: str, check: str, text: str, certificate: x509.Certificate) -> Finding:
    """Of a certificate that is valid now."""
    days, end = days_left(certificate), certificate.not_valid_after_utc.date()
    if days < SOON:
        return warning(subject, check, f"{text}; ends in {days} days, on {end}", RENEW)
    return ok(subject, check, f"{text}; valid for {days} days, until {end}")


def own(subject: str, tls: Tls, role: str) -> Iterator[Finding]:
    """Chain, role, name, dates, key and list. Nothing follows what failed."""
    try:
        pems = load_tls(tls, role)
    except CertificateError as error:
        yield failed(subject, "certificate", error, RENEW)
        return
    certificate, root = x509.load_pem_x509_certificate(pems.cert), x509.load_pem_x509_certificate(pems.ca)
    if certificate.not_valid_before_utc > dt.datetime.now(dt.UTC):
        early = CertificateError(f"{tls.cert} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only")
        yield failed(subject, "certificate", early, "set this machine's clock")
        return
    yield dated(subject, "certificate", f"{identity_of(certificate)}, signed by the authority in {tls.ca}", certificate)
    if days_left(root) < SOON:
        yield warning(subject, "authority", f"{tls.ca} ends in {days_left(root)} days", "make a new authority")
    if (mode := tls.key.stat().st_mode) & 0o077:
        yield warning(subject, "key", f"others may read {tls.key} ({mode & 0o777:03o})", f"chmod 600 {tls.key}")
    yield from revocations(subject, tls, pems, certificate)


def revocations(subject: str, tls: Tls, pems: Pems, certificate: x509.Certificate) -> Iterator[Finding]:
    if tls.crl is None:
        yield warning(subject, "revocations", "no list is named: a revoked server would be called", "set tls.crl")
        return
    try:
        found = load_revocations(tls.crl, x509.load_pem_x509_certificate(pems.ca))
    except CertificateError as error:
        yield failed(subject, "revocations", error, "fetch crl.pem anew from the authority")
        return
    if certificate.serial_number in found.serials:
        yield failed(subject, "revocations", CertificateError(f"{tls.cert} was revoked"), RENEW)
    else:
        yield ok(subject, "revocations", f"list {found.number}: {len(found.serials)} revoked, this certificate is not")
