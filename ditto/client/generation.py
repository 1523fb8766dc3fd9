"""Text generation from the client's side: prompts in, tokens out as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ditto.client.client import Client, Inputs, Outputs
from ditto.client.sampling import Sampler
from ditto.client.sent import Sent
from ditto.engine.program import Program
from ditto.models import Description, Plan, generator_of
from ditto.models.tokenizer import Prompts


@dataclass
class Generated:
    """What came of each prompt (token ids, the end of text included), and what the job cost.

    `seconds` holds the moments at which each token of the batch was there, since the job began at the client.
    """

    tokens: list[list[int]]
    seconds: list[float] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Of one text, after the first token: its time is the prompt's."""
        if len(self.seconds) < 2:
            return 0.0
        return (len(self.seconds) - 1) / (self.seconds[-1] - self.seconds[0])


def generate(
    client: Client,
    description: Description,
    prompts: Prompts,
    plan: Plan,
    sampler: Sampler,
    stop: int | None = None,
    on_token: Callable[[list[int | None]], bool] | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    sent: Sent | None = None,
) -> Generated:
    """Generate up to `plan.tokens` after each prompt.

    The client samples from logits that nobody else sees, or (`plan.argmax`) is told the most likely token, which the
    servers find on shares. A text ends with `stop`; the job ends when all texts have. `on_token` gets the batch's new
    tokens (None for a text that has ended) and may return False to end the job. `sent` as `Client.run` has it.
    """
    began, generator = time.perf_counter(), generator_of(description.architecture)
    result = Generated([[] for _ in prompts.lengths])
    ended = [False] * len(prompts.lengths)
    latest: list[Program] = []

    def take(outputs: Outputs) -> bool:
        """The next token of each text; should there be more?"""
        if plan.argmax:
            chosen = generator.tokens(description, outputs)
        else:
            chosen = sampler.choose(generator.logits(latest[-1], outputs))
        fresh: list[int | None] = []
        for i, token in enumerate(chosen):
            fresh.append(None if ended[i] else token)
            if not ended[i]:
                result.tokens[i].append(token)
                ended[i] = token == stop
        result.seconds.append(time.perf_counter() - began)
        wanted = on_token(fresh) if on_token else True
        return wanted and not all(ended)

    def inputs(stage: int, program: Program, before: Outputs) -> Inputs | None:
        if stage == 0:
            encoded = generator.encode(description, program, prompts)
        else:
            if not take(before):
                return None
            # a text that has ended goes on with its last token: nobody sees that it has
            tokens = [text[-1] for text in result.tokens]
            encoded = generator.encode_next(description, program, tokens, [n + stage - 1 for n in prompts.lengths])
        latest.append(program)
        return encoded

    answer = client.run(description.name, plan, inputs, on_event, description, sent)
    if len(result.seconds) < plan.stages and not all(ended) and len(latest) == plan.stages:
        take(answer.outputs)
    result.report = answer.report
    return result
