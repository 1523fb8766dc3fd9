"""Every preset: MPC against its own plain interpreter and its stated cost, padding, heads, the comparison's table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import run_mpc
from test_bert import TEXTS, checkpoint  # noqa: F401 (a fixture)
from typer.testing import CliRunner

from ditto.cli import app
from ditto.engine.plain import run_plain
from ditto.errors import UsageError
from ditto.models import (
    Plan,
    compile_stage,
    decode_outputs,
    encode_inputs,
    import_model,
    load_checkpoint,
    parse,
    random,
    random_batch,
    random_model,
)
from ditto.models.importer import with_preset
from ditto.presets import PRESETS, preset_of
from ditto.presets.choices import Choices
from ditto.presets.one_opening import OneOpening
from ditto.presets.style import ENCODER, AttentionBounds, Scores, Stage
from ditto.report.presets import markdown, ratio, row_of

EXACT = ("ditto", "ditto-icml24-exact", "puma")  # the rest change functions: a model has to be distilled for them


@pytest.fixture(autouse=True)
def small_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random.SHAPES, "small", ("BertModel", 2, 64, 4, 128))


def test_catalogue() -> None:
    assert {n for n, p in PRESETS.items() if not p.distilled} == set(EXACT)
    with pytest.raises(UsageError, match="ditto-icml24"):
        preset_of("sirnn")


def test_softmax_goes_without_a_maximum_where_types_have_room() -> None:
    """In an encoder up to 11 above the first score; on a cache of 36 bits less; unless a description says otherwise."""

    def asked(above: float, stage: Stage = ENCODER, keys: int = 128, **chosen: str) -> int:
        style = OneOpening().chosen(Choices.model_validate(chosen))
        bounds = AttentionBounds(8.0, Scores(30.0, above, 20.0, above + 20.0), 8.0)
        types, circle = style.attention(bounds, stage, keys)
        assert circle.asked or types.exponential.public_frac >= 4
        return circle.asked

    causal, later = Stage(causal=True), Stage(causal=True, later=True)
    assert not asked(10.0) and asked(12.0)
    assert not asked(5.0, causal) and not asked(5.0, later) and asked(9.0, causal)
    assert not asked(9.0, causal, keys=4)  # fewer keys leave more room
    assert asked(5.0, used="bits") == asked(5.0, used="table") == 2
    assert not asked(5.0, used="no maximum") and asked(12.0, used="no maximum")


@pytest.mark.parametrize("name", PRESETS)
def test_random_bert_of_two_layers(name: str) -> None:
    """MPC computes what the plain interpreter computes, within the stated noise, at the stated cost."""
    description, weights, source = random_model("small", 2, 16, name)
    batch = random_batch(1, 16)
    program = compile_stage(description, Plan(1, 16))
    inputs = encode_inputs(description, program, batch)
    want = run_plain(program, inputs, weights)["hidden"]
    run = run_mpc(program, inputs, {n: weights[n] for n in program.weights})
    gap = (run.outputs["hidden"] - want).abs().max()
    assert gap <= preset_of(name).ulp, f"{gap} ulp"
    for layer in range(len(program.layers)):
        cost = program.cost(layer)
        for ledger in run.ledgers:
            rows = ledger.rows("online", layer)
            assert (sum(r.rounds for r in rows), sum(r.bytes_sent for r in rows)) == (cost.rounds, cost.online)
        dealt = [r.bytes_from_dealer for ledger in run.ledgers for r in ledger.rows("offline", layer)]
        assert sum(dealt) == cost.dealer
    if name in EXACT:
        answer = torch.tensor(decode_outputs(description, program, run.outputs, batch))
        assert (answer - torch.tensor(source.reference(batch))).abs().max() < 0.03


@pytest.mark.parametrize("name", PRESETS)
def test_padding_changes_nothing_but_noise(checkpoint: Path, name: str) -> None:  # noqa: F811
    loaded = load_checkpoint(checkpoint)
    description, weights = import_model(loaded, "small", TEXTS, preset=name)
    answers = []
    for extra in (0, 8):
        batch = loaded.tokenizer().encode(["dog"], 24)
        for field in ("ids", "types", "mask"):
            setattr(batch, field, torch.nn.functional.pad(getattr(batch, field), (0, extra)))
        program = compile_stage(description, Plan(*batch.shape))
        plain = run_plain(program, encode_inputs(description, program, batch), weights)
        answers.append(torch.tensor(decode_outputs(description, program, plain, batch)))
    assert (answers[0] - answers[1]).abs().max() < 0.05


@pytest.mark.parametrize("name", EXACT)
def test_classifier_against_floats(checkpoint: Path, name: str) -> None:  # noqa: F811
    loaded = load_checkpoint(checkpoint)
    description, weights = import_model(loaded, "small", TEXTS, preset=name, embeddings="public")
    batch = loaded.tokenizer().encode(TEXTS[:1], 24)
    program = compile_stage(parse(description.text()), Plan(*batch.shape))
    run = run_mpc(
        program, encode_inputs(description, program, batch, loaded.tensors), {n: weights[n] for n in program.weights}
    )
    got = torch.tensor(decode_outputs(description, program, run.outputs, batch))
    assert (got - torch.tensor(loaded.reference(batch))).abs().max() < 0.1


def test_the_recipes_cost_what_the_reproduction_says() -> None:
    """BERT-base shape, 128 tokens: the order of presets that docs/reproduction.md explains."""
    description, _, _ = random_model("bert-tiny", 1, 16, "puma")
    wide = description.dimensions.model_copy(update={"hidden": 768, "embedding": 768, "heads": 12, "inner": 3072})
    description = description.model_copy(update={"dimensions": wide})
    cost = {name: compile_stage(with_preset(description, name), Plan(1, 128)).cost(1) for name in PRESETS}
    assert cost["ditto"].online < cost["ditto-icml24"].online < cost["mpcformer"].online < cost["puma"].online
    assert cost["ditto"].rounds < cost["mpcformer"].rounds < cost["ditto-icml24"].rounds < cost["puma"].rounds


def report(seconds: float, rounds: int = 7) -> dict[str, Any]:
    online = {"seconds": seconds, "rounds": rounds, "bytes_sent": [10, 12]}
    phases = {"online": online, "offline": {"seconds": 2 * seconds, "bytes_to_party": [5, 6]}}
    return {**phases, "wall_seconds": 4 * seconds, "operations": [{"operation": "gelu", **phases}]}


def test_table_of_medians_and_ratios() -> None:
    setting = {"model": "bert-base", "layers": 12, "seq": 128, "network": "wan"}
    rows = [
        row_of(setting | {"preset": name}, [report(t), report(9 * t), report(2 * t)])
        for name, t in (("ditto", 1.0), ("ditto-icml24", 3.0), ("puma", 6.0), ("mpcformer", 9.0))
    ]
    assert rows[0]["online_seconds"] == 2.0 and rows[0]["bytes_sent"] == 12 and rows[0]["bytes_from_dealer"] == 11
    assert ratio(rows, "puma", "ditto-icml24", "online_seconds") == 2.0
    assert ratio(rows, "secformer", "ditto", "online_seconds") is None
    text = markdown(rows, [])
    assert "| mpcformer / ditto-icml24 | 3.00 |" in text and "3.14 to 4.4" in text
    with pytest.raises(ValueError, match="differ"):
        row_of(setting, [report(1.0), report(1.0, rounds=8)])


def test_bench_presets_writes_table_json_and_plots(tmp_path: Path) -> None:
    command = ["bench", "presets", "--models", "bert-tiny", "--layers", "1", "--seq", "8", "--repeat", "2,1"]
    command += ["--network", "loopback,lan", "--presets", "ditto,puma", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "results.json").read_text())
    assert [row["preset"] for row in document["rows"]] == ["ditto", "puma"] * 2
    assert [len(row["online_runs"]) for row in document["rows"]] == [2, 2, 1, 1]
    for row in document["rows"]:
        for key in ("rounds", "bytes_sent", "bytes_from_dealer"):
            assert row[key] > 0
        assert sum(op["rounds"] for op in row["operations"]) == row["rounds"]
    first, _, *lines = (tmp_path / "results.md").read_text().splitlines()
    puma = document["rows"][1::2]
    seconds = [f"{row[f'{phase}_seconds']:.2f}" for row in puma for phase in ("online", "offline")]
    assert first == "## bert-tiny, 1 layers, 8 tokens"
    assert lines[3].startswith(f"| `puma` | {' | '.join(seconds)} | {puma[0]['rounds']} |")
    assert (tmp_path / "bert-tiny-1-8-loopback.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "bad", [["--models", "bert-huge"], ["--seq", "x"], ["--presets", "none"], ["--seq", "1"], ["--repeat", "1,2"]]
)
def test_bench_presets_refuses_what_it_does_not_know(tmp_path: Path, bad: list[str]) -> None:
    result = CliRunner().invoke(app, ["bench", "presets", "--out", str(tmp_path / "out"), *bad])
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_import_says_what_needs_distillation(
    checkpoint: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    command = ["model", "import", str(checkpoint), "--calibrate", str(texts), "--preset", name, "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["preset"] == name
    assert (f"preset {name} replaces functions" in result.stderr) == PRESETS[name].distilled
