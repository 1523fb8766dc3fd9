"""How fast a machine is, as far as predictions need it; measured once and kept in a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ditto import files
from ditto.errors import ConfigError
from ditto.planning.stopwatch import ROLES, Sample
from ditto.planning.work import Kind, Work

FORMAT = 3
CLOCK = 20e-6  # seconds: shorter samples than this say nothing about a rate, whatever their relative error
Seconds = Annotated[float, Field(ge=0, le=1e6)]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rate(_Stored):
    """Seconds of one kind of operation in one role: for each step, and for each unit of its amount."""

    step: Seconds
    unit: Seconds


class Machine(_Stored):
    """`rates` by kind and role (see `ditto.planning.work`), of one thread. What the processes add: seconds for each
    `round`, for each byte that a party `sent` online, at each end for each byte that it was `dealt`, and for each
    `phase` of a layer. `lead`: seconds from the opening of a job, when dealing begins, until the client has brought its
    inputs and the first layer is prepared. `cores` are shared by all five processes."""

    format: int = FORMAT
    cores: Annotated[int, Field(ge=1, le=4096)]
    rates: dict[str, dict[str, Rate]]
    round: Seconds = 0.0
    sent: Seconds = 0.0
    dealt: Seconds = 0.0
    phase: Seconds = 0.0
    lead: Seconds = 0.0

    def seconds(self, work: Work, role: str) -> float:
        """Processor time of some steps in one role."""
        return sum(
            rate.step * work.steps[kind] + rate.unit * amount
            for kind, amount in work.amounts.items()
            for rate in [self._rate(kind, role)]
        )

    def _rate(self, kind: Kind, role: str) -> Rate:
        """Of a kind that was not measured: the same operation's on another ring, else the median of all."""
        if str(kind) in self.rates:
            return self.rates[str(kind)][role]
        alike = [rates[role] for name, rates in self.rates.items() if name.startswith(f"{kind.op}/")]
        if not alike:
            alike = [rates[role] for rates in self.rates.values()]
        return sorted(alike, key=lambda rate: rate.unit)[len(alike) // 2]


COUNTING = Machine(cores=1, rates={"Open/8": dict.fromkeys(ROLES, Rate(step=0, unit=0))})  # for who asks no seconds


def rates_of(samples: Iterable[Sample]) -> dict[str, dict[str, Rate]]:
    """By kind and role, what a step and a unit take: least squares of relative errors, nothing below zero."""
    by_kind: dict[Kind, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_kind[sample.kind].append(sample)
    return {
        str(kind): {role: _fit([(s.steps, s.amount, s.seconds[role]) for s in found]) for role in ROLES}
        for kind, found in by_kind.items()
    }


def _fit(rows: list[tuple[int, int, float]]) -> Rate:
    table = np.array(rows, dtype=np.float64)
    weight = 1 / np.maximum(table[:, 2], CLOCK)
    steps, amounts, seconds = (table * weight[:, None]).T
    both, *_ = np.linalg.lstsq(np.stack([steps, amounts], 1), seconds, rcond=None)
    if len(rows) > 1 and (both >= 0).all():
        return Rate(step=float(both[0]), unit=float(both[1]))
    # one of the two alone, whichever explains more
    alone = [float(column @ seconds / max(column @ column, 1e-300)) for column in (steps, amounts)]
    left = [float(((seconds - a * column) ** 2).sum()) for a, column in zip(alone, (steps, amounts), strict=True)]
    return Rate(step=alone[0], unit=0.0) if left[0] < left[1] else Rate(step=0.0, unit=alone[1])


def read(path: Path) -> Machine:
    """Raises ConfigError."""
    try:
        machine = Machine.model_validate(files.read_json(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: no machine profile ({error.error_count()} errors); measure it again") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if machine.format != FORMAT:
        raise ConfigError(f"{path}: a machine profile of another version; measure it again")
    return machine


def write(path: Path, machine: Machine) -> None:
    files.write(path, machine.model_dump_json(indent=1))


def with_processes(machine: Machine, found: Mapping[str, float]) -> Machine:
    """The same with what the processes add."""
    return machine.model_copy(update=dict(found))
