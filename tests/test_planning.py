"""Predictions and choices: what the planner prints is what compiles; what it takes is the least of what it tried."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import Session
from tiny import in_two_windows, small_shapes
from typer.testing import CliRunner

from ditto.cli import app
from ditto.engine.plain import run_plain
from ditto.engine.plan import Plan
from ditto.errors import BadDescription, ConfigError
from ditto.files import read_json
from ditto.functions.fit import Fitting
from ditto.models import Description, compile_stage, encode_inputs, encode_weights, parse, random, random_model
from ditto.models.description import ScoreRange, layer_ranges
from ditto.models.importer import with_choices
from ditto.models.random import random_checkpoint, scaled_description
from ditto.models.registry import architecture_of
from ditto.models.tokenizer import Batch
from ditto.net.emulation import Network, network
from ditto.ops.guard import KEY
from ditto.planning import machine as machines
from ditto.planning import measure as measuring
from ditto.planning.forecast import Demand, demands, forecast, overlapping, total, whole
from ditto.planning.machine import Machine, Rate, rates_of, with_processes
from ditto.planning.measure import Asked, Shape, fit_processes
from ditto.planning.planner import PARTS, Objective, Part, plan, value
from ditto.planning.probes import softmax_error
from ditto.planning.stopwatch import ROLES, Sample, stopwatch
from ditto.planning.work import Kind, kind_of
from ditto.presets.choices import DEFAULT, Choices
from ditto.ring import signed

SEQ = 8
JOB = Plan(1, SEQ)
RATE = Rate(step=2e-6, unit=1e-9)
MACHINE = Machine(
    cores=2, rates={"Open/8": dict.fromkeys(ROLES, RATE)}, round=3e-4, sent=2e-9, dealt=1e-9, phase=1e-3
)  # fmt: skip
WAN = network("wan")
RANGES = Path(__file__).parents[1] / "benchmarks" / "ranges" / "all-minilm-l6-v2.json"
FEW = (Part("softmax", {"exponential": ("precise", "narrow"), "used": ("bits", "table")}), *PARTS[1:])


@pytest.fixture(scope="module")
def model() -> tuple[Description, dict[str, torch.Tensor], Batch]:
    """Two layers of 16, with more neurons than one class, so that everything is left open."""
    with pytest.MonkeyPatch.context() as patch:
        small_shapes(patch, SEQ)
        description, _, checkpoint = random_model("bert", 2, SEQ)
        batch = random.random_batch(1, SEQ)
    layers = [
        layer.model_copy(update={"neurons": tuple(layer.neurons[0].model_copy(update=u) for u in GROUPS)})
        for layer in description.ranges.layers
    ]
    ranges = description.ranges.model_copy(update={"layers": tuple(layers)})
    description = with_choices(description.model_copy(update={"ranges": ranges, "functions": ()}), ())
    return description, checkpoint.tensors, batch


KEYED = (0, 8 * KEY, 0)  # of opening a key, of which the round is another's, too
GROUPS: tuple[dict[str, Any], ...] = ({"count": 24, "bound": 6.0}, {"count": 8, "bound": 12.0})


def cost_of(description: Description, choices: tuple[Choices, ...]) -> list[Demand]:
    """Layers as the program itself states them, compiled by the importer's own way."""
    program = compile_stage(with_choices(description, choices), JOB)
    return [whole(operations) for operations in demands(program, MACHINE)]


def counts(layers: list[Demand]) -> tuple[int, int, int]:
    sums = sum(layers, Demand())
    return sums.rounds, sums.sent, sums.dealt


# The forecast -------------------------------------------------------------------------------------


def test_a_demand_is_the_programs_cost(model: tuple[Description, Any, Batch]) -> None:
    program = compile_stage(model[0], JOB)
    for layer, operations in enumerate(demands(program, MACHINE)):
        cost = program.cost(layer)
        assert counts([whole(operations)]) == (cost.rounds, cost.online, cost.dealer)


