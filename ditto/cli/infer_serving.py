"""What `ditto serve` does for `ditto infer`: the same as `ditto.cli.infer`, with the connection that the server has.

It says it in lines of JSON as it comes: notes, the jobs' shapes, programs' lengths and events for the progress, then
the document of `--json` with the lines that people read.
"""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ditto.api.threads import whole
from ditto.cli.asked import served
from ditto.cli.asks import Asks, enter, said_first, summary_of, warning_of
from ditto.cli.infer_served import PATH
from ditto.cli.jobs import answer, jobs_of, tokenized
from ditto.cli.run import network_of
from ditto.cli.said import Reader
from ditto.cli.serving import asked_by_socket, said_as_it_comes
from ditto.cli.texts import Question, Questions
from ditto.client.flight import Ending, checked
from ditto.engine.program import Program
from ditto.errors import UsageError
from ditto.models import Answer, load_checkpoint
from ditto.serve.state import State
from ditto.wall import Wall


async def _endpoint(request: Request) -> Response:
    document = await asked_by_socket(request)
    state: State = request.app.state.ditto
    return said_as_it_comes(state, lambda say: _infer(state, document, say))


async def _infer(state: State, document: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """As `ditto.cli.infer.infer` does, with the server's connection."""
    wall, client, name = Wall(), state.cluster._client, document["model"]
    texts = [tuple(text) if isinstance(text, list) else text for text, _, _ in document["asked"]]
    questions = [Question(text, n, at) for text, (_, n, at) in zip(texts, document["asked"], strict=True)]
    asked = Questions(questions, document["blank"])
    found = await whole(lambda: served(client, name, lambda text: say({"note": text})))
    public = (await state.model(name))._public
    reader = Reader(found.description, public.tokenizer)
    if reader.answer is Answer.text:
        raise UsageError(f"{name} generates text: ask it with `ditto generate`")
    wall.lap("model")
    description, most = found.description, found.description.dimensions.positions
    rows = await whole(lambda: tokenized(reader.tokenizer, questions, most, document["truncate"]))
    wall.lap("tokenizing")
    checkpoint = load_checkpoint(found.checkpoint) if description.embeddings == "public" else None
    guard = document["range_check"]
    asks = Asks(client, reader, asked, rows.cut, checkpoint, False, guard, wall)
    jobs = jobs_of(questions, rows, range(len(questions)), most, document["batch"])
    first = said_first(asked, 0, jobs, rows.cut) if len(jobs) > 1 or rows.cut or asked.blank else ""
    say({"shapes": [list(job.shape) for job in jobs], "first": first})
    tables = checkpoint.tensors if checkpoint else None
    in_flight = checked(document["in_flight"])
    asks.run.in_flight = min(in_flight, state.in_flight, max(1, len(jobs)))

    def one(at: int, ending: Ending) -> tuple[list[Any], dict[str, Any]]:
        def follow(event: dict[str, Any]) -> None:
            say({"job": at, "event": event})

        def layers(program: Program) -> None:
            say({"job": at, "layers": len(program.layers)})

        say({"job": at})
        return answer(client, description, jobs[at], tables, guard, follow, layers, ending)

    async for landed in state.flown(range(len(jobs)), one, in_flight):
        values, report = landed.value
        say({"job": landed.job, "done": True})
        state.metrics.job(name, report, len(values))
        wall.lap_of(report["parts"], "decoding")
        enter(asks, jobs[landed.job], values, report, landed.seconds, None, None)
    summary = summary_of(asks, description, network_of(client._config), kept=True)
    lines = [reader.line(q.text, values) for q, values in zip(questions, summary["output"], strict=True)]
    say({"summary": summary, "lines": lines, "warning": warning_of(asks), "spent": wall.document()["parts"]})


ROUTES: list[BaseRoute] = [Route(PATH, _endpoint, methods=["POST"])]
