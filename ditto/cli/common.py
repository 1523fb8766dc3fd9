"""What every command shares: options, output, errors, the client of the configured cluster."""

import contextlib
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from ditto.cli.streams import UNWRITABLE, is_terminal, unread, unwritable
from ditto.errors import EXIT_CODES, DittoError, Interrupted, OutOfRange, StorageError, UsageError
from ditto.names import PRESETS

if TYPE_CHECKING:  # the client imports torch; a command that does not need it starts quickly
    from ditto.client.client import Client
    from ditto.client.manager import Manager

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="DITTO_CONFIG", help="The client's YAML file; default: the local cluster's."),
]
ReportFile = Annotated[Path | None, typer.Option("--report", help="Write an HTML page on what it cost.")]
TraceFile = Annotated[
    Path | None, typer.Option("--trace", help="Write its rounds as a trace for Perfetto and chrome://tracing.")
]
RangeCheck = Annotated[
    bool,
    typer.Option(
        "--range-check/--no-range-check", help="Learn whether values left their calibrated range: 2 bytes each."
    ),
]
PRESET_HELP = f"Which operation and type each layer uses: {', '.join(PRESETS)}."
Strict = Annotated[bool, typer.Option("--strict", help="End with an error when values left their calibrated range.")]

# What moves the cursor, colours, rings, reverses the direction of writing, or cannot be written at all.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Text that may be somebody else's, for a terminal: control characters but newline and tab are spelled out."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: object) -> str:
    """The same for a name or a label, which must not look like a line of its own."""
    return visible(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def indented(text: str) -> str:
    """The same for a message of several lines: only the first one stands at the margin."""
    return "\n  ".join(part.strip() for part in visible(text).split("\n"))


class Terminal(Console):
    """Prints text as it is, control characters spelled out: nothing in it is markup. Styles are given by `Text`, which
    is not looked into: what goes there from others has to pass `visible`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def on_broken_pipe(self) -> None:
        raise  # by `ErrorGroup`: rich would end the process here


out = Terminal(soft_wrap=not is_terminal(sys.stdout))
err = Terminal(stderr=True, soft_wrap=not is_terminal(sys.stderr))


class ErrorGroup(TyperGroup):
    """A group whose commands end with the exit code of the error they meet."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _read_or_ended():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _read_or_ended():
            return self._invoke(ctx)

    def _invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a full disk behind it is an error of the command, not of the interpreter's end
            return result
        except (DittoError, KeyboardInterrupt, OSError) as error:
            if isinstance(error, DittoError):
                known = error
            elif isinstance(error, KeyboardInterrupt):
                known = Interrupted("interrupted")
            elif error.filename is not None:  # a name that is too long, a place that may not be read
                known = StorageError(f"{str(error.filename)[:400]}: {error.strerror}")
            elif error.errno in UNWRITABLE:
                known = unwritable(error)
            else:
                raise
            with contextlib.suppress(OSError):  # the exit code says it all the same
                err.print(Text.assemble(("error", "bold red"), f" ({known.code}): {indented(str(known))}"))
            raise typer.Exit(known.exit_code) from None


@contextlib.contextmanager
def _read_or_ended() -> Iterator[None]:
    """Where nobody reads what is printed any more, the command ends without a word, as usual tools do."""
    try:
        yield
    except (BrokenPipeError, SystemExit) as error:
        # rich, printing help, ends the process by itself
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
            raise typer.Exit(unread()) from None
        raise


def exit_codes_help() -> str:
    lines = [f"  {code:>3}  {meaning}" for code, meaning in sorted(EXIT_CODES.items())]
    return "\n".join(["\b\nExit codes:", *lines])


def emit(document: Any) -> None:
    """The one JSON document of a command."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def note(text: str) -> None:
    """A line on what is happening, on stderr."""
    err.print(indented(text))


def hanging(text: str, column: int) -> str:
    """On a terminal, what does not fit goes on below the beginning of the text, which is at `column`."""
    if out.soft_wrap:
        return text
    lines = textwrap.wrap(text, max(out.width - column, 20), break_on_hyphens=False)
    return f"\n{' ' * column}".join(lines)


def check_strict(strict: bool, range_check: bool) -> None:
    """Raises UsageError for the one without the other."""
    if strict and not range_check:
        raise UsageError("--strict needs the range check")


def warn_of_range(text: str, strict: bool) -> None:
    """After the answer is out: a warning on stderr, or OutOfRange."""
    if strict:
        raise OutOfRange(text)
    warn(text)


def warn(text: str) -> None:
    """A warning, on stderr."""
    err.print(Text.assemble(("warning", "bold yellow"), ": ", visible(text)))


def connect(config: Path | None) -> "Client":
    from ditto.client.client import Client
    from ditto.client.local_cluster import client_config

    return Client(client_config(config))


def manage(config: Path | None) -> "Manager":
    """The same for what needs no tensor: it loads no torch."""
    from ditto.client.local_cluster import client_config
    from ditto.client.manager import Manager

    return Manager(client_config(config))