def test_phases_alternate() -> None:
    """Two layers by hand: 10 and 20 rounds, 60 ms there and back, 10 MB a second, no processor time."""
    slow, free = Network(name="slow", bandwidth_mbps=80, rtt_ms=60), Machine(cores=8, rates={"x/1": {}}, round=0.001)
    got = forecast([Demand(10, 1_000_000, 8_000_000), Demand(20, 2_000_000, 8_000_000)], free, slow)
    assert got[0].offline == pytest.approx(0.4)  # 4 MB to each, none ahead
    assert got[0].online == pytest.approx(10 * (0.03 + 0.001) + 0.1)
    assert got[1].offline == pytest.approx(0.0)  # 4 MB at 10 MB a second: 0.4 s came in the 0.41 s before
    assert got[1].online == pytest.approx(20 * (0.03 + 0.001) + 0.2)


def test_what_is_computed_while_a_message_is_under_way() -> None:
    """1 MB at 10 MB a second takes 0.1 s: half of the shorter one, of that and the computing, is not waited for."""
    slow, machine = Network(name="slow", bandwidth_mbps=80, rtt_ms=0), Machine(cores=8, rates={"x/1": {}})
    got = forecast([Demand(1, 1_000_000, online=0.3), Demand(1, 1_000_000, online=0.04)], machine, slow)
    assert [f.online for f in got] == pytest.approx([0.3 + 0.1 - 0.05, 0.04 + 0.1 - 0.02])


def test_what_is_ahead_is_bounded() -> None:
    """A layer larger than the buffers waits for the rest, however long the layer before was online."""
    slow, free = Network(name="slow", bandwidth_mbps=80, rtt_ms=0), Machine(cores=8, rates={"x/1": {}}, round=1.0)
    got = forecast([Demand(rounds=1000), Demand(dealt=400_000_000)], free, slow)
    assert got[1].offline == pytest.approx((200_000_000 - (32 << 20)) / 10_000_000)


def test_processors_are_shared() -> None:
    """One core does the work of both parties and of the dealer, one after the other; with three, the parties only wait
    for the first layer's correlations."""
    demand, loopback = Demand(deal=3.0, prepare=1.0, online=2.0), network("loopback")
    one, many = (Machine(cores=cores, rates={"x/1": {}}) for cores in (1, 3))
    assert [(f.offline, f.online) for f in forecast([demand], one, loopback)] == [(5.0, 4.0)]
    assert [(f.offline, f.online) for f in forecast([demand], many, loopback)] == [(4.0, 2.0)]


def test_the_dealer_works_while_the_parties_do() -> None:
    """Two cores. While layer 0 is online, 3 s of dealing are done beside 2 x 6 s of the parties: 7.5 s on two cores.
    What is not dealt by then slows both down when they prepare, and all processors are busy to the end."""
    loopback = network("loopback")
    machine = Machine(cores=2, rates={"x/1": {}}, phase=0.25)
    got = forecast([Demand(online=6.0), Demand(dealt=1000, deal=3.0, prepare=2.0)], machine, loopback)
    assert [f.offline for f in got] == [0.25, 2.25]
    assert [f.online for f in got] == [7.75, 0.25]
    got = forecast([Demand(online=6.0), Demand(dealt=1000, deal=10.0, prepare=2.0)], machine, loopback)
    assert got[0].online == pytest.approx(6 * 1.5 + 0.25)
    assert got[1].offline == pytest.approx((2 * 2 + 4) / 2 + 0.25)


