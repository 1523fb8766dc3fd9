"""Certificates: names, keys' modes, and what a TLS handshake accepts."""

import datetime as dt
import getpass
import ipaddress
import json
import socket
import ssl
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from ditto.cli import app
from ditto.errors import CertificateError, UsageError
from ditto.names import ROLES, SERVERS
from ditto.net import certs as making
from ditto.net.certs import Authority, complete, init_certs, load_certificate, login_name, make_request, read_request
from ditto.net.identity import Identity, identity_of
from ditto.net.tls import load_revocations


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certs")
    init_certs(path, ["party0.example", "10.1.2.3", "dealer"], client="alice")
    return path


@pytest.mark.parametrize("role", ROLES)
def test_role_names_and_usage(certs: Path, role: str) -> None:
    cert = x509.load_pem_x509_certificate((certs / f"{role}.pem").read_bytes())
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris, hosts = names.get_values_for_type(x509.UniformResourceIdentifier), names.get_values_for_type(x509.DNSName)
    addresses = names.get_values_for_type(x509.IPAddress)
    usage = set(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    if role == "client":
        assert uris == ["ditto://client/alice"] and not hosts and not addresses
        assert usage == {ExtendedKeyUsageOID.CLIENT_AUTH}
    else:
        assert uris == [f"ditto://{role}"] and hosts == [role, "localhost", "party0.example"]
        assert addresses == [ipaddress.ip_address(a) for a in ("127.0.0.1", "10.1.2.3")]
        assert usage == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
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


# Requests ----------------------------------------------------------------------------------------

PARTY0, ALICE = Identity("party0"), Identity("client", "alice")


def test_a_key_is_made_where_it_is_used(certs: Path, tmp_path: Path) -> None:
    path, asked = make_request(PARTY0, ["party0.example", "10.9.8.7"], tmp_path)
    assert path == tmp_path / "party0.csr" and stat.S_IMODE((tmp_path / "party0.key").stat().st_mode) == 0o600
    wanted = read_request(path)
    assert wanted.identity == PARTY0 and wanted.hosts == ("localhost", "127.0.0.1", "party0.example", "10.9.8.7")
    assert wanted.fingerprint == asked.fingerprint
    certificate = Authority(certs).sign(wanted, tmp_path / "party0.pem")
    assert identity_of(certificate) == PARTY0
    (tmp_path / "ca.pem").write_bytes((certs / "ca.pem").read_bytes())
    assert handshake(tmp_path, certs) == (None, None)
    key = (tmp_path / "party0.key").read_bytes()
    assert make_request(PARTY0, [], tmp_path)[1].fingerprint == asked.fingerprint  # a renewal keeps the key
    assert (tmp_path / "party0.key").read_bytes() == key
    assert make_request(PARTY0, [], tmp_path, new_key=True)[1].fingerprint != asked.fingerprint
    assert list(certs.glob("*.csr")) == [] and not (tmp_path / "ca.key").exists()


def test_no_certificate_outlives_its_authority(certs: Path, tmp_path: Path) -> None:
    wanted = read_request(make_request(ALICE, [], tmp_path)[0])
    certificate = Authority(certs).sign(wanted, tmp_path / "alice.pem", dt.timedelta(days=100_000))
    assert certificate.not_valid_after_utc == load_certificate(certs / "ca.pem").not_valid_after_utc


def test_an_authority_that_has_expired_or_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "AUTHORITY_LIFETIME", dt.timedelta(minutes=-1))
    with pytest.raises(CertificateError, match="expired"):
        making.init_authority(tmp_path)
    monkeypatch.undo()
    making.init_authority(tmp_path)
    root = load_certificate(tmp_path / "ca.pem")
    damaged = bytearray(root.public_bytes(serialization.Encoding.DER))
    damaged[damaged.index(b"ditto authority")] ^= 1
    path = tmp_path / "ca.pem"
    path.write_bytes(x509.load_der_x509_certificate(bytes(damaged)).public_bytes(serialization.Encoding.PEM))
    with pytest.raises(CertificateError, match="damaged"):
        Authority(tmp_path)


@pytest.mark.parametrize(
    "host", ["dealer", "Dealer", "dealer.", "*", "*.example", "a b", "", "x..y", "ditto://dealer", "a/b"]
)
def test_no_host_is_taken_for_a_role(host: str, certs: Path, tmp_path: Path) -> None:
    """gRPC compares names without case and without a final dot."""
    with pytest.raises(UsageError):
        make_request(PARTY0, [host], tmp_path)
    with pytest.raises(UsageError):
        Authority(certs).issue(PARTY0, [host], tmp_path / "party0")
    assert not list(tmp_path.iterdir())


def test_a_client_has_no_hosts(certs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="carries no host"):
        make_request(ALICE, ["alice.example"], tmp_path)
    with pytest.raises(UsageError, match="carries no host"):
        Authority(certs).issue(ALICE, ["alice.example"], tmp_path / "alice")


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


