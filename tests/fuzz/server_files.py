"""Files of a server: its configuration, its certificates and lists, what it stored."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID

from ditto.engine.plan import Plan
from ditto.engine.program import Wire
from ditto.errors import DittoError
from ditto.models.compiled import weights_of
from ditto.net import certs
from ditto.net.config import ClientConfig, CoordinatorConfig, DealerConfig, PartyConfig, Tls, load_config
from ditto.net.emulation import network
from ditto.net.identity import identity_of
from ditto.net.tls import load_revocations, load_tls
from ditto.service import model_store, stored
from ditto.service.dealer_service import Entry as DealerEntry
from ditto.service.model_store import ModelStore
from ditto.service.registered import Registered, RegisteredModels
from ditto.service.stock import Header, Stock
from ditto.service.storage import Storage, storage_of
from ditto.service.stored import Owner
from fuzz.model_files import named, place
from fuzz.mutate import YAML, as_json, change, flips
from fuzz.source import Source, pack, unpack
from fuzz.target import Finding, Target
from fuzz.world import MODEL, OWNER, SHARE, directory, model, pem
from parties import health

# Configuration -------------------------------------------------------------------------------------

_KINDS: tuple[tuple[Any, str], ...] = (
    (PartyConfig, "party0"), (DealerConfig, "dealer"), (CoordinatorConfig, "coordinator"), (ClientConfig, "client"),
)  # fmt: skip


def _yaml(source: Source, document: Any) -> bytes:
    if source.one_in(2):
        return flips(source, yaml.safe_dump(document, sort_keys=False).encode(), YAML)
    try:
        return yaml.safe_dump(change(source, document), sort_keys=False, allow_unicode=source.one_in(2)).encode()
    except (UnicodeEncodeError, RecursionError):
        return b""


def _build_config(source: Source) -> bytes:
    number = source.below(len(_KINDS))
    document: dict[str, Any] = {
        "role": _KINDS[number][1], "peers": {"party0": "127.0.0.1:1", "dealer": "[::1]:2"},
        "tls": {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}, "threads": 1, "connect_timeout_s": 5.0,
        "data_dir": "data", "network": {"name": "mine", "bandwidth_mbps": 10.0, "rtt_ms": 1.0},
    }  # fmt: skip
    if number != 3:
        document |= {"listen": "127.0.0.1:1", "metrics": "127.0.0.1:9", "step_timeout_s": 2.0, "max_batch": 3}
    if number == 2:
        del document["network"]
    return pack([bytes([number]), _yaml(source, document)])


def _configure(given: bytes) -> None:
    number, text = (*unpack(given), b"", b"")[:2]
    path = place("config", {"ditto.yaml": text}) / "ditto.yaml"
    config = load_config(path, _KINDS[(number or b"\0")[0] % 4][0])
    if not 0 < config.connect_timeout_s < 1e9:
        raise Finding(f"a timeout of {config.connect_timeout_s} s")


def _probe(given: bytes) -> None:
    """The health check of containers: no server is asked."""
    health.target(place("probe", {"ditto.yaml": (*unpack(given), b"", b"")[1]}) / "ditto.yaml")


def _profile(given: bytes) -> None:
    network(place("network", {"mine.yaml": given}) / "mine.yaml")


# Certificates --------------------------------------------------------------------------------------


@cache
def _authority() -> Path:
    pem(OWNER)
    return directory() / "certs"


def _armored(label: str, der: bytes) -> bytes:
    lines = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{lines}-----END {label}-----\n".encode()


def _der(text: bytes) -> bytes:
    return base64.b64decode(b"".join(text.split(b"\n")[1:-2]))


@cache
def _key() -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(12345, ec.SECP256R1())


def _names(source: Source) -> x509.UnrecognizedExtension:
    """Alternative names, changed within a valid signature."""
    hosts = [x509.DNSName("localhost"), x509.DNSName("party0"), x509.IPAddress(_ip())]
    texts = ("ditto://party0", "ditto://client/alice", "DITTO://party0", "ditto://client/", "ditto://party0/", "x:")
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(source.choice(texts)), *hosts]
    others = (x509.RFC822Name("a@b"), x509.RegisteredID(x509.ObjectIdentifier("1.2.3")), names[0], names[1])
    if source.one_in(2):
        names.append(source.choice(others))
    names = names[: 1 + source.below(len(names))]
    der = x509.SubjectAlternativeName(names).public_bytes()
    der = flips(source, der) if source.one_in(2) else der
    return x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, der)


def _ip() -> Any:
    import ipaddress

    return ipaddress.ip_address("127.0.0.1")


def _oid(source: Source) -> x509.UnrecognizedExtension:
    oids = (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.NAME_CONSTRAINTS)
    return x509.UnrecognizedExtension(source.choice(oids), source.blob())


def _build_request(source: Source) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(_names(source), critical=False)
    if source.one_in(4):
        builder = builder.add_extension(_oid(source), critical=source.one_in(2))
    der = builder.sign(_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    return _maybe_damaged(source, "CERTIFICATE REQUEST", der)


def _maybe_damaged(source: Source, label: str, der: bytes) -> bytes:
    if source.one_in(3):
        der = flips(source, der)
    armored = _armored(label, der)
    return flips(source, armored) if source.one_in(4) else armored


def _sign(given: bytes) -> None:
    path = place("request", {"a.csr": given}) / "a.csr"
    wanted = certs.read_request(path)
    signed = certs.Authority(_authority()).sign(wanted, path.with_name("a.pem"), dt.timedelta(days=1))
    if identity_of(signed) != wanted.identity:
        raise Finding(f"signed for {identity_of(signed)}, not {wanted.identity}")


def _build_certificate(source: Source) -> bytes:
    root = x509.load_pem_x509_certificate((_authority() / "ca.pem").read_bytes())
    authority = serialization.load_pem_private_key((_authority() / "ca.key").read_bytes(), None)
    now = dt.datetime(2020, 1, 1)
    builder = (
        x509.CertificateBuilder().subject_name(root.subject).issuer_name(root.subject).public_key(_key().public_key())
        .serial_number(1 + source.below(250)).not_valid_before(now).not_valid_after(now + dt.timedelta(days=36500))
        .add_extension(_names(source), critical=False)
    )  # fmt: skip
    if source.one_in(4):
        builder = builder.add_extension(_oid(source), critical=False)
    der = builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.DER)  # type: ignore[arg-type]
    key = _key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    ca = (_authority() / "ca.pem").read_bytes()
    files = [_maybe_damaged(source, "CERTIFICATE", der), key, ca]
    if source.one_in(3):
        at = source.below(3)
        files[at] = flips(source, files[at])
    return pack(files)


def _certificate(given: bytes) -> None:
    """A process's own files; and the certificate as one to revoke."""
    home = place("certificate", named(("a.pem", "a.key", "ca.pem"), given))
    tls = Tls(ca=home / "ca.pem", cert=home / "a.pem", key=home / "a.key")
    with contextlib.suppress(DittoError):
        load_tls(tls, "party0")
    found = certs.load_certificate(home / "a.pem")
    try:
        certs.Authority(_authority_copy()).revoke(found)
    finally:
        identity_of(found)


