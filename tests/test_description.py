"""What is public of a model: its limits, its errors, its rounding; and that every process compiles it alike."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ditto
from ditto.engine.program import Program
from ditto.errors import BadDescription, RangeError, UsageError, VersionMismatch
from ditto.models import (
    ARCHITECTURES,
    Checkpoint,
    Description,
    Dimensions,
    Plan,
    compile_stage,
    describe,
    parse,
    random_model,
)
from ditto.models.compiled import agreed_program, program_for, weights_of
from ditto.models.description import LONGEST, round_down, round_up
from ditto.models.importer import with_preset
from ditto.models.registry import architecture_of
from ditto.models.tokenizer import Batch
from ditto.presets import PRESETS

ROOT = Path(ditto.__path__[0])


@pytest.fixture(scope="module")
def descriptions() -> dict[str, Description]:
    return {shape: random_model(shape, 1, 16)[0] for shape in ("bert-tiny", "gpt2-tiny")}


# Limits and errors ---------------------------------------------------------------------------------


def changed(description: Description, change: Callable[[dict[str, Any]], None]) -> str:
    document = json.loads(description.text())
    change(document)
    return json.dumps(document)


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at a path; its last element is the value."""

    def change(document: Any) -> None:
        *way, key, value = path
        for step in way:
            document = document[step]
        document[key] = value

    return change


def test_a_description_travels(descriptions: dict[str, Description]) -> None:
    for description in descriptions.values():
        assert parse(description.text()) == description


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("dimensions", "vocabulary", 20_000_000), "dimensions.vocabulary: .*2000000"),
        (put("dimensions", "layers", 0), "dimensions.layers"),
        (put("dimensions", "layers", "2"), "dimensions.layers: .*integer"),
        (put("dimensions", "heads", 3), "not a multiple of 3 heads"),
        (put("dimensions", "hidden", 10**6), "dimensions.hidden"),
        (put("dimensions", "activation", "relu"), "dimensions.activation"),
        (put("dimensions", "labels", ["x" * 300]), "dimensions.labels.0"),
        (put("ranges", "layers", []), "ranges.layers"),
        (put("ranges", "layers", 0, "scores", "above", -1.0), "ranges.layers.0.scores.above"),
        (put("ranges", "layers", 0, "scores", "size", 1e9), "ranges.layers.0.scores.size"),
        (put("ranges", "layers", 0, "norm1", "variance", [2.0, 1.0]), "least is above"),
        (put("functions", 0, "coefficients", [0.0] * 300), "functions.0.coefficients"),
        (put("functions", 0, "coefficients", 0, 1e300), "functions.0.coefficients.0"),
        (put("ranges", "layers", 0, "neurons", [{"count": 1, "bound": 6.0}]), "neurons: .* expected in all"),
        (put("name", "../escape"), "name: "),
        (put("name", "x" * 65), "name: "),
        (put("unknown", 1), "unknown: Extra"),
        (put("embeddings", "hidden"), "embeddings: "),
        (lambda d: d.pop("ranges"), "ranges: Field required"),
        (lambda d: d["ranges"]["layers"].append(d["ranges"]["layers"][0]), "ranges of 2 layers for 1"),
    ],
)
def test_a_bad_description_is_refused_by_field(
    descriptions: dict[str, Description], change: Callable[[dict[str, Any]], None], says: str
) -> None:
    with pytest.raises(BadDescription, match=says) as caught:
        parse(changed(descriptions["bert-tiny"], change))
    assert len(str(caught.value)) < 600, "values may be long: they are not repeated"


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 100_000, " " * (LONGEST + 1), '{"format": 1e999}'])
def test_what_is_no_description(text: str) -> None:
    with pytest.raises((BadDescription, VersionMismatch)):
        parse(text)


def test_numbers_that_json_has_not(descriptions: dict[str, Description]) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(BadDescription, match="finite"):
            parse(changed(descriptions["bert-tiny"], put("ranges", "embeddings", value)))


def test_what_does_not_compile_is_refused(descriptions: dict[str, Description]) -> None:
    tiny = descriptions["bert-tiny"]
    with pytest.raises(BadDescription, match="no fit of gelu"):
        program_for(changed(tiny, put("functions", [])), Plan(1, 8))
    with pytest.raises(BadDescription, match="embedding_norm: missing"):
        program_for(changed(tiny, put("ranges", "embedding_norm", None)), Plan(1, 8))
    with pytest.raises(UsageError, match="1 to 512 tokens"):
        program_for(tiny.text(), Plan(1, 513))


def test_a_fingerprint_is_never_optional(descriptions: dict[str, Description]) -> None:
    text = descriptions["bert-tiny"].text()
    program = program_for(text, Plan(1, 8))
    assert agreed_program(text, Plan(1, 8), program.fingerprint) is program
    for other in ("", "0" * 32):
        with pytest.raises(VersionMismatch):
            agreed_program(text, Plan(1, 8), other)