EC_KEY = ec.generate_private_key(ec.SECP256R1())
REQUESTS: dict[str, tuple[list[x509.GeneralName], Any]] = {
    "no names": ([], EC_KEY),
    "no identity": ([x509.DNSName("party0")], EC_KEY),
    "two identities": ([uri("ditto://client/alice"), uri("ditto://dealer")], EC_KEY),
    "another spelling": ([uri("DITTO://dealer")], EC_KEY),
    "no such role": ([uri("ditto://root")], EC_KEY),
    "a server's name for a client": ([uri("ditto://client/alice"), x509.DNSName("dealer")], EC_KEY),
    "a host for a client": ([uri("ditto://client/alice"), x509.DNSName("alice.example")], EC_KEY),
    "another server's name": ([uri("ditto://party0"), x509.DNSName("dealer")], EC_KEY),
    "a mail address": ([uri("ditto://party0"), x509.RFC822Name("dealer")], EC_KEY),
    "another URI": ([uri("ditto://party0"), uri("https://dealer")], EC_KEY),
    "a network": ([uri("ditto://party0"), x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))], EC_KEY),
    "a weak curve": ([uri("ditto://party0")], ec.generate_private_key(ec.SECP224R1())),
    "another kind of key": ([uri("ditto://party0")], rsa.generate_private_key(65537, 1024)),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_for_what_it_may_not_have(what: str, tmp_path: Path) -> None:
    names, key = REQUESTS[what]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    path = tmp_path / "request.csr"
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    with pytest.raises(CertificateError, match=r"request|ditto"):
        read_request(path)


def test_only_what_the_authority_decides_gets_into_a_certificate(certs: Path, tmp_path: Path) -> None:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dealer")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri("ditto://client/alice")]), critical=False)
        .sign(EC_KEY, hashes.SHA256())
    )
    path = tmp_path / "request.csr"
    path.write_bytes(request.public_bytes(serialization.Encoding.PEM))
    certificate = Authority(certs).sign(read_request(path), tmp_path / "alice.pem")
    assert certificate.subject.rfc4514_string() == "CN=client/alice"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_request_of_another_key(tmp_path: Path) -> None:
    path, _ = make_request(ALICE, [], tmp_path)
    der = bytearray(x509.load_pem_x509_csr(path.read_bytes()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    path.write_bytes(x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM))
    with pytest.raises(CertificateError, match="own key"):
        read_request(path)


# Revocation, completeness, the command line ------------------------------------------------------


def test_revoking(certs: Path, tmp_path: Path) -> None:
    init_certs(tmp_path, [])
    root, authority = load_certificate(tmp_path / "ca.pem"), Authority(tmp_path)
    assert load_revocations(tmp_path / "crl.pem", root) == (1, frozenset())
    serials = set()
    for number, role in enumerate(("client", "party1"), 2):
        certificate = load_certificate(tmp_path / f"{role}.pem")
        serials.add(certificate.serial_number)
        assert authority.revoke(certificate)
        assert load_revocations(tmp_path / "crl.pem", root) == (number, serials)
        assert not authority.revoke(certificate)
    for foreign in (certs / "client.pem", tmp_path / "ca.pem"):
        with pytest.raises(CertificateError):
            authority.revoke(load_certificate(foreign))
    (tmp_path / "crl.pem").write_bytes((certs / "crl.pem").read_bytes())  # never continue another authority's
    with pytest.raises(CertificateError, match="this cluster's authority"):
        authority.revoke(load_certificate(tmp_path / "dealer.pem"))


def test_certificates_from_before_identities_are_not_complete(certs: Path, tmp_path: Path) -> None:
    init_certs(tmp_path, [])
    assert complete(tmp_path)
    key = making._load_key(tmp_path / "ca.key")
    old = (
        making._builder(
            x509.Name([]), load_certificate(tmp_path / "ca.pem").subject, EC_KEY.public_key(), dt.datetime(2100, 1, 1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("dealer")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "dealer.pem").write_bytes(old.public_bytes(serialization.Encoding.PEM))
    assert not complete(tmp_path) and not complete(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["DOMAIN\\user", "", "_apt", "x" * 65])
def test_a_login_name_that_names_no_client(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: name)
    assert login_name() == "local"
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    assert login_name() == "alice"


def ditto(*args: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["certs", *map(str, args)])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if "--json" in args else result.output


def test_the_commands(tmp_path: Path) -> None:
    ca, alice, file = tmp_path / "ca", tmp_path / "alice", tmp_path / "alice" / "client-alice.pem"
    ditto("init", "--dir", tmp_path / "alone", "--authority-only")
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {"ca.pem", "ca.key", "crl.pem"}
    ditto("init", "--dir", tmp_path / "other", "--authority-only", "--client", "x", code=2)
    ditto("init", "--dir", ca, "--client", "owner")
    assert identity_of(load_certificate(ca / "client.pem")) == Identity("client", "owner")
    asked = ditto("request", "client", "--name", "alice", "--dir", alice, "--json")
    assert asked["request"] == str(alice / "client-alice.csr") and asked["hosts"] == []
    sign = ("sign", alice / "client-alice.csr", "--authority", ca, "--out", file)
    assert "party0" in ditto(*sign, "--role", "party0", code=2)
    assert "alice" in ditto(*sign, "--role", "client", "--name", "bob", code=2)
    assert not file.exists()
    text = ditto(*sign)
    assert all(word in text for word in ("client", "alice", asked["fingerprint"]))
    signed = ditto(*sign, "--role", "client", "--name", "alice", "--json")
    assert signed["fingerprint"] == asked["fingerprint"] and signed["certificate"] == str(file)
    ditto("request", "client", "--dir", alice, code=2)  # a client has a name
    ditto("request", "dealer", "--name", "alice", "--dir", alice, code=2)  # a server has none
    issued = ditto("issue", "client", "--name", "bob", "--authority", ca, "--json")
    assert issued["certificate"] == str(ca / "client-bob.pem") and (ca / "client-bob.key").exists()
    ditto("issue", "client", "--name", "bob", "--authority", ca, code=2)
    revoked = ditto("revoke", file, "--authority", ca, "--json")
    assert revoked == {"identity": "client/alice", "serial": signed["serial"], "list": str(ca / "crl.pem"), "new": True}
    assert not ditto("revoke", file, "--authority", ca, "--json")["new"]
    for role in SERVERS:
        ditto("issue", role, "--authority", ca, "--dir", tmp_path, "--host", f"{role}.example")
