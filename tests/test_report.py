"""The HTML page on what a request cost: its figures, what it must not hold, and the file it is written to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from engine import beside
from test_trace import check_trace
from typer.testing import CliRunner

from ditto.cli import app
from ditto.errors import DittoError, UsageError
from ditto.files import write
from ditto.net.emulation import network
from ditto.report.cost_model import predict_all
from ditto.report.page import render
from ditto.report.target import target

EVIL = "<script>alert('x')</script>&\"<b>"
BROWSER = shutil.which("chromium")
VOID = {"meta", "rect", "line"}


class Page(HTMLParser):
    """Checks that tags nest; keeps the numbers of every table row, by table, and the headline's."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: dict[str, list[list[float]]] = {}
        self.names: dict[str, list[str]] = {}
        self.table, self.cell = "", False
        self.headline: list[float] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = found["id"] or ""
            self.tables[self.table], self.names[self.table] = [], []
        if tag == "tr":
            self.tables[self.table].append([])
            self.names[self.table].append("")
            self.cell = True
        if tag == "data":
            value = float(found["value"] or "")
            if self.table and "table" in self.open:
                self.tables[self.table][-1].append(value)
            else:
                self.headline.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.cell and self.table:
            self.names[self.table][-1] += data

    def rows(self, table: str) -> dict[str, list[float]]:
        return {n: r for n, r in zip(self.names[table], self.tables[table], strict=True) if r}


def account(seconds: float, rounds: int, sent: list[int], offline: float, dealt: list[int]) -> dict[str, Any]:
    return {
        "online": {"seconds": seconds, "waiting": seconds / 4, "rounds": rounds, "bytes_sent": sent},
        "offline": {"seconds": offline, "bytes_to_party": dealt},
    }


def times(layer: int, name: str, start: float, waits: list[float]) -> dict[str, Any]:
    """A layer of a timeline: half a second offline before it; before each round and at the end 1/16 s of computing."""
    starts = [start + 0.0625 * (i + 1) + sum(waits[:i]) for i in range(len(waits))]
    return {
        "layer": layer, "name": name, "offline": {"start": start - 0.75, "seconds": 0.5},
        "online": {"start": start, "seconds": 0.0625 * (len(waits) + 1) + sum(waits)},
        "rounds": {
            "operation": [f"{name} {i // 2}" for i in range(len(waits))], "start": starts, "waiting": waits,
            "bytes_sent": [1000 * layer + i for i in range(len(waits))],
        },
    }  # fmt: skip


def summary(name: str = "tiny") -> dict[str, Any]:
    layers = [
        {"layer": 0, "name": "embeddings", **account(0.25, 3, [2_000, 1_000], 0.125, [8_000, 9_000])},
        {"layer": 1, "name": f"layer {name}", **account(1.5, 30, [3_000_001, 3_000_000], 2.0, [10_000_000, 7])},
    ]
    timelines = [times(0, "embeddings", 0.0, [0.125]), times(1, f"layer {name}", 1.0, [0.25, 0.5, 0.125])]
    return {
        "model": name, "architecture": "BertModel", "preset": "ditto", "network": "loopback", "texts": 1, "seq": 16,
        "output": [[0.123456789, 987.654321]], "plaintext_output": [[0.111222333]], "max_abs_error": 0.0,
        **account(1.75, 33, [3_002_001, 3_001_000], 2.125, [10_008_000, 9_007]), "wall_seconds": 4.5,
        "layers": layers, "operations": [{"operation": name, **{k: layers[1][k] for k in ("online", "offline")}}],
        "jobs": 1, "rounds_timeline": {"party": 1, "layers": timelines},
    }  # fmt: skip


def figures(row: dict[str, Any]) -> list[float]:
    on, off = row["online"], row["offline"]
    return [off["seconds"], *off["bytes_to_party"], on["seconds"], on["waiting"], on["rounds"], *on["bytes_sent"]]