def test_what_is_received_while_the_parties_run_is_no_part_of_the_offline_phase() -> None:
    """Two cores, 1 s for sending to each party and 1 s for receiving at each. Beside 4 s of dealing that is 8 s of
    processors. While layer 0 is online, all four threads are at half their speed for 8 s, then the parties work alone:
    10 s for 2 x 6 + 8. Preparing layer 1 takes what preparing takes."""
    loopback, machine = network("loopback"), Machine(cores=2, rates={"x/1": {}}, dealt=1e-6)
    late = Demand(dealt=2_000_000, deal=4.0, prepare=2.0)
    got = forecast([Demand(online=6.0), late], machine, loopback)
    assert [(f.offline, f.online) for f in got] == [(0.0, pytest.approx(10.0)), (pytest.approx(2.0), 0.0)]
    (alone,) = forecast([late], machine, loopback)
    assert alone.offline == pytest.approx(4 + 2)  # nothing runs beside dealing: two cores do its 8 s in 4
    (one,) = forecast([late], machine.model_copy(update={"cores": 1}), loopback)
    assert one.offline == pytest.approx(8 + 2 * 2)


def test_sending_may_take_longer_than_dealing() -> None:
    """On many cores the stream is as fast as its longest thread: 3 s for each end, 1 s of dealing."""
    machine = Machine(cores=8, rates={"x/1": {}}, dealt=1e-6)
    (got,) = forecast([Demand(dealt=6_000_000, deal=1.0, prepare=0.5)], machine, network("loopback"))
    assert got.offline == pytest.approx(3 + 0.5)


def test_dealing_begins_before_the_first_layer() -> None:
    """By `lead`, and by the half round trip of the dealer's first message; another one is the parties' common key. What
    was dealt by then keeps no processor busy after the job's inputs are there."""
    slow, machine = Network(name="slow", rtt_ms=400), Machine(cores=8, rates={"x/1": {}}, lead=1.0)
    first = Demand(deal=3.0, prepare=0.5)
    assert [f.offline for f in forecast([first], machine, network("loopback"))] == pytest.approx([3 - 1 + 0.5])
    assert [f.offline for f in forecast([first], machine, slow)] == pytest.approx([0.2 + (3 - 1 - 0.4) + 0.5])
    one = machine.model_copy(update={"cores": 1})
    assert overlapping([first], one, network("loopback")) == pytest.approx(3 - 1 + 2 * 0.5)


def test_what_a_job_takes_whose_layers_are_prepared_ahead() -> None:
    """By hand: 1 + 4, 3 + 2 and 1 + 5 s by layer. The second is ready when the first has run; the third is not prepared
    before the second runs. Where processors are what it takes, their work alone counts."""
    loopback, layers = network("loopback"), [Demand(prepare=1.0, online=4.0), Demand(prepare=3.0, online=2.0)]
    layers.append(Demand(prepare=1.0, online=5.0))
    many, two = (Machine(cores=cores, rates={"x/1": {}}) for cores in (8, 2))
    assert overlapping(layers, many, loopback) == pytest.approx(1 + 4 + 2 + 5)
    assert overlapping(layers, two, loopback) == pytest.approx(2 * 16 / 2)
    layers[2] = Demand(prepare=4.0, online=5.0)
    assert overlapping(layers, many, loopback) == pytest.approx(1 + 4 + 4 + 5)
    assert overlapping(layers[:1], many, loopback) == sum(vars(total(forecast(layers[:1], many, loopback))).values())


def test_constants_are_found_again() -> None:
    """From what layers would take by known ones: forecasts by those that were found are as good."""
    known = {"round": 2e-4, "sent": 4e-9, "dealt": 6e-9, "phase": 3e-3, "lead": 4e-3}
    jobs = [[Demand(6, n, 5 * n, 0.01, 0.01, 0.02), Demand(28, n, 50 * n, 0.04, 0.02, 0.04)] for n in (10**5, 10**6)]
    took = [forecast(layers, with_processes(MACHINE, known), network("loopback")) for layers in jobs]
    dealer = [0.05 + 55 * n * known["dealt"] for n in (10**5, 10**6)]
    found = fit_processes(MACHINE, lambda _: [Asked(*job) for job in zip(jobs, took, dealer, strict=True)])
    assert found["dealt"] == pytest.approx(known["dealt"])
    for layers, were in zip(jobs, took, strict=True):
        for got, was in zip(forecast(layers, with_processes(MACHINE, found), network("loopback")), were, strict=True):
            assert (got.online, got.offline) == pytest.approx((was.online, was.offline), rel=0.05, abs=1e-3)


