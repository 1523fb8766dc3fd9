"""Choices by layer: the cheapest for an objective and a network, among those whose error is tolerated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ditto.engine.plan import Plan
from ditto.engine.program import PART
from ditto.errors import RangeError
from ditto.functions.fit import Fits, Fitting
from ditto.models.description import Description
from ditto.models.registry import architecture_of, generates
from ditto.net.emulation import Network
from ditto.planning.forecast import Demand, Forecast, demands, forecast, overlapping, total, whole
from ditto.planning.machine import Machine
from ditto.planning.probes import activation_error, layernorm_error, softmax_error
from ditto.presets import preset_of
from ditto.presets.choices import DEFAULT, Choices

TOLERANCE = 0.005  # of a part's result: about what rounding it to 8 fraction bits leaves of a context
TRIES, LESS = 6, 0.9  # to keep a budget: how often, and how much less than its part of what was measured
FREE = 1e-12  # what adds less to a loss adds nothing
SWEEPS = 4  # over the layers; each one's choice changes what the next can do meanwhile


class Objective(StrEnum):
    """What is to be least: seconds of both phases, bytes of all senders, seconds offline."""

    latency = "latency"
    bytes = "bytes"
    offline = "offline"


@dataclass(frozen=True)
class Part:
    """An operation of every layer, as reports name it, and the values of its choices, the first field slowest."""

    label: str
    fields: Mapping[str, Sequence[int | str]]

    def alternatives(self) -> list[Choices]:
        values = itertools.product(*self.fields.values())
        return [Choices.model_validate(dict(zip(self.fields, found, strict=True))) for found in values]


PARTS = (
    Part("softmax", {"exponential": ("precise", "narrow"), "used": ("bits", "table", "no maximum", "two windows")}),
    Part("layernorm", {"deviation": ("medium", "small", "large", "tree")}),
    Part(
        "gelu",
        {
            "activation": ("by neuron", "as one"),
            "gelu": ("precise", "narrow", "coarse"),
            "product": ("extended", "straight"),
        },
    ),
)


@dataclass(frozen=True)
class Option:
    """One alternative of a part in a layer. `demand`: what the layer asks for in this part, the other parts as the
    preset has them. `own`: what the preset does by itself."""

    choices: Choices
    demand: Demand
    error: float
    own: bool


@dataclass
class Row:
    """A part of a layer: its options, the preset's own first, and which of them was taken."""

    layer: int
    part: str
    options: list[Option]
    taken: int = 0
    seconds: list[float] = field(default_factory=list)  # what each adds to the job

    def tolerated(self, tolerance: float) -> list[int]:
        """Within the tolerance, or no worse than the preset's own."""
        most = max(tolerance, self.options[0].error)
        return [i for i, option in enumerate(self.options) if option.error <= most]


@dataclass(frozen=True)
class Planned:
    """Choices by layer, and what the job asks for with them and without, by layer or part of one. `whole_seconds`: of
    the job, without and with them, its phases overlapping."""

    rows: list[Row]
    choices: tuple[Choices, ...]
    own: list[Demand]
    taken: list[Demand]
    own_seconds: Forecast
    seconds: Forecast
    whole_seconds: tuple[float, float]


Value = tuple[float, float]
Added = Callable[[int, Choices], float]


@dataclass(frozen=True)
class Budget:
    """What choices may add to the loss of a model's answers, in all.

    `added`: by choices of one layer alone. `together`: by choices of all layers.
    """

    most: float
    added: Added
    together: Callable[[tuple[Choices, ...]], float]


def value(objective: Objective, layers: Sequence[Demand], machine: Machine, network: Network) -> Value:
    """What is to be least, and what decides between equals."""
    sums, got = sum(layers, Demand()), total(forecast(layers, machine, network))
    nbytes, both = float(2 * sums.sent + sums.dealt), got.online + got.offline
    match objective:
        case Objective.bytes:
            return nbytes, both
        case Objective.offline:
            return got.offline, nbytes
        case _:
            return both, nbytes


