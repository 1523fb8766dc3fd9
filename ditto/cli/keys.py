"""`ditto keys`"""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from ditto.cli.common import Json, emit, note, out
from ditto.errors import ConfigError
from ditto.net.config import CoordinatorConfig, DealerConfig, PartyConfig, ServerConfig, load_config

app = typer.Typer(help="The key under which a server stores what it keeps.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def rotate(
    config: Annotated[Path, typer.Option("--config", help="The configuration of the server.", show_default=False)],
    new_key: Annotated[Path, typer.Option("--new-key", help="A file of 64 hexadecimal digits.", show_default=False)],
    json: Json = False,
) -> None:
    """Bring what a stopped server keeps under another key. What is cut off is finished by the same command again."""
    from ditto.service.rekey import change_key

    server = _server(config)
    changed = change_key(server, new_key)
    if json:
        emit({"role": server.role, "files": changed.files, "left": [str(path) for path in changed.left]})
        return
    out.print(f"{server.role}: {changed.files} files in {server.data_dir} are under the new key")
    for path in changed.left:
        note(f"{path} could not be read and stays as it is")
    named = server.storage_key or "the environment's storage key"
    out.print(f"The server starts with the new key only: put it in the place of {named}.")


def _server(path: Path) -> ServerConfig:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        found = None
    match found.get("role") if isinstance(found, dict) else None:
        case "party0" | "party1":
            return load_config(path, PartyConfig)
        case "dealer":
            return load_config(path, DealerConfig)
        case "coordinator":
            return load_config(path, CoordinatorConfig)
    raise ConfigError(f"{path} is no configuration of a server")
