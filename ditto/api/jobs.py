"""One job of an encoder: texts in, one answer a text out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ditto.models import decode_outputs, encode_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from ditto.client.client import Client
    from ditto.client.flight import Ending
    from ditto.client.sent import Sent
    from ditto.engine.program import Program
    from ditto.models import Description
    from ditto.models.tokenizer import Batch


def ask(
    client: Client,
    description: Description,
    batch: Batch,
    tables: dict[str, Tensor] | None = None,
    guard: bool = False,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    on_program: Callable[[Program], None] | None = None,
    sent: Sent | None = None,
    ending: Ending | None = None,
) -> tuple[list[Any], dict[str, Any]]:
    """One answer a text, and the job's report (`InferResult`). Public embeddings are looked up in `tables`.

    `guard`: learn whether values left their ranges. `on_program` sees the program before the job begins.
    `on_event`, `sent` and `ending` as `Client.run` has them.
    """
    programs: list[Program] = []

    def inputs(program: Program) -> dict[str, Tensor]:
        programs.append(program)
        if on_program:
            on_program(program)
        return encode_inputs(description, program, batch, tables)

    answer = client.infer(description.name, inputs, *batch.shape, on_event, guard, description, sent, ending)
    return decode_outputs(description, programs[-1], answer.outputs, batch), answer.report
