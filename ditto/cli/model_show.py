"""`ditto model show`: what is public of a model, and by whose word."""

from typing import Annotated, Any

import typer
from rich.table import Table

from ditto.cli.asked import public_dir, settings_for
from ditto.cli.common import ConfigFile, Json, emit, one_line, out
from ditto.client import store

SHORT = 16  # hexadecimal digits of a version, as shown


def show(
    name: Annotated[str, typer.Argument(help="A model that is shared, and that you may ask.")],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show what is public of a shared model, its version first, after checking that its owner signed it."""
    from ditto.client.manager import Manager
    from ditto.client.public import fetch

    with Manager(settings_for(name, config)) as client:
        found = fetch(client, name, public_dir())
    d, here = found.description, store.find(name)
    document: dict[str, Any] = {
        "name": name,
        "digest": found.digest,
        "owner": found.owner,
        "architecture": d.architecture,
        "preset": d.preset,
        "embeddings": d.embeddings,
        "max_length": d.dimensions.positions,
        "labels": list(d.dimensions.labels),
        "files": {path.name: path.stat().st_size for path in sorted(found.files.iterdir())},
        "imported": None if here is None else "this version" if here.description == d else "another version",
    }
    if json:
        emit(document)
        return
    files = ", ".join(f"{file} ({size:,} bytes)" for file, size in document["files"].items())
    shown = document | {
        "digest": found.digest[:SHORT],
        "owner": f"{found.owner}, who signed this",
        "labels": ", ".join(d.dimensions.labels[:8]) + (", …" if len(d.dimensions.labels) > 8 else ""),
        "files": files,
        "imported": document["imported"] or "no",
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in shown.items():
        table.add_row(key.replace("_", " "), one_line(value))
    out.print(table)