class _Compiler:
    """Compiles one model with other choices, without fitting any function twice."""

    def __init__(self, description: Description, job: Plan, machine: Machine) -> None:
        self._description, self._job, self._machine = description, job, machine
        self._fits: Fits = Fitting(description.functions)

    def parts(self, choices: tuple[Choices, ...]) -> list[tuple[str, dict[str, Demand]]]:
        """Of a job by what is prepared and run at once: name, and demands by operation. Later tokens cost what the
        middle one of them does."""
        found = self._description.model_copy(update={"choices": choices})
        stages = [0] + [max(1, self._job.stages // 2)] * (self._job.stages - 1)
        by_stage = {}
        for stage in dict.fromkeys(stages):
            program = architecture_of(found.architecture).compile(found, self._job, stage, self._fits)
            by_stage[stage] = list(zip(program.layers, demands(program, self._machine), strict=True))
        return [row for stage in stages for row in by_stage[stage]]

    def layers(self, choices: tuple[Choices, ...]) -> list[tuple[str, dict[str, Demand]]]:
        """The same by layer, parts together: how many a layer has is for each choice another number."""
        found: list[tuple[str, dict[str, Demand]]] = []
        for part, operations in self.parts(choices):
            name, _, number = part.partition(PART)
            if not number:
                found.append((name, {}))
            for label, demand in operations.items():
                found[-1][1][label] = found[-1][1].get(label, Demand()) + demand
        return found


def error_of(description: Description, layer: int, part: Part, choices: Choices) -> float:
    """Of a part's result in a layer, stated: relative. Raises RangeError where the layer cannot have these choices."""
    preset, d, ranges = description.preset, description.dimensions, description.ranges.layers[layer]
    causal = generates(description.architecture)
    match part.label:
        case "softmax":
            used = "bits" if choices.used == "table" else choices.used  # both say the same
            error = softmax_error(preset, choices.model_copy(update={"used": used}), d, ranges, causal)
        case "layernorm":
            norms = (ranges.norm1, ranges.norm2)
            error = max(layernorm_error(preset, choices, d, norm, causal) for norm in norms)
        case _:
            product = "extended" if causal else choices.product  # the only way there
            error = activation_error(preset, choices.model_copy(update={"product": product}), d, ranges)
    return float(f"{error:.2g}")  # further digits are chance


def errors(description: Description, layer: int, part: Part) -> dict[Choices, float]:
    """Of those alternatives of a part that this layer can have, and of the preset's own."""
    found = {}
    for choices in (DEFAULT, *part.alternatives()):
        try:
            found[choices] = error_of(description, layer, part, choices)
        except RangeError:
            if choices == DEFAULT:
                raise
    return found


def plan(
    description: Description,
    job: Plan,
    machine: Machine,
    network: Network,
    objective: Objective = Objective.latency,
    tolerance: float = TOLERANCE,
    parts: Sequence[Part] = PARTS,
    say: Callable[[str], None] = lambda text: None,
    budget: Budget | None = None,
) -> Planned:
    """Choose for every layer and part.

    1. The preset's own choices, compiled; for each alternative the same with it in every layer that can have it.
       A layer's difference is what the alternative costs there: parts of a layer add up.
    2. Errors of each alternative in each layer, by `ditto.planning.probes`.
    3. Layer by layer, of all combinations of what is tolerated, the one of least value for the whole job, the other
       layers as they are by then; again, until nothing changes. With a budget: by what each adds to the loss of the
       answers, as `_spend` says.
    4. Compile what was chosen: the totals are its own.
    Raises RangeError where the preset itself has no type for a layer.
    """
    compiler, count = _Compiler(description, job, machine), description.dimensions.layers
    # 1
    base = compiler.layers((DEFAULT,) * count)
    places = {i: [at for at, (name, _) in enumerate(base) if name == f"layer {i}"] for i in range(count)}
    own = [whole(operations) for _, operations in base]
    rows: list[Row] = []
    changes: dict[tuple[int, str, Choices], dict[int, Demand]] = {}
    for part in parts if preset_of(description.preset).style.open else ():
        say(f"{part.label}: {len(part.alternatives())} alternatives")
        # 2
        found = [errors(description, i, part) for i in range(count)]
        rows += [
            Row(i, part.label, [_option(base, places[i], part, DEFAULT, Demand(), found[i])]) for i in range(count)
        ]
        for choices in part.alternatives():
            if not any(choices in errors_here for errors_here in found):
                continue
            tried = compiler.layers(tuple(choices if choices in here else DEFAULT for here in found))
            for row in (row for row in rows if row.part == part.label and choices in found[row.layer]):
                change = {at: whole(tried[at][1]) - own[at] for at in places[row.layer]}
                added = sum(change.values(), Demand())
                option = _option(base, places[row.layer], part, choices, added, found[row.layer])
                if all(_told(option) != _told(other) for other in row.options):
                    row.options.append(option)
                    changes[row.layer, row.part, choices] = change
    # 3
    worth: Worth = lambda found: value(objective, found, machine, network)  # noqa: E731
    if budget is None:
        layers = _choose(rows, changes, own, worth, tolerance)
    else:
        layers = _spend(rows, changes, own, worth, tolerance, budget)
    for row in rows:
        row.seconds = [_seconds(row, i, changes, layers, machine, network) for i in range(len(row.options))]
    # 4
    chosen = _chosen(rows, count)
    before, after = (
        [whole(operations) for _, operations in compiler.parts(choices)] for choices in ((DEFAULT,) * count, chosen)
    )
    first, last = (total(forecast(demand, machine, network)) for demand in (before, after))
    both = overlapping(before, machine, network), overlapping(after, machine, network)
    rows.sort(key=lambda row: row.layer)
    return Planned(rows, chosen, before, after, first, last, both)


def _told(option: Option) -> tuple[int, int, int, float]:
    """What tells alternatives apart."""
    return option.demand.rounds, option.demand.sent, option.demand.dealt, option.error


def _option(
    base: list[tuple[str, dict[str, Demand]]], places: list[int], part: Part, choices: Choices, added: Demand,
    found: Mapping[Choices, float],
) -> Option:  # fmt: skip
    own = sum((base[at][1].get(part.label, Demand()) for at in places), Demand())
    return Option(choices, own + added, found[choices], own=choices == DEFAULT)


def _together(several: Iterable[Choices]) -> Choices:
    fields: dict[str, object] = {}
    for choices in several:
        fields |= choices.model_dump(exclude_none=True)
    return Choices.model_validate(fields)


def _chosen(rows: list[Row], count: int) -> tuple[Choices, ...]:
    return tuple(_together(row.options[row.taken].choices for row in rows if row.layer == i) for i in range(count))


Changes = dict[tuple[int, str, Choices], dict[int, Demand]]
Worth = Callable[[list[Demand]], Value]


def _choose(rows: list[Row], changes: Changes, own: list[Demand], worth: Worth, tolerance: float) -> list[Demand]:
    """Set what every row takes; the layers with it."""
    layers = list(own)
    for _ in range(SWEEPS):
        before = [row.taken for row in rows]
        for layer in sorted({row.layer for row in rows}):
            here = [row for row in rows if row.layer == layer]
            tried = {}
            for taken in itertools.product(*(row.tolerated(tolerance) for row in here)):
                tried[taken] = _with(here, taken, changes, layers, own)
            best = min(tried, key=lambda taken: (worth(tried[taken]), taken))
            layers = tried[best]
            for row, index in zip(here, best, strict=True):
                row.taken = index
        if [row.taken for row in rows] == before:
            break
    return layers


def _spend(
    rows: list[Row], changes: Changes, own: list[Demand], worth: Worth, tolerance: float, budget: Budget
) -> list[Demand]:
    """Set what every row takes; the layers with it.

    1. Of all changes of one row that are worth something, the one that is worth most for what it adds to the loss, as
       long as the sum of what was added stays within the budget.
    2. Losses add up, about: measure all that was taken together. Beyond the budget, begin anew with that much less.
    """
    count, most = max((row.layer for row in rows), default=-1) + 1, budget.most
    for _ in range(TRIES):
        for row in rows:
            row.taken = 0
        layers = _within(rows, changes, own, worth, tolerance, budget.added, most)  # 1
        if not any(row.taken for row in rows):
            break
        found = budget.together(_chosen(rows, count))  # 2
        if found <= budget.most:
            break
        most *= LESS * budget.most / found
    else:
        for row in rows:
            row.taken = 0
        layers = list(own)
    return layers


def _within(
    rows: list[Row], changes: Changes, own: list[Demand], worth: Worth, tolerance: float, added: Added, most: float
) -> list[Demand]:
    layers, spent = list(own), 0.0
    while True:
        now, best = worth(layers)[0], None
        for row in rows:
            here = [other for other in rows if other.layer == row.layer]
            for index in row.tolerated(tolerance):
                taken = [index if other is row else other.taken for other in here]
                tried = _with(here, taken, changes, layers, own)
                gain = now - worth(tried)[0]
                if index == row.taken or gain <= 0:
                    continue
                more = added(row.layer, row.options[index].choices) - added(row.layer, row.options[row.taken].choices)
                if spent + more > most:
                    continue
                rate = gain / max(more, FREE)
                if best is None or rate > best[0]:
                    best = rate, row, index, more, tried
        if best is None:
            return layers
        _, row, row.taken, more, layers = best
        spent += more


def _with(
    here: list[Row], taken: Sequence[int], changes: Changes, layers: list[Demand], own: list[Demand]
) -> list[Demand]:
    """All layers as they are, but this one with these options."""
    tried = list(layers)
    every = [changes.get((row.layer, row.part, o.choices), {}) for row in here for o in row.options]
    for at in {at for change in every for at in change}:
        tried[at] = own[at]
    for row, index in zip(here, taken, strict=True):
        for at, added in changes.get((row.layer, row.part, row.options[index].choices), {}).items():
            tried[at] += added
    return tried


def _seconds(row: Row, index: int, changes: Changes, layers: list[Demand], machine: Machine, network: Network) -> float:
    """What an option makes the job take more than it would without this part, the rest as chosen."""
    taken, option = row.options[row.taken], row.options[index]
    places = {at for o in row.options for at in changes.get((row.layer, row.part, o.choices), {})}
    if not places:
        return 0.0
    at = min(places)
    ends = []
    for demand in (option.demand, Demand()):
        tried = list(layers)
        tried[at] = tried[at] - taken.demand + demand
        got = total(forecast(tried, machine, network))
        ends.append(got.online + got.offline)
    return ends[0] - ends[1]
