"""`ditto serve`: the client as a local HTTP server."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditto.cli.common import ConfigFile, Json, emit, note, out
from ditto.cli.flying import IN_FLIGHT, InFlight
from ditto.client import store
from ditto.client.home import home
from ditto.errors import ConfigError, DittoError, RangeWarning, UsageError

if TYPE_CHECKING:
    from ditto import Cluster

SHORTEST = 16  # characters of a key


def serve(
    host: Annotated[str, typer.Option(help="The address to listen at; not this machine's own takes a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8400,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="Ask for the key in this file; or that in $DITTO_API_KEY. None: no key."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A name besides localhost that leads here; repeatable.")
    ] = None,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait for their turn.")] = 32,
    in_flight: InFlight = IN_FLIGHT,
    local: Annotated[bool, typer.Option("--local", help="Servers of its own on this machine, gone with it.")] = False,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="With --local: an imported model; repeatable. Default: all.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="With --local: threads of each server.")] = 1,
    strict: Annotated[
        bool, typer.Option("--strict", help="No answer, but an error, where values left their calibrated range.")
    ] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Answer applications of this machine by HTTP, as the client of a cluster. Ctrl-C ends it."""
    key = _key(api_key_file)
    if not _loopback(host) and key is None:
        raise UsageError(f"--host {host}: others can reach it, so it takes a key: --api-key-file, or $DITTO_API_KEY")
    if local and config is not None:
        raise UsageError("--local has servers of its own: no --config, no $DITTO_CONFIG")
    if model and not local:
        raise UsageError("--model: only with --local; a cluster serves what is shared with it")
    import ditto
    from ditto.cli import generate_serving, infer_serving
    from ditto.serve import neighbours
    from ditto.serve.app import application
    from ditto.serve.server import Server, listening
    from ditto.serve.state import State

    warnings.simplefilter("ignore", RangeWarning)  # answers say it
    with listening(host, port, home()) as here, _own(threads, json) if local else ditto.connect(config) as cluster:
        if local:
            _bring(cluster, model or [])
        state = State(cluster, waiting=waiting, strict=strict, in_flight=in_flight)
        hosts = [host, *(allow_host or [])]
        more = [*infer_serving.ROUTES, *generate_serving.ROUTES]
        app = application(state, key=key, hosts=hosts, neighbour=neighbours.ours, more=more)
        named = None if local else os.path.abspath(config or home() / "configs" / "client.yaml")

        def ready(said: dict[str, Any]) -> None:
            if json:
                emit(said)
            else:
                out.print(said["address"])
            out.file.flush()

        Server(app, here, home(), named, ready).until_signal()


def _own(threads: int, quiet: bool) -> "Cluster":
    """As `ditto.local`; which servers are awaited is said."""
    from ditto.api.local import started
    from ditto.cli.waiting import awaited, waiting

    note("starting four servers")
    with waiting(quiet) as say:
        return started(threads, waiting=awaited(say))


def _bring(cluster: "Cluster", names: list[str]) -> None:
    """Share imported models with servers of one's own; without names all of them, those aside that cannot be shared."""
    for name in names or [stored.dir.name for stored in store.stored()]:
        note(f"sharing {name}")
        try:
            cluster.model(name)
        except DittoError as error:
            if names:
                raise
            note(f"{name}: {error}")


def _loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _key(path: Path | None) -> str | None:
    """Raises ConfigError."""
    if path is None:
        source, text = "$DITTO_API_KEY", os.environ.get("DITTO_API_KEY")
        if text is None:
            return None
    else:
        source = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'no text'}") from None
        if path.stat().st_mode & 0o077:
            note(f"{path}: others on this machine may read this key (chmod 600)")
    key = text.strip()
    if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{source}: no key: at least {SHORTEST} characters of ASCII, no spaces (openssl rand -hex 32)"
        )
    return key
