"""`ditto generate` by this user's running `ditto serve` (`ditto.cli.generate_serving`): it prints the same."""

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from ditto.cli.common import note
from ditto.cli.generating import Wish, Writer, interruptible
from ditto.cli.run import Watcher, watching
from ditto.client.home import home
from ditto.serve import local

PATH, STOP = "/local/generate", "/local/generate/stop"


def by_a_server(model: str, wish: Wish, json: bool) -> tuple[dict[str, Any], str] | None:
    """The document of `--json` and what is to be warned of, where a server runs that can answer for this command; one
    prompt's text has been printed then, unless `json`. Raises what the command would."""
    name = secrets.token_hex(16)
    document = {"model": model, "name": name, "streams": wish.streams(json), "wish": asdict(wish)}
    with ExitStack() as stack:
        shown = _Shown(model, wish.prompts[0], json, stack, lambda: local.tell(home(), STOP, {"name": name}))
        stopping = stack.enter_context(interruptible(shown.stop))
        if not local.ask(home(), PATH, document, shown.take):
            if stopping:
                raise KeyboardInterrupt
            return None
        shown.finish()
    return shown.summary, shown.warning


class _Shown:
    """What comes, as the command has it; `summary` and `warning` are there at the end."""

    def __init__(self, model: str, prompt: str, quiet: bool, stack: ExitStack, tell: Callable[[], None]) -> None:
        self.summary: dict[str, Any] = {}
        self.warning = ""
        self._model, self._prompt, self._quiet, self._stack, self._tell = model, prompt, quiet, stack, tell
        self._stopped = self._begun = False
        self._watcher, self._writer = Watcher(None, quiet), Writer(prompt, Watcher(None, quiet))

    def stop(self) -> None:
        """Have the server end after the token under way, as soon as it has begun."""
        self._stopped = True
        if self._begun:
            self._tell()

    def finish(self) -> None:
        self._writer.finish()

    def take(self, line: dict[str, Any]) -> None:
        if "begun" in line:
            self._begun = True
            if self._stopped:
                self._tell()
            self._watcher = self._stack.enter_context(watching(self._quiet))
            self._writer = Writer(self._prompt, self._watcher)
        elif "note" in line:
            note(line["note"])
        elif "job" in line:
            self._watcher.job(self._model)
        elif "event" in line:
            self._watcher.event(line["event"])
        elif "text" in line:
            self._writer.write(line["text"])
        else:
            self.summary, self.warning = line["summary"], line["warning"]
