"""`ditto certs`"""

from pathlib import Path
from typing import Annotated

import typer

from ditto.cli.common import Json, emit, out
from ditto.client.local_cluster import home
from ditto.errors import UsageError
from ditto.names import ROLES
from ditto.net.certs import init_certs

app = typer.Typer(help="Certificates of a cluster.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def init(
    dir: Annotated[Path | None, typer.Option("--dir", help="Where to write; default: the local cluster's.")] = None,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="A name or address of a server besides localhost; repeatable.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace certificates that exist.")] = False,
    json: Json = False,
) -> None:
    """Make an authority and a certificate for each role."""
    where = dir or home() / "certs"
    if (where / "ca.pem").exists() and not force:
        raise UsageError(f"{where} has certificates already; --force replaces them (running servers keep the old ones)")
    init_certs(where, host or [])
    if json:
        emit({"dir": str(where), "roles": list(ROLES), "hosts": ["localhost", "127.0.0.1", *(host or [])]})
    else:
        out.print(f"{where}: an authority, and certificates for {', '.join(ROLES)}.")
        out.print("Give each machine its own pair and ca.pem; keep ca.key away from all of them.")
