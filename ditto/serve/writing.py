"""A text that is generated for a request: its pieces as they come, up to a stop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from ditto.api.threads import whole
from ditto.client.flight import REFUSED

if TYPE_CHECKING:
    from ditto.api.answers import Token
    from ditto.api.generation import Generation
    from ditto.api.model import Model
    from ditto.serve.state import State


class Stops:
    """Finds the first of some strings in a text that comes in pieces; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """What can be said now, and whether a stop was found: what precedes it has been said then."""
        text = self._held + piece
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            return text[: min(found)], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """The end of the text: what was held back."""
        return self._held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may begin the stop."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Writing:
    """One prompt's continuation. `tokens` (the end of the text excluded), `reason` (`stop` or `length`) and `in_range`
    are known when all pieces have been taken."""

    def __init__(
        self, state: State, model: Model, begin: Callable[[], Generation], most: int, stops: Sequence[str]
    ) -> None:
        """`begin` checks the prompt; no job runs before its first token is taken."""
        self._state, self._model, self._begin, self._most = state, model, begin, most
        self._generation = begin()
        self._stops = Stops(stops)
        self.tokens = 0
        self.reason = "stop"
        self.in_range: bool | None = None
        self.stock = False

    async def pieces(self) -> AsyncIterator[str]:
        """Texts, none of them empty. Only within `turns.place`. The job ends after the token under way when these are
        closed, or a stop is found. At the end, with `strict`, raises OutOfRange."""
        turns, said, stopped = self._state.turns, 0, False
        for again in (False, True):
            generation = self._generation
            async with turns.turn() as turn:
                try:
                    while not stopped and (token := await whole(self._next, generation.stop)) is not None:
                        self.tokens += 1
                        said += len(token.text)
                        text, stopped = self._stops.push(token.text)
                        if text:
                            yield text
                    break
                except REFUSED:  # by a job beside it, as in `Turns.run`
                    if again or self.tokens or not turns.refused(turn):
                        raise
                finally:
                    await whole(generation.close)
                    if (result := generation._job.result) is not None:  # it neither failed nor was never begun
                        self.in_range, self.stock = result.report["in_range"], result.report["stock"]
                        self._state.count(self._model, result.report, 1)
            self._generation = self._begin()
        if stopped:
            return
        # characters that no token completed
        text, stopped = self._stops.push(generation.text[said:])
        if rest := text + ("" if stopped else self._stops.finish()):
            yield rest
        if self.tokens == self._most and not stopped:
            self.reason = "length"

    def _next(self) -> Token | None:
        return next(self._generation, None)
