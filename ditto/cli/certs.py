"""`ditto certs`"""

import datetime as dt
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography import x509

from ditto.cli.common import Json, emit, out
from ditto.client.home import home
from ditto.errors import UsageError
from ditto.names import ROLES
from ditto.net.certs import (
    LIFETIME,
    LOCAL,
    Authority,
    Wanted,
    init_authority,
    init_certs,
    load_certificate,
    login_name,
    make_request,
    read_request,
)
from ditto.net.identity import identity, identity_of

app = typer.Typer(help="Certificates: who may take part in a cluster, and as whom.", no_args_is_help=True)

Role = Annotated[str, typer.Argument(help=f"One of {', '.join(ROLES)}.", show_default=False)]
Name = Annotated[str, typer.Option("--name", help="Whose: a client's name.", show_default=False)]
Hosts = Annotated[
    list[str] | None, typer.Option("--host", help="A name or address of a server besides localhost; repeatable.")
]
AuthorityDir = Annotated[
    Path | None,
    typer.Option("--authority", help="Where the authority lies; default: the local cluster's.", show_default=False),
]
Days = Annotated[int, typer.Option(min=1, help="How long it is valid.")]


@app.callback()
def _group() -> None:
    pass


@app.command()
def init(
    dir: Annotated[Path | None, typer.Option("--dir", help="Where to write; default: the local cluster's.")] = None,
    host: Hosts = None,
    client: Annotated[
        str | None, typer.Option("--client", help="The client's name; default: your login name.", show_default=False)
    ] = None,
    authority_only: Annotated[
        bool, typer.Option("--authority-only", help="No keys but the authority's: for several machines.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace certificates that exist.")] = False,
    json: Json = False,
) -> None:
    """Make everything for one machine: an authority, and keys and certificates of the servers and one client."""
    where, name = dir or _certs(), client or login_name()
    if (where / "ca.pem").exists() and not force:
        raise UsageError(f"{where} has certificates already; --force replaces them and their authority")
    if authority_only:
        if host or client:
            raise UsageError("an authority alone has no hosts and no client")
        init_authority(where)
        emit({"dir": str(where)}) if json else out.print(f"{where}: an authority. Its key signs for every role.")
        return
    init_certs(where, host or [], client=name)
    if json:
        emit({"dir": str(where), "roles": list(ROLES), "client": name, "hosts": [*LOCAL, *(host or [])]})
    else:
        out.print(f"{where}: an authority, and certificates for {', '.join(ROLES)} (client/{name}).")
        out.print("All keys lie there: for one machine. On several, make each where it is used: ditto certs request.")


@app.command()
def request(
    role: Role,
    dir: Annotated[Path, typer.Option("--dir", help="Where to write.", show_default=False)],
    name: Name = "",
    host: Hosts = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Replace the key that lies there.")] = False,
    json: Json = False,
) -> None:
    """Make a key, which stays here, and a request for the authority to sign."""
    path, wanted = make_request(identity(role, name), host or [], dir, new_key=new_key)
    if json:
        emit(_shown(wanted) | {"request": str(path), "key": str(path.with_suffix(".key"))})
    else:
        _print(_shown(wanted))
        out.print(f"{path}: to be sent to the authority. The key beside it stays here.")


@app.command()
def sign(
    request: Annotated[Path, typer.Argument(help="The request of `ditto certs request`.", show_default=False)],
    to: Annotated[Path, typer.Option("--out", help="Where to write the certificate.", show_default=False)],
    authority: AuthorityDir = None,
    role: Annotated[str, typer.Option("--role", help="Refuse a request for another.", show_default=False)] = "",
    name: Annotated[str, typer.Option("--name", help="Refuse a request for another.", show_default=False)] = "",
    days: Days = LIFETIME.days,
    json: Json = False,
) -> None:
    """Sign a request as the authority, and say what was signed. Compare the fingerprint with the requester's."""
    wanted = read_request(request)
    if role and role != wanted.identity.role:
        raise UsageError(f"{request} is for {wanted.identity}, not for role {role}; nothing was signed")
    if name and name != wanted.identity.name:
        raise UsageError(f"{request} is for {wanted.identity}, not for name {name}; nothing was signed")
    certificate = Authority(authority or _certs()).sign(wanted, to, dt.timedelta(days=days))
    _signed(wanted, certificate, to, json)


@app.command()
def issue(
    role: Role,
    name: Name = "",
    host: Hosts = None,
    dir: Annotated[
        Path | None, typer.Option("--dir", help="Where to write; default: beside the authority.", show_default=False)
    ] = None,
    authority: AuthorityDir = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the pair that lies there.")] = False,
    days: Days = LIFETIME.days,
    json: Json = False,
) -> None:
    """Make a key and its certificate in one place: for one machine, which holds the authority."""
    who = identity(role, name)
    source = authority or _certs()
    stem = (dir or source) / who.file
    if stem.with_name(f"{who.file}.key").exists() and not force:
        raise UsageError(f"{stem}.key exists already; --force replaces it")
    wanted, certificate = Authority(source).issue(who, host or [], stem, dt.timedelta(days=days))
    _signed(wanted, certificate, stem.with_name(f"{who.file}.pem"), json)


@app.command()
def revoke(
    certificate: Annotated[Path, typer.Argument(help="The certificate, in PEM.", show_default=False)],
    authority: AuthorityDir = None,
    json: Json = False,
) -> None:
    """Put a certificate on the authority's list `crl.pem`: servers that have the list (`tls.crl`) refuse it."""
    source = authority or _certs()
    found = load_certificate(certificate)
    new = Authority(source).revoke(found)
    shown = {"identity": str(identity_of(found)), "serial": f"{found.serial_number:x}", "list": str(source / "crl.pem")}
    if json:
        emit(shown | {"new": new})
    else:
        _print(shown)
        out.print("Revoked. Give every server the list." if new else "It was revoked before.")


def _certs() -> Path:
    return home() / "certs"


def _shown(wanted: Wanted) -> dict[str, Any]:
    who = wanted.identity
    return {"role": who.role, "name": who.name, "hosts": list(wanted.hosts), "fingerprint": wanted.fingerprint}


def _signed(wanted: Wanted, certificate: x509.Certificate, path: Path, json: bool) -> None:
    until = certificate.not_valid_after_utc.date().isoformat()
    shown = _shown(wanted) | {"serial": f"{certificate.serial_number:x}", "until": until}
    if json:
        emit(shown | {"certificate": str(path)})
    else:
        _print(shown)
        out.print(f"{path}: signed.")


def _print(shown: dict[str, Any]) -> None:
    for key, value in shown.items():
        text = ", ".join(value) if isinstance(value, list) else value
        out.print(f"{key + ':':12} {text or '-'}")