def check_figures(text: str, costs: dict[str, Any]) -> Page:
    """Every figure of the report stands in the page, exactly."""
    page = Page(text)
    assert page.headline == [
        costs["online"]["seconds"], costs["online"]["rounds"], max(costs["online"]["bytes_sent"]),
        costs["offline"]["seconds"], sum(costs["offline"]["bytes_to_party"]), costs["wall_seconds"],
    ]  # fmt: skip
    assert page.rows("layers") == {row["name"]: figures(row) for row in costs["layers"]} | {"all": figures(costs)}
    assert page.rows("operations") == {row["operation"]: figures(row) for row in costs["operations"]}
    check_rounds(page, costs["rounds_timeline"]["layers"])
    runs = predict_all(costs, network(costs["network"]))
    predicted = page.rows("predictions")
    assert [name.removesuffix(" (measured)") for name in predicted] == [run.network.name for run in runs]
    for run, row in zip(runs, predicted.values(), strict=True):
        parts = [run.total.online, run.total.compute, run.total.latency, run.total.transfer, run.total.offline]
        assert row == [*parts, run.overlapped, run.sequential]
    assert list(page.rows("layer-predictions")) == [row["name"] for row in costs["layers"]]
    return page


def check_rounds(page: Page, layers: list[dict[str, Any]]) -> None:
    """The timeline's figures: by layer, and each round of the longest one."""
    for layer, row in zip(layers, page.rows("rounds").items(), strict=True):
        waited, rounds = round(sum(layer["rounds"]["waiting"]), 6), layer["rounds"]
        computed = round(layer["online"]["seconds"] - waited, 6)
        assert row == (layer["name"], [computed, waited, len(rounds["start"]), sum(rounds["bytes_sent"])])
    longest = max(layers, key=lambda layer: float(layer["online"]["seconds"]))
    rounds, zero, before = longest["rounds"], longest["online"]["start"], longest["online"]["start"]
    shown = page.rows("longest-rounds")
    assert list(shown) == [f"{i} {operation}" for i, operation in enumerate(rounds["operation"], 1)]
    for i, row_ in enumerate(shown.values()):
        start, waited = rounds["start"][i], rounds["waiting"][i]
        assert row_ == [pytest.approx(start - zero), pytest.approx(start - before), waited, rounds["bytes_sent"][i]]
        before = start + waited


def check_closed(text: str) -> None:
    """The page asks nothing of anybody else and runs nothing."""
    low = text.lower()
    assert not any(found in low for found in ("http://", "https://", "<script", "<link", "<img", "url(", "@import"))
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in text


def test_page_has_the_reports_figures() -> None:
    text = render(summary(), network("loopback"))
    page = check_figures(text, summary())
    check_closed(text)
    assert "What it cost: tiny" in page.words and "prefers-color-scheme: dark" in text
    assert "spent" not in page.tables, "of who did not measure"


def test_page_has_every_second() -> None:
    """One bar a part, each from where the one before ends; together they are the line."""
    parts = {"start": 1.0, "imports": 2.5, "offline": 0.25, "online": 4.0, "<a part>": 0.125, "other": 0.125}
    text = render(summary() | {"spent": {"seconds": 8.0, "parts": parts}}, None)
    page = Page(text)
    assert page.rows("spent") == {name: [seconds] for name, seconds in parts.items()}
    table = text[text.index('<table id="spent">') :]
    places = re.findall(r'x="([\d.]+)%" y="2" width="([\d.]+)%"', table[: table.index("</table>")])
    assert len(places) == len(parts)
    for place, (start, wide) in enumerate(places):  # written to three digits
        before, seconds = sum(list(parts.values())[:place]), list(parts.values())[place]
        assert (float(start), float(wide)) == pytest.approx((100 * before / 8, 100 * seconds / 8), abs=0.0006)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("name", ["tiny", EVIL])