def test_rates_are_found_again() -> None:
    """Samples of a known law, and none below zero where noise would have it so."""
    kind = Kind("Open", 8)
    samples = [
        Sample(kind, n, amount, dict.fromkeys(ROLES, n * 1e-5 + amount * 1e-9))
        for n, amount in ((30, 1_000_000), (30, 9_000_000), (10, 50_000_000))
    ]
    found = rates_of(samples)["Open/8"]["online"]
    assert (found.step, found.unit) == pytest.approx((1e-5, 1e-9), rel=1e-6)
    falling = [Sample(kind, 1, amount, dict.fromkeys(ROLES, 1.0 / amount)) for amount in (1, 10, 100)]
    rate = rates_of(falling)["Open/8"]["deal"]
    assert rate.step >= 0 and rate.unit >= 0


def test_every_step_is_timed(model: tuple[Description, Any, Batch]) -> None:
    program = compile_stage(model[0], JOB)
    samples = stopwatch(program)
    assert sum(sample.steps for sample in samples) == len(program.steps)
    assert all(sample.seconds["online"] > 0 for sample in samples)
    assert any(sample.seconds["deal"] > 0 for sample in samples)


def test_what_a_trained_model_computes_is_timed() -> None:
    """Every kind of operation that a model with a trained model's ranges has is one of a timed program's: another one
    would go by some other kind's rate. Kinds follow from ranges, not from sizes."""
    shapes = Shape(measuring.READS, 64, 16), Shape(measuring.WRITES, 64, 16)
    timed = {kind for shape in shapes for kind in kinds(measuring.timed(shape), shape.tokens)}
    real = layer_ranges(read_json(RANGES))
    for name in ("bert-tiny", "gpt2-tiny"):
        asked = scaled_description(random_checkpoint(name, len(real)), name, 16, real=real)[0]
        assert kinds(asked, 16) <= timed


def kinds(description: Description, tokens: int) -> set[Kind]:
    return {kind_of(step.op) for step in compile_stage(description, Plan(1, tokens)).steps}


def test_a_profile_is_kept(tmp_path: Path) -> None:
    machines.write(tmp_path / "m.json", MACHINE)
    assert machines.read(tmp_path / "m.json") == MACHINE
    for text in ("{", "[]", '{"format": 1}', MACHINE.model_dump_json().replace('"format":3', '"format":9')):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError):
            machines.read(tmp_path / "bad.json")


# The choices --------------------------------------------------------------------------------------


def test_without_choices_nothing_changes(model: tuple[Description, Any, Batch]) -> None:
    """A description with the default set for every layer compiles to the program without any."""
    description = model[0]
    explicit = with_choices(description, (DEFAULT,) * 2)
    assert compile_stage(explicit, JOB).fingerprint == compile_stage(description, JOB).fingerprint


@pytest.mark.parametrize("raw", [[{}], [{}, {"deviation": 7}], [{}, {"unknown": 1}], [{}, {"exponential": "coarse"}]])
def test_wrong_choices_are_refused(model: tuple[Description, Any, Batch], raw: list[Any]) -> None:
    text = json.dumps(json.loads(model[0].text()) | {"choices": raw})
    with pytest.raises(BadDescription, match="choices"):
        parse(text)


