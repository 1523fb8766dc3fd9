"""`ditto infer` by this user's running `ditto serve` (`ditto.cli.infer_serving`): it prints the same."""

from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from ditto.cli.common import emit, note, warn_of_range
from ditto.cli.texts import Questions
from ditto.client.home import home
from ditto.serve import local
from ditto.wall import Wall

if TYPE_CHECKING:
    from ditto.cli.run import Counted, Counting, Watcher
    from ditto.cli.said import Reader

PATH = "/local/infer"


def by_a_server(
    model: str, asked: Questions, truncate: bool, batch: int, in_flight: int, range_check: bool, strict: bool,
    json: bool, wall: Wall,
) -> bool:  # fmt: skip
    """Whether a server runs that can answer for this command; that has been printed then. Raises what it would."""
    rows = [[list(q.text) if isinstance(q.text, tuple) else q.text, q.number, q.place] for q in asked.asked]
    document = {
        "model": model, "asked": rows, "blank": asked.blank, "truncate": truncate, "batch": batch,
        "range_check": range_check, "in_flight": in_flight,
    }  # fmt: skip
    with ExitStack() as stack:
        shown = _Shown(model, json, stack)
        if not local.ask(home(), PATH, document, shown.take):
            return False
    summary, said = shown.summary, shown.said
    wall.lap_of(said["spent"], "ditto serve")
    summary["spent"] = wall.document()
    if json:
        emit(summary)
    else:
        from ditto.cli.infer_show import show

        lines = iter(said["lines"])
        reader = cast("Reader", SimpleNamespace(line=lambda *_: next(lines)))
        show([question.text for question in asked.asked], summary, reader)
    if said["warning"]:
        warn_of_range(said["warning"], strict)
    return True


class _Shown:
    """Progress of what comes, as the command has it; `summary` and `said` are there at the end."""

    def __init__(self, model: str, quiet: bool, stack: ExitStack) -> None:
        self.summary: dict[str, Any] = {}
        self.said: dict[str, Any] = {}
        self._model, self._quiet, self._stack = model, quiet, stack
        self._watcher: Watcher | Counting | None = None
        self._follow: dict[int, Watcher | Counted] = {}

    def take(self, line: dict[str, Any]) -> None:
        if "note" in line:
            note(line["note"])
        elif "shapes" in line:
            from ditto.cli.run import counting, watching

            shapes = [(count, width) for count, width in line["shapes"]]
            if line["first"] and not self._quiet:
                note(line["first"])
            if len(shapes) > 1:
                self._watcher = self._stack.enter_context(counting(shapes, self._quiet))
            else:
                self._watcher = self._stack.enter_context(watching(self._quiet))
        elif "summary" in line:
            self.summary, self.said = line["summary"], line
        elif self._watcher is not None:
            at = line["job"]
            if "layers" in line:
                self._follow[at].program(SimpleNamespace(layers=range(line["layers"])))  # type: ignore[arg-type]
            elif "event" in line:
                self._follow[at].event(line["event"])
            elif "done" in line:
                self._watcher.done(at)
            else:
                self._follow[at] = self._watcher.begin(at, self._model)