def test_a_browser_reads_the_same_figures(name: str, tmp_path: Path) -> None:
    """What a browser makes of the page has the same nesting and figures."""
    path = tmp_path / "report.html"
    write(path, render(summary(name), network("loopback")))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    made = subprocess.run(
        [str(BROWSER), *options, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    check_figures(made.stdout, summary(name))
    check_closed(made.stdout)


def test_page_holds_no_answer() -> None:
    text = render(summary(), network("loopback"))
    assert not any(found in text for found in ("0.1234", "987.65", "0.1112"))


def test_names_are_escaped() -> None:
    text = render(summary(EVIL), network("loopback"))
    page = check_figures(text, summary(EVIL))
    check_closed(text)
    assert f"What it cost: {EVIL}" in page.words


def test_one_of_several_jobs_is_shown() -> None:
    assert "first of 3 jobs" in Page(render(summary() | {"jobs": 3}, network("loopback"))).words
    assert "first of" not in Page(render(summary(), network("loopback"))).words


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
def test_any_duration_makes_a_page(scale: float) -> None:
    costs = summary()
    for row in (costs, *costs["layers"]):
        for phase in ("online", "offline"):
            row[phase]["seconds"] *= scale
    for layer in costs["rounds_timeline"]["layers"]:
        for part in (layer["offline"], layer["online"]):
            part |= {key: value * scale for key, value in part.items()}
        for key in ("start", "waiting"):
            layer["rounds"][key] = [value * scale for value in layer["rounds"][key]]
    Page(render(costs, network("wan")))


def test_without_a_known_network_nothing_is_predicted() -> None:
    page = Page(render(summary(), None))
    assert "predictions" not in page.tables and "Not predicted" in page.words


# The file -----------------------------------------------------------------------------------------


def test_write_replaces_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write(path, "first")
    write(path, "second")
    assert path.read_text() == "second"

    def full(self: Path, other: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(DittoError, match="No space"):
            write(path, "third")
    assert path.read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_bad_targets_are_refused(tmp_path: Path) -> None:
    assert target(None) is None
    assert target(tmp_path / "a.html") == tmp_path / "a.html"
    with pytest.raises(UsageError, match="no directory"):
        target(tmp_path / "absent" / "a.html")
    with pytest.raises(UsageError, match="not a file"):
        target(tmp_path)
    with pytest.raises(UsageError, match="not a file"):
        target(Path("/dev/null"))


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.html").symlink_to(tmp_path / "real" / "a.html")
    assert target(tmp_path / "link.html") == tmp_path / "real" / "a.html"


@pytest.mark.parametrize(
    "command",
    [["infer", "--model", "any", "--text", "a"], ["generate", "--model", "any", "--prompt", "a"], ["bench", "model"]],
)
@pytest.mark.parametrize("option", ["--report", "--trace"])
def test_a_missing_directory_is_refused_before_the_job(
    command: list[str], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    result = CliRunner().invoke(app, [*command, option, str(tmp_path / "absent" / "r.html")])
    assert result.exit_code == 2
    assert f"{option} " in result.stderr and "no directory" in result.stderr and result.stdout == ""
    assert not (tmp_path / "home").exists()


def test_one_file_cannot_be_both(tmp_path: Path) -> None:
    path = str(tmp_path / "r.html")
    result = CliRunner().invoke(app, ["bench", "model", "--report", path, "--trace", path])
    assert result.exit_code == 2 and "one file" in result.stderr
    assert not list(tmp_path.iterdir())


# One run ------------------------------------------------------------------------------------------


def test_bench_model_writes_its_report(tmp_path: Path) -> None:
    path, trace = tmp_path / "report.html", tmp_path / "trace.json"
    size = ["--model", "bert-tiny", "--layers", "1", "--seq", "16", "--batch", "3"]
    files = ["--report", str(path), "--trace", str(trace)]
    result = CliRunner().invoke(app, ["bench", "model", *size, "--check", *files, "--json"])
    assert result.exit_code == 0, result.output
    costs = json.loads(result.stdout)
    assert costs["texts"] == len(costs["output"]) == 3
    assert costs["max_abs_error"] < 0.05
    assert costs["kernels"].keys() == {"16 bits", "32 bits", "64 bits"}
    assert set(costs["kernels"].values()) <= {"integer", "float64", "int8"}
    for party, counted in enumerate(costs["traffic"].values()):
        assert counted["sent"]["payload"] == costs["online"]["bytes_sent"][party] + beside()[1]
        assert counted["from_dealer"]["payload"] == costs["offline"]["bytes_to_party"][party]
    for layer, row in zip(costs["rounds_timeline"]["layers"], costs["layers"], strict=True):
        party = costs["rounds_timeline"]["party"]
        assert len(layer["rounds"]["start"]) == row["online"]["rounds"]
        assert sum(layer["rounds"]["bytes_sent"]) == row["online"]["bytes_sent"][party]
        assert layer["online"]["seconds"] <= row["online"]["seconds"] + 1e-6
    for row in (costs, *costs["layers"], *costs["operations"]):
        assert 0 <= row["online"]["waiting"] <= row["online"]["seconds"]
    assert costs["online"]["waiting"] > 0
    text = path.read_text()
    check_figures(text, costs)
    check_closed(text)
    text += trace.read_text()
    check_trace(json.loads(trace.read_text()), costs)
    long = [shown for value in costs["output"][0] if len(shown := repr(abs(value))) > 8]  # 0.5 may stand for seconds
    assert long and not any(shown in text for shown in long)