@pytest.mark.parametrize("objective", list(Objective))
def test_the_least_of_all_combinations(model: tuple[Description, Any, Batch], objective: Objective) -> None:
    """Every combination of what is tolerated, compiled: none is worth more than what was taken, but for the steps of a
    key that all layers share, of which the planner knows no layer to be the first."""
    description = model[0]
    got = plan(description, JOB, MACHINE, WAN, objective, 0.05, FEW)
    assert cost_of(description, got.choices) == got.taken
    least = value(objective, got.taken, MACHINE, WAN)
    own = value(objective, got.own, MACHINE, WAN)
    assert least <= own, f"{objective}: {own[0]:.6g} as the preset does, {least[0]:.6g} as planned"
    compile_, fits = architecture_of(description.architecture).compile, Fitting(description.functions)
    tried = 0
    rows = [row for row in got.rows if row.layer == 1]
    for taken in itertools.product(*(row.tolerated(0.05) for row in rows)):
        fields: dict[str, Any] = {}
        for row, index in zip(rows, taken, strict=True):
            fields |= row.options[index].choices.model_dump(exclude_none=True)
        choices = (got.choices[0], Choices.model_validate(fields))
        program = compile_(description.model_copy(update={"choices": choices}), JOB, 0, fits)
        other = value(objective, [whole(o) for o in demands(program, MACHINE)], MACHINE, WAN)
        assert least[0] <= other[0] * (1 + 1e-9) + (8 * KEY if objective is Objective.bytes else 2 * RATE.step), choices
        tried += 1
    assert tried >= 8


def test_a_row_is_what_its_alternative_costs(model: tuple[Description, Any, Batch]) -> None:
    """In the place of the preset's own it changes the compiled program by what the table says, but for the key that all
    layers share: the table has it in the first of those that need one."""
    description = model[0]
    got = plan(description, JOB, MACHINE, WAN, Objective.bytes, 0.0, FEW)
    own = counts(got.own)
    checked = 0
    for row in got.rows:
        for option in row.options[1:]:
            choices = tuple(option.choices if i == row.layer else DEFAULT for i in range(2))
            changed = counts(cost_of(description, choices))
            stated = counts([option.demand - row.options[0].demand])
            more = tuple(a - b - c for a, b, c in zip(changed, own, stated, strict=True))
            assert more in ((0, 0, 0), KEYED), (row.layer, option.choices)
            checked += 1
    assert checked > 6


def test_tolerance_is_kept(model: tuple[Description, Any, Batch]) -> None:
    """Nothing taken errs more than the tolerance, or than what the preset does itself; a wide one frees more."""
    taken = {}
    for tolerance in (0.0, 1.0):
        got = plan(model[0], JOB, MACHINE, WAN, Objective.bytes, tolerance, FEW)
        for row in got.rows:
            assert row.options[row.taken].error <= max(tolerance, row.options[0].error)
        taken[tolerance] = counts(got.taken)
    assert taken[1.0][1] * 2 + taken[1.0][2] < taken[0.0][1] * 2 + taken[0.0][2]


def test_fewer_digits_err_more(model: tuple[Description, Any, Batch]) -> None:
    """The measured error holds what shares make of an exponential: the plain interpreter alone sees none of it."""
    description = model[0]
    wide = ScoreRange(size=12.0, above=6.0, below=12.0, spread=16.0)
    layer = description.ranges.layers[0].model_copy(update={"qkv": 12.0, "scores": wide})
    d = description.dimensions.model_copy(update={"hidden": 128, "heads": 2})
    fine, coarse = (softmax_error("ditto", Choices(exponential=e), d, layer, False) for e in ("precise", "narrow"))
    assert fine < coarse < 1


def test_publications_leave_nothing_open(model: tuple[Description, Any, Batch]) -> None:
    got = plan(model[0].model_copy(update={"preset": "puma"}), JOB, MACHINE, WAN)
    assert not got.rows and got.own == got.taken and set(got.choices) == {DEFAULT}


def test_generation_counts_every_token() -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_shapes(patch, SEQ)
        description, *_ = random_model("gpt2", 1, SEQ)
    one, four = (plan(description, Plan(1, SEQ, n), MACHINE, WAN, parts=FEW[:1]) for n in (1, 4))
    later = compile_stage(description, Plan(1, SEQ, 4), 2).cost()
    assert counts(four.own)[0] == counts(one.own)[0] + 3 * later.rounds
    assert total(forecast(four.own, MACHINE, WAN)).online > one.own_seconds.online


