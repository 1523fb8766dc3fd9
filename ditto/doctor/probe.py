"""How far one gets on the way to a server: name, port, TLS, identity, health. Each is a step of its own, so that what
fails is named."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
from cryptography import x509

from ditto.doctor.certificates import dated
from ditto.doctor.finding import STEP_S, Finding, aside, failed, ok
from ditto.errors import CertificateError, DittoError, IntegrityError, PeerAbsent
from ditto.net.channels import tls_context
from ditto.net.config import Tls
from ditto.net.identity import identity_of
from ditto.net.tls import Pems, load_revocations
from ditto.net.transport import connect, open_channel

TRIPS = 5  # health checks of which the fastest is taken
START = "start it (`ditto cluster up` on one machine), or see its log"
# what OpenSSL says of a chain that does not hold (x509_vfy.h)
_EXPIRED, _EARLY, _FOREIGN, _NAME = (10,), (9,), (2, 18, 19, 20, 21), (62, 64)


@dataclass
class Way:
    """To a server, as one identity. `findings` of each step; `channel` once its health check was answered, and then
    `round_trip` in seconds."""

    role: str
    address: str
    tls: Tls
    me: str
    findings: list[Finding] = field(default_factory=list)
    channel: grpc.Channel | None = None
    round_trip: float = 0.0

    def go(self, pems: Pems) -> Way:
        """Step after step, until one fails. Each takes STEP_S seconds at most."""
        steps = self._steps(pems)
        for finding in steps:
            self.findings.append(finding)
        return self

    @property
    def stopped(self) -> str:
        """At which check; empty where the server answered."""
        return "" if self.channel else self.findings[-1].check

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()

    def _steps(self, pems: Pems) -> Iterator[Finding]:
        host, _, port = self.address.rpartition(":")
        host = host.strip("[]")
        try:
            found = aside(lambda: socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM))(STEP_S)
        except (OSError, TimeoutError, UnicodeError) as error:
            text = f"{host}: {getattr(error, 'strerror', '') or 'no answer from the name service'}"
            yield self._absent("name", text, "correct `peers` in the configuration, or the name service")
            return
        yield ok(self.role, "name", f"{self.address} is {', '.join(dict.fromkeys(str(a[4][0]) for a in found))}")
        began = time.perf_counter()
        try:
            tcp = socket.create_connection((host, int(port)), STEP_S)
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            why = "nothing listens there" if refused else error.strerror or f"no answer within {STEP_S:.0f} s"
            advice = START if refused else "look at firewalls, routes and the address in `peers`"
            yield self._absent("port", f"{self.address}: {why}", advice)
            return
        yield ok(self.role, "port", f"{self.address} is open, {1e3 * (time.perf_counter() - began):.1f} ms")
        with tcp:
            yield from self._handshake(tcp, pems)
        if self.findings[-1].code is None:
            yield self._health()

    def _handshake(self, tcp: socket.socket, pems: Pems) -> Iterator[Finding]:
        """TLS with this process's own pair, and what the server's certificate says."""
        try:
            with tls_context(pems).wrap_socket(tcp, server_hostname=self.role) as connection:
                shown = connection.getpeercert(binary_form=True) or b""
                version = connection.version()
                # HTTP/2 begins with the server's word, after it has looked at the caller's certificate
                refused = not _first_byte(connection)
        except ssl.SSLCertVerificationError as error:
            yield self._untrusted(error)
            return
        except ssl.SSLError as error:
            yield self._broken(error)
            return
        except OSError as error:
            text = f"{self.address}: the connection ended during the handshake ({error.strerror or 'no answer'})"
            yield self._absent("TLS", text, "see that server's log; is it a server of ditto?")
            return
        if refused:
            yield self._refused("it ends the connection once it has seen it")
            return
        yield ok(self.role, "TLS", f"{version}, both certificates accepted")
        certificate = x509.load_der_x509_certificate(shown)
        try:
            who = identity_of(certificate)
            if who.role != self.role:
                raise CertificateError(f"the server is {who}", peer=self.role)
            if self.tls.crl is not None:
                ca = x509.load_pem_x509_certificate(pems.ca)
                if certificate.serial_number in load_revocations(self.tls.crl, ca).serials:
                    raise CertificateError(f"the certificate of {self.role} was revoked", peer=self.role)
        except CertificateError as error:
            yield failed(self.role, "identity", error, "its operator needs a certificate for this role")
            return
        yield dated(self.role, "identity", str(who), certificate)

    def _health(self) -> Finding:
        try:
            channel = open_channel(self.address, self.role, self.tls, self.me)
        except DittoError as error:
            return failed(self.role, "health", error, "see the findings on this side's certificate")
        try:
            connect(channel, self.role, STEP_S / 2)
            trips, until = list[float](), time.monotonic() + STEP_S / 2
            while len(trips) < TRIPS and time.monotonic() < until:
                began = time.perf_counter()
                connect(channel, self.role, STEP_S / 2)
                trips.append(time.perf_counter() - began)
        except DittoError as error:
            channel.close()
            return failed(self.role, "health", error, "see that server's log; start it again if it hangs")
        self.channel, self.round_trip = channel, min(trips, default=STEP_S / 2)
        return ok(self.role, "health", f"serving; a call takes {1e3 * self.round_trip:.1f} ms")

    def _absent(self, check: str, text: str, advice: str) -> Finding:
        return failed(self.role, check, PeerAbsent(text, peer=self.role), advice)

    def _untrusted(self, error: ssl.SSLCertVerificationError) -> Finding:
        """Why the server's certificate does not hold; what it says is read without trust, for the message alone."""
        seen = self._shown()
        whose = f"what {self.address} shows{f' ({seen})' if seen else ''}"
        if error.verify_code in _EXPIRED:
            text, advice = f"{whose} has expired, by this machine's clock", "its operator renews it; compare clocks"
        elif error.verify_code in _EARLY:
            text, advice = f"{whose} is not valid yet, by this machine's clock", "set this machine's clock"
        elif error.verify_code in _FOREIGN:
            text = f"{whose} was signed by another authority than {self.tls.ca}"
            advice = "take ca.pem, and a certificate of one's own, from this cluster's authority"
        elif error.verify_code in _NAME:
            text, advice = f"{whose} is not for {self.role}", "are addresses in `peers` exchanged?"
        else:
            text, advice = f"{whose}: {error.verify_message}", "make its certificate anew"
        return failed(self.role, "TLS", CertificateError(text, peer=self.role), advice)

    def _shown(self) -> str:
        """Whom the server's certificate names, and until when, unchecked; nothing of this side is shown for that."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        host, _, port = self.address.rpartition(":")
        with contextlib.suppress(OSError, ValueError, DittoError):
            with (
                socket.create_connection((host.strip("[]"), int(port)), STEP_S / 2) as tcp,
                context.wrap_socket(tcp, server_hostname=self.role) as connection,
            ):
                shown = connection.getpeercert(binary_form=True) or b""
            certificate = x509.load_der_x509_certificate(shown)
            return f"{identity_of(certificate)}, until {certificate.not_valid_after_utc.date()}"
        return ""

    def _broken(self, error: ssl.SSLError) -> Finding:
        reason = (error.reason or "").replace("_", " ").lower()
        if "alert" in reason:
            return self._refused(reason)
        text = f"{self.address}: no TLS ({reason or 'unreadable'}): another program, or a relay in between"
        return failed(self.role, "TLS", IntegrityError(text, peer=self.role), "see who listens on that port")

    def _refused(self, how: str) -> Finding:
        text = f"{self.role} refuses this side's certificate: {how}"
        advice = "take a certificate from the authority that this server trusts, or renew it; its log says more"
        return failed(self.role, "TLS", CertificateError(text, peer=self.role), advice)


def _first_byte(connection: ssl.SSLSocket) -> bool:
    """Does the other end say anything, or stay, rather than hang up? Raises ssl.SSLError for an alert."""
    try:
        return bool(connection.recv(1))
    except TimeoutError:
        return True
    except ConnectionError:
        return False
