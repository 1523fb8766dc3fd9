"""Questions become jobs: of texts that are alike in length, the longest first."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ditto.cli.texts import Question
from ditto.errors import EmptyText, TextTooLong

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ditto.client.client import Client
    from ditto.client.flight import Ending
    from ditto.engine.program import Program
    from ditto.models import Description
    from ditto.models.tokenizer import Batch, Text, Tokenizer

# Texts of a job. Eight share most of what a job costs whatever its size (rounds on a slow network, the parties' idle
# time), and a job that is interrupted or lost loses the work of eight texts at most; a server's memory grows with it.
BATCH = 8


@dataclass(frozen=True)
class Job:
    """Texts that are asked together, padded to `width`; `places` are theirs among all questions."""

    places: "list[int]"
    texts: "list[Text]"
    rows: "list[tuple[list[int], list[int]]]"
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.width

    @property
    def batch(self) -> "Batch":
        """Made anew each time: of a large file, all at once would take far more memory than its tokens."""
        from ditto.models.tokenizer import padded

        return padded(self.rows, self.width)


@dataclass(frozen=True)
class Tokenized:
    """Tokens of every question, and which were cut (by place)."""

    rows: "list[tuple[list[int], list[int]]]"
    cut: set[int]


def tokenized(tokenizer: "Tokenizer", asked: "Sequence[Question]", most: int, truncate: bool) -> Tokenized:
    """Raises TextTooLong and EmptyText, which name the question's place. With `truncate` the end of what is too long is
    left out, of a pair the longer segment's first."""
    rows = tokenizer.whole([question.text for question in asked])
    for question, (ids, _) in zip(asked, rows, strict=True):
        if not ids:
            raise EmptyText(f"{question.place}: text without a token")
    cut = [place for place, (ids, _) in enumerate(rows) if len(ids) > most]
    if cut and not truncate:
        first = cut[0]
        others = f", and {len(cut) - 1} more are too long" if len(cut) > 1 else ""
        raise TextTooLong(
            f"{asked[first].place}: text of {len(rows[first][0])} tokens: this model takes at most {most}{others}; "
            "--truncate cuts what is too long"
        )
    for place, row in zip(cut, tokenizer.cut([asked[place].text for place in cut], most) if cut else [], strict=True):
        rows[place] = row
    return Tokenized(rows, set(cut))


def jobs_of(asked: "Sequence[Question]", rows: Tokenized, places: "Sequence[int]", most: int, size: int) -> list[Job]:
    """Jobs of `size` texts, the longest first: what does not fit a server is refused at once, and a text is padded to
    its neighbours' length. The order follows from the padded lengths alone, then from the order of the questions."""
    from ditto.models.tokenizer import padded_width

    widths = {place: padded_width(len(rows.rows[place][0]), most) for place in places}
    order = sorted(places, key=lambda place: -widths[place])
    jobs = []
    for at in range(0, len(order), size):
        chosen = order[at : at + size]
        texts, parts = [asked[place].text for place in chosen], [rows.rows[place] for place in chosen]
        jobs.append(Job(chosen, texts, parts, max(widths[place] for place in chosen)))
    return jobs


def answer(
    client: "Client",
    description: "Description",
    job: Job,
    tables: "dict[str, Tensor] | None",
    guard: bool,
    on_event: "Callable[[dict[str, Any]], None]",
    on_program: "Callable[[Program], None]",
    ending: "Ending | None" = None,
) -> tuple[list[Any], dict[str, Any]]:
    """The values of each of a job's texts, as nested lists of numbers, and the job's report."""
    from ditto.api.jobs import ask

    return ask(client, description, job.batch, tables, guard, on_event, on_program, None, ending)