def test_choices_run_under_mpc(model: tuple[Description, dict[str, torch.Tensor], Batch]) -> None:
    """What was chosen computes what the plain interpreter does, on shares."""
    description, tensors, batch = model
    every = Choices(exponential="narrow", used="bits", deviation="large", activation="as one", product="straight")
    chosen = with_choices(in_two_windows(description), (every, Choices(used="two windows", deviation="tree")))
    weights, program = encode_weights(chosen, tensors), compile_stage(chosen, JOB)
    assert program.fingerprint != compile_stage(description, JOB).fingerprint
    inputs = encode_inputs(chosen, program, batch)
    run = Session(program.weights, weights).run(program, inputs)
    plain = run_plain(program, inputs, weights)
    wire = program.outputs["hidden"]
    gap = (signed(run.outputs["hidden"], wire.ring) - plain["hidden"]).abs().max()
    assert int(gap) <= 12, f"{int(gap)} units"  # of preset ditto on two layers (`Preset.ulp`)


# The command --------------------------------------------------------------------------------------


def test_the_command(model: tuple[Description, Any, Batch], tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(model[0].text())
    machines.write(tmp_path / "m.json", MACHINE)
    args = ["plan", "--model", str(tmp_path / "d.json"), "--machine", str(tmp_path / "m.json"), "--seq", str(SEQ)]
    result = CliRunner().invoke(app, [*args, "--network", "wan", "--for", "bytes", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    choices = tuple(Choices.model_validate(row) for row in found["choices"])
    rounds, sent, dealt = counts(cost_of(model[0], choices))
    assert (found["planned"]["rounds"], found["planned"]["bytes_sent"]) == (rounds, sent)
    assert found["planned"]["bytes_from_dealer"] == dealt
    for row in found["rows"]:
        assert sum(option["taken"] for option in row["options"]) == 1
    shown = CliRunner().invoke(app, [*args, "--network", "wan"])
    assert shown.exit_code == 0 and "as planned" in shown.stdout and "small tables" in shown.stdout
    for wrong in (["--network", "nowhere"], ["--for", "beauty"], ["--tokens", "3"]):
        assert CliRunner().invoke(app, [*args, *wrong]).exit_code in (2, 22)
    assert CliRunner().invoke(app, ["plan", "--model", "nobody"]).exit_code == 12


def test_the_command_measures(
    model: tuple[Description, Any, Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--measure` on five processes: a profile that has every kind of operation of what it timed, and is kept; without
    the option it is read. Shapes of one head; what it takes says nothing of a machine."""
    for name, shapes in (("TIMED", 1), ("ASKED", 2)):
        tiny = tuple(Shape(measuring.READS, 64, 8 * (i + 1)) for i in range(shapes))
        monkeypatch.setattr(measuring, name, tiny)
    monkeypatch.setattr(measuring, "GENERATING", (Shape(measuring.WRITES, 64, 8),))
    for name, value_ in (("PROGRAMS", 1), ("JOBS", 1), ("VOCABULARY", 64)):
        monkeypatch.setattr(measuring, name, value_)
    (tmp_path / "d.json").write_text(model[0].text())
    args = ["plan", "--model", str(tmp_path / "d.json"), "--machine", str(tmp_path / "m.json"), "--seq", str(SEQ)]
    assert CliRunner().invoke(app, args).exit_code != 0  # no such profile, and not asked to measure one
    result = CliRunner().invoke(app, [*args, "--measure", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    kept = machines.read(tmp_path / "m.json")
    assert kept.rates.keys() > {"Open/8", "MatmulWeight/4"} and kept.round > 0
    again = json.loads(CliRunner().invoke(app, [*args, "--json"]).stdout)
    assert again == found
    assert machines.read(tmp_path / "m.json") == kept