def _authority_copy() -> Path:
    names = ("ca.pem", "ca.key", "crl.pem")
    return place("authority", {name: (_authority() / name).read_bytes() for name in names})


def _build_authority(source: Source) -> bytes:
    names = ("ca.pem", "ca.key", "crl.pem")
    files = [(_authority() / name).read_bytes() for name in names]
    at = source.below(3)
    labels = ("CERTIFICATE", "PRIVATE KEY", "X509 CRL")
    files[at] = _maybe_damaged(source, labels[at], flips(source, _der(files[at])))
    return pack(files)


def _use_authority(given: bytes) -> None:
    """Its directory, damaged: a certificate is signed, and revoked."""
    home = place("damaged", named(("ca.pem", "ca.key", "crl.pem"), given))
    root = certs.load_certificate(home / "ca.pem")
    with contextlib.suppress(DittoError):
        load_revocations(home / "crl.pem", root)
    authority = certs.Authority(home)
    wanted = certs.Wanted(identity_of(x509.load_pem_x509_certificate(pem(OWNER))), (), _key().public_key())
    authority.revoke(authority.sign(wanted, home / "out.pem"))


# Stored --------------------------------------------------------------------------------------------

_WIRES = {"a": Wire("a", 16, 4, (3, 2), 1.0), "b": Wire("b", 40, 0, (5,), 1.0)}
_TENSORS = [torch.arange(6, dtype=torch.int16).reshape(3, 2), torch.arange(5, dtype=torch.int64)]
_HOLDER = Owner("party0", SHARE)


@cache
def _stored(plain: bool) -> dict[str, bytes]:
    """Files as a server writes them, under the key of 32 zero bytes."""
    home = place("stored", {})
    with_storage(plain, lambda: stored.save_seed(home / "seed", bytes(range(16)), _HOLDER))
    with_storage(plain, lambda: stored.save_tensors(home / "tensors", _WIRES, iter(_TENSORS), _HOLDER))
    with_storage(plain, lambda: stored.save_entry(home / "entry", _entry(), _HOLDER))
    return {name: (home / name).read_bytes() for name in ("seed", "tensors", "entry")}


def _entry() -> DealerEntry:
    return DealerEntry(model=MODEL, description="{}", master="0" * 32)


def with_storage(plain: bool, work: Callable[[], None]) -> None:
    before = stored._storage
    stored.use(Storage(None if plain else bytes(32)))
    try:
        work()
    finally:
        stored._storage = before


def _build_stored(source: Source) -> bytes:
    plain, name = source.one_in(2), source.choice(("seed", "tensors", "entry"))
    return pack([bytes([plain]), name.encode(), flips(source, _stored(plain)[name])])