def test_a_fingerprint_covers_the_outputs(descriptions: dict[str, Description]) -> None:
    program = compile_stage(descriptions["bert-tiny"], Plan(1, 8))
    before = program.fingerprint
    (name, wire), *_ = program.outputs.items()
    renamed = Program(program.layers, program.steps, program.inputs, {"other": wire}, program.weights)
    moved = Program(program.layers, program.steps, program.inputs, {name: program.inputs["onehot"]}, program.weights)
    assert len({before, renamed.fingerprint, moved.fingerprint}) == 3


def test_weights_do_not_depend_on_the_size(descriptions: dict[str, Description]) -> None:
    for description in descriptions.values():
        assert weights_of(description.text()) == compile_stage(description, Plan(2, 24)).weights


# Rounding ------------------------------------------------------------------------------------------


@given(st.floats(1e-9, 1e6))
def test_bounds_are_rounded_outwards_to_three_digits(x: float) -> None:
    up, down = round_up(x), round_down(x)
    assert down <= x <= up and up <= 1.011 * x and down >= 0.989 * x
    assert len(f"{up:.12e}".split("e")[0].replace(".", "").rstrip("0")) <= 3
    assert round_up(up) == up and round_down(down) == down


def test_a_model_shows_no_exact_maximum(descriptions: dict[str, Description]) -> None:
    def numbers(x: Any) -> list[float]:
        if isinstance(x, dict):
            return [n for value in x.values() for n in numbers(value)]
        if isinstance(x, list | tuple):
            return [n for value in x for n in numbers(value)]
        return [x] if isinstance(x, float) else []

    for description in descriptions.values():
        found = numbers(description.ranges.model_dump())
        assert len(found) > 10 and all(x == round_up(x) for x in found)


# The same program everywhere -----------------------------------------------------------------------

PRINT = """
import json, sys
from ditto.models import Plan, compile_stage, parse
for line in sys.stdin:
    text, batch, seq, tokens, stage = json.loads(line)
    print(compile_stage(parse(text), Plan(batch, seq, tokens), stage).fingerprint)
"""
PROCESSORS = [
    {"OPENBLAS_CORETYPE": "Haswell"},
    {"OPENBLAS_CORETYPE": "Sandybridge"},
    {"OPENBLAS_CORETYPE": "Nehalem", "ATEN_CPU_CAPABILITY": "default"},
    {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA,-FMA4", "ATEN_CPU_CAPABILITY": "avx2"},
]


def test_processors_compile_the_same_programs(descriptions: dict[str, Description]) -> None:
    """Every preset, in processes whose libraries take other paths through the processor."""
    jobs: list[tuple[str, int, int, int, int]] = []
    for name in PRESETS:
        jobs.append((with_preset(descriptions["bert-tiny"], name).text(), 1, 16, 1, 0))
    for name in ("ditto", "puma", "ditto-icml24-exact"):
        text = with_preset(descriptions["gpt2-tiny"], name).text()
        jobs += [(text, 1, 16, 3, stage) for stage in (0, 2)]
    lines = "\n".join(json.dumps(job) for job in jobs)
    want = [compile_stage(parse(text), Plan(b, n, tokens), stage).fingerprint for text, b, n, tokens, stage in jobs]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PRINT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT.parent)} | processor,
        )
        for processor in PROCESSORS
    ]
    for process, processor in zip(running, PROCESSORS, strict=True):
        out, _ = process.communicate(lines, timeout=120)
        assert out.split() == want, processor


COMPILED = [*ROOT.glob("presets/*.py"), *ROOT.glob("models/**/program.py"), ROOT / "engine" / "program.py"]
EXACT = {"ceil", "floor", "ldexp", "prod", "sqrt"}  # of the module math: alike on every processor


@pytest.mark.parametrize("path", COMPILED, ids=lambda p: str(p.relative_to(ROOT)))
def test_programs_are_made_exactly(path: Path) -> None:
    """As `tests/test_functions.py` asks of functions: nothing that a C library or a processor rounds its own way."""
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math":
            assert node.attr in EXACT, where
        assert not isinstance(node, ast.Pow), f"{where}: a power, which is the C library's where a float enters"
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = {node.module} if isinstance(node, ast.ImportFrom) else {name.name for name in node.names}
            assert not names & {"numpy", "scipy"}, where


# One registry --------------------------------------------------------------------------------------


def test_only_the_registry_and_its_families_name_an_architecture() -> None:
    """An `if` on an architecture anywhere else would be a place that a new one forgets."""
    families = re.compile(r"CLASSES")
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        named = [name for name in ARCHITECTURES if f'"{name}"' in text]
        inside = path.is_relative_to(ROOT / "models") and (families.search(text) or path.name == "random.py")
        assert inside or not named or path == ROOT / "models" / "export.py", f"{path}: {named}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_are_no_numbers_have_no_description(value: float) -> None:
    d = Dimensions(
        hidden=8, layers=1, heads=2, inner=16, vocabulary=16, positions=16, token_types=2, embedding=8, epsilon=1e-12
    )
    tensors = {name: torch.full(shape, value) for name, shape in architecture_of("BertModel").shapes(d).items()}
    zeros = torch.zeros((1, 4), dtype=torch.long)
    with pytest.raises(RangeError, match="calibration: "):
        describe(Checkpoint("BertModel", d, tensors), "bad", [Batch(zeros, zeros, torch.ones_like(zeros))])
