"""`ditto serve`: the client as a local HTTP server."""

from typing import Annotated

import typer

from ditto.cli.common import ConfigFile, note


def serve(
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8400,
    local: Annotated[bool, typer.Option("--local", help="Servers of its own on this machine, gone with it.")] = False,
    config: ConfigFile = None,
) -> None:
    """Answer applications of this machine by HTTP, as the client of a cluster. Ctrl-C ends it."""
    import uvicorn

    import ditto
    from ditto.serve.app import application
    from ditto.serve.state import State

    cluster = ditto.local() if local else ditto.connect(config)
    note(f"http://{host}:{port}")
    uvicorn.run(application(State(cluster)), host=host, port=port, http="h11", log_level="warning", access_log=False)
