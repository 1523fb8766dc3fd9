"""Certificates: names, keys' modes, and what a TLS handshake accepts."""

import ipaddress
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ditto.names import ROLES
from ditto.net.certs import init_certs


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certs")
    init_certs(path, ["party0.example", "10.1.2.3", "dealer"])
    return path


@pytest.mark.parametrize("role", ROLES)
def test_role_names_and_usage(certs: Path, role: str) -> None:
    cert = x509.load_pem_x509_certificate((certs / f"{role}.pem").read_bytes())
    (common_name,) = cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common_name.value == role
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [role, "localhost", "party0.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(a) for a in ("127.0.0.1", "10.1.2.3")]
    usage = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    ca = x509.load_pem_x509_certificate((certs / "ca.pem").read_bytes())
    cert.verify_directly_issued_by(ca)


@pytest.mark.parametrize("name", ["ca", *ROLES])
def test_keys_are_private(certs: Path, name: str) -> None:
    assert stat.S_IMODE((certs / f"{name}.key").stat().st_mode) == 0o600
    assert not list(certs.glob("*.new"))


def handshake(server: Path, client: Path) -> tuple[str | None, str | None]:
    """What went wrong at the server and at the client, None for nothing."""
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here.verify_mode = ssl.CERT_REQUIRED
    there = ssl.create_default_context(cafile=str(client / "ca.pem"))
    for context, certs, role in ((here, server, "party0"), (there, client, "client")):
        context.load_verify_locations(certs / "ca.pem")
        context.load_cert_chain(certs / f"{role}.pem", certs / f"{role}.key")
    errors: dict[str, str] = {}
    a, b = socket.socketpair()

    def serve() -> None:
        try:
            with here.wrap_socket(a, server_side=True) as tls:
                tls.sendall(b"hello")
        except OSError as error:
            errors["server"] = str(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with there.wrap_socket(b, server_hostname="localhost") as tls:
            assert tls.recv(5) == b"hello"
    except OSError as error:
        errors["client"] = str(error)
    thread.join(10)
    return errors.get("server"), errors.get("client")


def test_mutual_tls(certs: Path) -> None:
    assert handshake(certs, certs) == (None, None)


def test_another_authority_is_refused(certs: Path, tmp_path: Path) -> None:
    init_certs(tmp_path, [])
    server, client = handshake(certs, tmp_path)
    assert client is not None and "CERTIFICATE_VERIFY_FAILED" in client
    assert server is not None


def test_again_replaces_everything(tmp_path: Path) -> None:
    init_certs(tmp_path, [])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    init_certs(tmp_path, [])
    assert all(p.read_bytes() != before[p.name] for p in tmp_path.iterdir())
    assert handshake(tmp_path, tmp_path) == (None, None)
