"""The order of a job's events: the client follows the coordinator's account only as far as it is whole."""

from __future__ import annotations

from collections.abc import Iterator

from ditto.errors import IntegrityError
from ditto.net.messages import phase_of
from ditto.wire import control_pb2

_PEER = "coordinator"
Key = tuple[str | int, ...]


class Progress:
    """Each event has one that has to follow; one that is missing, comes twice or too early is an IntegrityError."""

    def __init__(self, layers: int, stages: int) -> None:
        self._due = self._order(layers, stages)
        self._next: Key | None = next(self._due)
        self.ended = False  # the client wants no further stage: what follows the last one may come early

    @staticmethod
    def _order(layers: int, stages: int) -> Iterator[Key]:
        yield ("accepted",)
        for layer in range(layers):
            yield from (("layer", layer, phase) for phase in ("offline", "online"))
        for stage in range(stages):
            if stage:
                yield from (("layer", layers + stage - 1, phase) for phase in ("offline", "online"))
            yield ("stage", stage)
        yield ("done",)

    def check(self, event: control_pb2.JobEvent) -> None:
        """Raises IntegrityError unless this is the event that is due."""
        kind = event.WhichOneof("event") or "nothing"
        key: Key = (kind,)
        if kind == "layer":
            key = (kind, event.layer.layer, phase_of(event.layer.phase, _PEER))
        elif kind == "stage":
            key = (kind, event.stage.stage)
        if kind == "queued" and self._next == ("accepted",):
            return
        if kind == "done" and self.ended:
            self._next = None
        elif key == self._next:
            self._next = next(self._due, None)
        else:
            raise IntegrityError(f"{_PEER}: {_words(key)} where {_words(self._next)} was to come", peer=_PEER)

    def check_end(self) -> None:
        """Raises IntegrityError unless the account is whole."""
        if self._next is not None:
            raise IntegrityError(f"{_PEER}: the job's account ended before {_words(self._next)}", peer=_PEER)


def _words(key: Key | None) -> str:
    return " ".join(map(str, key)) if key else "its end"
