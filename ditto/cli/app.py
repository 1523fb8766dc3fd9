"""The typer application: its groups, its help, and how an error becomes an exit code."""

import atexit
import contextlib
import gc
import importlib
import signal
import sys
from typing import Annotated, Any

import typer
import typer.main

import ditto
from ditto.cli.common import ErrorGroup, exit_codes_help
from ditto.cli.streams import UNWRITABLE, open_closed, settle, unwritable
from ditto.errors import StorageError
from ditto.wall import count_from_the_process

# What each command's module says of it, in the order of `ditto --help`, which loads none of them.
COMMANDS = {
    "infer": "Compute a model's answer on secret shares of the text.",
    "generate": "Continue texts on secret shares, token by token. Ctrl-C ends after the token under way.",
    "serve": "Answer applications of this machine by HTTP, as the client of a cluster. Ctrl-C ends it.",
    "deal": "Have correlations dealt before they are asked for: the jobs that take them are sooner done.",
    "evaluate": (
        "Measure a model on labelled texts, or a language model on a text. Interrupted, the same command goes on."
    ),
    "finetune": "Train a model and write a Hugging Face checkpoint. Interrupted, the same command goes on.",
    "distill": "Distil a checkpoint for a preset: trained with its arithmetic in the loop, in ranges that cost little.",
    "demo": "Judge English sentences, positive or negative, without anybody seeing them.",
    "plan": "Predict a job's seconds and bytes, and choose what the preset leaves open. Asks no server.",
    "doctor": "Check this machine, certificates, servers and the links between them, and say what to do.",
    "audit": ("Run one party's side of a recorded job again, and say at which step it did not do what it should have."),
    "certs": "Certificates: who may take part in a cluster, and as whom.",
    "cluster": "The servers as local processes.",
    "keys": "The key under which a server stores what it keeps.",
    "model": "Models: import, share, grant, remove, list, show, check.",
    "bench": "Measurements.",
}


class Commands(ErrorGroup):
    """The commands of COMMANDS, each loaded when it is called: others' imports would cost it seconds."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, named, rest = super().resolve_command(ctx, args)
        return name, load(name) if named and name else named, rest


def load(name: str) -> Any:
    """A command, or a group of them: `app` of its module, or the function of its name."""
    module = importlib.import_module(f"ditto.cli.{name}")
    if group := getattr(module, "app", None):
        return typer.main.get_group(group)
    alone = typer.Typer(add_completion=False)
    alone.command(name)(getattr(module, name))
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=Commands,
    name="ditto",
    help="Private inference of Transformers: two parties compute on secret shares, a dealer helps, nobody else learns.",
    epilog=exit_codes_help(),
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)  # a place in the list


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ditto {ditto.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _terminated(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt  # not a DittoError: nothing between here and the command may take it for its own


def main() -> None:
    """Entry point of the console script."""
    count_from_the_process()
    open_closed()
    # imports leave some hundred thousand objects: to look through them for garbage again and again, and once more at
    # the end, takes a command half a second
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        signal.signal(signal.SIGTERM, _terminated)  # so that an embedded cluster is stopped too
    try:
        app()
    except OSError as error:  # help, which no command prints
        if error.errno not in UNWRITABLE:
            raise
        with contextlib.suppress(OSError):
            sys.stderr.write(f"error ({StorageError.code}): {unwritable(error)}\n")
        sys.exit(StorageError.exit_code)
    finally:
        settle()
