"""A text that is being generated: an iterator of its tokens."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from ditto.api.answers import Cost, Token
from ditto.errors import RangeWarning, UsageError

if TYPE_CHECKING:
    from ditto.client.generation import Generated
    from ditto.models.tokenizer import TextStream, Tokenizer

    # the job, given what takes its new tokens and says whether there should be more
    Run = Callable[[Callable[[list[int | None]], bool]], Generated]


class Generation(Iterator[Token]):
    """Tokens as they come, the end of the text excluded. The job begins with the first one that is asked for, and runs
    on beside whoever takes them; `close`, or dropping this object, ends it after the token under way.

    `prompt`, and `text`: what was generated so far. `cost` and `in_range` (of the whole text, as in `Answer`) are known
    when the last token has been taken, or after `close`.
    """

    def __init__(self, prompt: str, tokenizer: Tokenizer, run: Run) -> None:
        self.prompt = prompt
        self._written: list[str] = []
        self._job = _Job(run)
        self._tokens = _taken(self._job, tokenizer.stream(), tokenizer.end_of_text, self._written)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        return next(self._tokens)

    def close(self) -> None:
        """End the job, if it is under way, and wait for that."""
        self._tokens.close()

    def stop(self) -> None:
        """Have the job end after the token under way, without waiting; from any thread."""
        self._job.stop()

    @property
    def text(self) -> str:
        return "".join(self._written)

    @property
    def cost(self) -> Cost:
        """Raises UsageError before the end."""
        return Cost.of(self._finished().report, 1)

    @property
    def in_range(self) -> bool | None:
        """Raises UsageError before the end."""
        found: bool | None = self._finished().report["in_range"]
        return found

    @property
    def tokens_per_second(self) -> float:
        """After the first token, which takes the prompt's time. Raises UsageError before the end."""
        return self._finished().tokens_per_second

    def _finished(self) -> Generated:
        if self._job.result is None:
            raise UsageError("the text is not complete: take its tokens first")
        return self._job.result


def _taken(job: _Job, stream: TextStream, end: int | None, written: list[str]) -> Generator[Token, None, None]:
    """What a `Generation` iterates over. It does not hold that object, so that the job ends when it is dropped."""
    try:
        for token, seconds in job.tokens():
            if token == end:
                continue  # nothing comes after it but the end of the job
            text = stream.push(token)
            written.append(text)
            yield Token(token, text, seconds)
        written.append(stream.finish())
        if job.result is not None and job.result.report["in_range"] is False:
            warnings.warn("the text may be wrong: values left their calibrated range", RangeWarning, stacklevel=3)
    finally:
        job.end()


class _Job:
    """A job in a thread of its own, since it calls back for every token."""

    def __init__(self, run: Run) -> None:
        self.result: Generated | None = None
        self._run = run
        self._error: BaseException | None = None
        self._fresh: SimpleQueue[tuple[int, float] | None] = SimpleQueue()  # None: the job is over
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def tokens(self) -> Iterator[tuple[int, float]]:
        """Begin; each token as it comes, with the seconds since then. Raises what the job raised."""
        self._began = time.perf_counter()
        self._thread = threading.Thread(target=self._work, name="ditto-generation", daemon=True)
        self._thread.start()
        while (fresh := self._fresh.get()) is not None:
            yield fresh
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._stopped.set()

    def end(self) -> None:
        """Returns when the thread has ended."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            self.result = self._run(self._take)
        except BaseException as error:  # raised where the tokens are taken
            self._error = error
        finally:
            self._fresh.put(None)

    def _take(self, fresh: list[int | None]) -> bool:
        for token in fresh:
            if token is not None:
                self._fresh.put((token, time.perf_counter() - self._began))
        return not self._stopped.is_set()
