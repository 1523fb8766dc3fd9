"""Examples through all modes, job by job, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch

from ditto.client.flight import Ending, Refused, flown
from ditto.errors import RangeError
from ditto.evaluation.modes import COSTS, Ask, Cost
from ditto.evaluation.records import Record
from ditto.evaluation.subject import Subject
from ditto.models.architecture import Texts
from ditto.train.metrics import LEVEL, RESAMPLES, bootstrap, interval, metric

PERPLEXITY = "perplexity"
SHARES = "mpc"


def run(
    subject: Subject,
    asks: Mapping[str, Ask],
    jobs: Iterable[Sequence[int]],
    in_flight: int = 1,
    refused: Refused = lambda error: None,
) -> Generator[list[Record], None, None]:
    """Every job's records, in order, when it has been through all modes. Differences are those from `reference_of` the
    modes. On shares `in_flight` jobs are asked at once; `refused` as `flown` has it. A job's seconds there are those of
    the wall since the one before it was answered.

    Raises RangeError for outputs that are no numbers.
    """
    on_shares = asks.get(SHARES)

    def first(rows: Sequence[int], ending: Ending) -> tuple[Texts, dict[str, tuple[torch.Tensor, Cost]]]:
        batch = subject.batch(rows)
        return batch, {SHARES: on_shares(batch, ending)} if on_shares else {}

    with closing(flown(jobs, first, in_flight if on_shares else 1, refused)) as landed:
        for each in landed:
            rows, (batch, known) = each.job, each.value
            answers = {mode: known[mode] if mode in known else ask(batch) for mode, ask in asks.items()}
            costs = {mode: cost for mode, (_, cost) in answers.items()}
            if on_shares:
                costs[SHARES] |= {"seconds": each.seconds}
            yield _records(subject, rows, {mode: found for mode, (found, _) in answers.items()}, costs)


def _records(
    subject: Subject, rows: Sequence[int], found: Mapping[str, torch.Tensor], costs: Mapping[str, Cost]
) -> list[Record]:
    reference = reference_of(list(found))
    for mode, result in found.items():
        if not bool(result.isfinite().all()):
            raise RangeError(f"{mode}: the answer to example {rows[0] + 1} or one of its job is no number")
    parts = {mode: _part(cost, len(rows)) for mode, cost in costs.items()}
    outputs = {mode: subject.outputs(result, rows) for mode, result in found.items()}
    against = {
        mode: subject.differences(result, found[reference], rows) for mode, result in found.items() if mode != reference
    }
    return [
        Record(
            row,
            subject.label(row),
            {mode: outputs[mode][i] for mode in found},
            parts,
            {mode: rows_of[i] for mode, rows_of in against.items()},
        )
        for i, row in enumerate(rows)
    ]


def reference_of(modes: Sequence[str]) -> str:
    """Whom the others are compared with: the interpreter, since shares should agree with it, else the first."""
    return "plain" if "plain" in modes else modes[0]


def _part(cost: Cost, examples: int) -> Cost:
    """One example's part of a job. Rounds, and whether a value left its range, are the job's."""
    return {name: value if name in ("rounds", "out_of_range") else value / examples for name, value in cost.items()}


def measured(name: str, outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """A metric, or perplexity: e to the mean of the windows' nats a token."""
    return _exp(float(outputs.mean())) if name == PERPLEXITY else metric(name, outputs, labels)


def interval_of(name: str, outputs: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """95 %, by 1,000 resamples of the examples, or of the windows; seed 0."""
    if name != PERPLEXITY:
        return interval(name, outputs, labels)
    values = outputs[:, 0].double().numpy()
    return bootstrap(lambda rows: _exp(float(values[rows].mean())), len(values))


def less(name: str, outputs: torch.Tensor, others: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """One metric less that of other outputs for the same examples, and the interval of this difference: both are of the
    same resamples, so it is far narrower than either's where most answers are the same."""

    def difference(rows: Any) -> float:
        return measured(name, outputs[rows], labels[rows]) - measured(name, others[rows], labels[rows])

    return {"value": difference(slice(None)), "interval": list(bootstrap(difference, len(labels)))}


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # what e to more than 709 would be, no float holds


def summary(subject: Subject, records: Sequence[Record], modes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a mode. Costs are means over examples: seconds and MB of an example, rounds of its job.

    `less_fp32`: the first metric less that in floats, where that is one of the modes. `differing` is the part of
    answers that are not those of the mode compared with, null where answers are scores.
    """
    ordered = sorted(records, key=lambda record: record.index)
    labels = torch.tensor([record.label for record in ordered], dtype=torch.float64)
    found = {mode: torch.tensor([record.outputs[mode] for record in ordered], dtype=torch.float64) for mode in modes}
    rows = []
    for mode, outputs in found.items():
        metrics = {
            name: {"value": measured(name, outputs, labels), "interval": list(interval_of(name, outputs, labels))}
            for name in subject.metrics
        }
        first = subject.metrics[0]
        row: dict[str, Any] = {"mode": mode, "n": len(ordered), "metric": first, **metrics[first]}
        row |= {"metrics": metrics, "level": LEVEL, "resamples": RESAMPLES}
        floats = found.get("fp32") if mode != "fp32" else None
        row["less_fp32"] = less(first, outputs, floats, labels) if floats is not None else None
        for name in COSTS:
            values = [record.cost[mode][name] for record in ordered if name in record.cost[mode]]
            row[name] = math.fsum(values) / len(values) if values else None
        against = [record.against[mode] for record in ordered if mode in record.against]
        row["compared_with"] = reference_of(modes) if against else None
        answers = outputs.shape[1] > 1 or first == PERPLEXITY
        row["differing"] = math.fsum(d.differing for d in against) / len(against) if against and answers else None
        row["largest_difference"] = max((d.largest for d in against), default=None)
        rows.append(row)
    return rows