def _load_stored(given: bytes) -> None:
    """A file that is not what was stored is refused, whatever was changed of it."""
    kind, word, data = (*unpack(given), b"", b"", b"")[:3]
    plain, name = kind == b"\x01", word.decode(errors="replace")
    if name not in ("seed", "tensors", "entry"):
        return
    original = _stored(plain)[name]
    path = place("stored", {name: data}) / name

    def load() -> None:
        if name == "seed":
            stored.load_seed(path, _HOLDER)
        elif name == "entry":
            stored.load_entry(path, DealerEntry, _HOLDER)
        else:
            list(stored.load_tensors(path, _WIRES, _HOLDER))
        if data != original:
            raise Finding(f"{name}: read, though it is not what was stored")

    with_storage(plain, load)


def _sealed(path: Path, content: bytes, owner: Owner) -> bytes:
    return Storage(bytes(32)).seal(content, owner.context(path))


def _build_models(source: Source) -> bytes:
    """Entries of a coordinator and of a party, changed within a valid seal: as another version might write them."""
    text = model()[0].text()
    registered = Registered(model=MODEL, share_id=SHARE, description=text, owner=OWNER).model_dump()
    entry = model_store.Entry(model=MODEL, share_id=SHARE, description=text, active=True, owner=OWNER).model_dump()
    return pack([as_json(source, registered), as_json(source, entry)])


def _start(given: bytes) -> None:
    """A server that starts serves the rest."""
    registered, entry = (*unpack(given), b"", b"")[:2]

    def start() -> None:
        home = place("models", {})
        path = home / f"{MODEL}.json"
        path.write_bytes(_sealed(path, registered, Owner("coordinator", MODEL)))
        RegisteredModels(home)
        root = place("party", {})
        path = root / "models" / SHARE / "model.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_sealed(path, entry, Owner("party0", SHARE)))
        store = ModelStore(root, 0)
        for known in store.entries():
            try:
                weights_of(known.description)
                store.weights(known.share_id)
            except DittoError:
                pass

    with_storage(False, start)


_STOCKED = Header(job="1" * 32, share_id=SHARE, plan=Plan(1, 2), fingerprint="f", client=OWNER)


def _build_stock(source: Source) -> bytes:
    """A stocked job within a valid seal, as another version might write it, or with bytes of its file changed; and the
    list of used-up names."""
    text = as_json(source, _STOCKED.model_dump(mode="json"))
    size = len(text) if source.one_in(2) else source.below(2 * len(text) + 1)
    used = flips(source, b"\n" + b"2" * 32 + b"\n")
    return pack([size.to_bytes(4, "big") + text + bytes(16) + b"dealt", used, bytes([source.below(4) * 16])])


def _stock(given: bytes) -> None:
    """A party that starts takes up what is whole; what is not is an error when it is taken, and gone."""
    content, used, at = (*unpack(given), b"", b"", b"")[:3]

    def start() -> None:
        root = place("stocked", {})
        home = root / "stock" / SHARE
        shutil.rmtree(root, ignore_errors=True)
        home.mkdir(parents=True)
        (home / "used").write_bytes(used)
        path = home / _STOCKED.job
        stored.save_stream(path, [content], Owner("party0", SHARE))
        whole = path.read_bytes()
        if at and at[0]:
            path.write_bytes(whole[: at[0]] + bytes([whole[at[0]] ^ 1]) + whole[at[0] + 1 :])
        tls = Tls(ca=root, cert=root, key=root)
        stock = Stock(PartyConfig(role="party0", tls=tls, listen="a:1", data_dir=root), [SHARE])
        try:
            source = stock.take(_STOCKED.job, (SHARE, _STOCKED.plan, "f"), lambda: None)
            if at and at[0]:
                raise Finding("a changed file was taken from stock")
            source.take(5)
            source.close()
        except DittoError:
            pass
        if path.exists() or len(stock):
            raise Finding("a job that was taken from stock is still there")

    with_storage(False, start)


def _build_keys(source: Source) -> bytes:
    return pack([flips(source, b"0" * 64 + b"\n"), flips(source, Storage(bytes(32)).seal(b"ditto", b"party0"))])


def _keys(given: bytes) -> None:
    home = place("keys", named(("key", "storage"), given))
    storage_of(PartyConfig(
        role="party0", tls=Tls(ca=home, cert=home, key=home), listen="a:1", data_dir=home, storage_key=home / "key"
    ))  # fmt: skip


def _build_profile(source: Source) -> bytes:
    return _yaml(source, {"name": "mine", "bandwidth_mbps": 10.0, "rtt_ms": 1.0})


TARGETS = [
    Target("config", _build_config, _configure),
    Target("probe", _build_config, _probe),
    Target("network", _build_profile, _profile),
    Target("request", _build_request, _sign),
    Target("certificate", _build_certificate, _certificate),
    Target("authority", _build_authority, _use_authority),
    Target("stored", _build_stored, _load_stored),
    Target("models", _build_models, _start),
    Target("stock", _build_stock, _stock, slow=True),
    Target("keys", _build_keys, _keys),
]
