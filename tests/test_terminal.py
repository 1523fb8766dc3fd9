"""Other people's names, labels and messages on a terminal: no markup, no control sequence, no line of their own."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from ditto.cli import cluster, common, demo, doctor, evaluate_show, generate, infer_show, plan
from ditto.cli.common import ErrorGroup, Terminal, indented, note, one_line, visible
from ditto.cli.generating import Words, Writer
from ditto.cli.infer_show import show
from ditto.cli.report import print_costs
from ditto.cli.run import Watcher
from ditto.cli.said import Reader
from ditto.cli.waiting import Waiting
from ditto.doctor.finding import Finding, Verdict
from ditto.errors import ClusterError
from ditto.models import Answer
from ditto.models.tokenizer import Piece
from ditto.names import PRESETS
from ditto.report.presets import apart
from ditto.wall import Wall

EVIL = "[red]r[/red] [link=http://x]l[/link] :bomb:\x1b[2J\x1b]0;t\x07\x9b1m\r\b\u202e\u2066"
SEEN = r"[red]r[/red] [link=http://x]l[/link] :bomb:\x1b[2J\x1b]0;t\x07\x9b1m\r\x08\u202e\u2066"


@pytest.fixture()
def screen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both consoles as on a wide terminal with colours."""
    made = SimpleNamespace(out=io.StringIO(), err=io.StringIO())
    for name, file in vars(made).items():
        console = Terminal(file=file, force_terminal=True, width=1000)
        for module in (common, infer_show, cluster, generate, sys.modules["ditto.cli.report"]):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, console)
    return made


def costs(name: str) -> dict[str, Any]:
    phase = {"seconds": 1.0, "bytes_to_party": [1, 1], "rounds": 1, "bytes_sent": [1, 1]}
    row = {"offline": phase, "online": phase}
    return row | {"layers": [row | {"name": name}], "texts": 1, "seq": 8, "spent": Wall().document()}


def clean(text: str) -> bool:
    """Nothing of it reaches the terminal but bold and plain."""
    for own in ("\x1b[1m", "\x1b[1;31m", "\x1b[0m", "\n"):
        text = text.replace(own, "")
    return visible(text) == text


def test_what_is_spelled_out() -> None:
    assert visible(EVIL) == SEEN
    assert visible("Zürich 東京 \u200dא\u200f\n\ta\\b") == "Zürich 東京 \u200dא\u200f\n\ta\\b"
    assert one_line("a\nb\tc\u2028\ud800") == r"a\nb\tc\u2028\ud800"
    assert indented("one\ntwo\n  three\r") == "one\n  two\n  three\\r"


@pytest.mark.parametrize("answer", [Answer.labels, Answer.tokens])
def test_labels(answer: Answer, screen: Any) -> None:
    label = f"{EVIL}\nnothing was running"
    logits: Any = [2.0, 1.0]
    summary = costs(EVIL) | {"output": [logits if answer is Answer.labels else [logits]], "owner": f"{EVIL}\nx"}
    head = {Answer.labels: "BertForSequenceClassification", Answer.tokens: "BertForTokenClassification"}[answer]
    dimensions = SimpleNamespace(labels=(label, "other"), problem_type="single_label_classification")
    asked: Any = SimpleNamespace(architecture=head, dimensions=dimensions)
    tokenizer: Any = SimpleNamespace(pieces=lambda text, most: [Piece(0, 0, 0, 1)])
    show([EVIL], summary, Reader(asked, tokenizer))
    text = screen.out.getvalue()
    assert clean(text) and f"{SEEN}\\nnothing was running" in text and "\nnothing" not in text
    assert text.count(SEEN) == (5 if answer is Answer.labels else 4)  # text, layer, owner, labels


def test_status_lines(screen: Any) -> None:
    dealer = {"models": [f"{EVIL}\nx"], "parties": {}}
    local: Any = SimpleNamespace(root=EVIL, unconfirmed=dict, set_aside=dict)
    cluster._show(local, [], False, {"dealer": dealer, "queue": {"running": [EVIL], "waiting": 0, "aside": 0}})
    text = screen.out.getvalue()
    assert clean(text) and text.count(SEEN) == 3 and f"{SEEN}\\nx" in text


def test_errors_and_notes(screen: Any) -> None:
    app = typer.Typer(cls=ErrorGroup)

    @app.callback()
    def _root() -> None:
        pass

    @app.command()
    def fail() -> None:
        raise ClusterError(f"{EVIL}\nerror (NOTHING): fine")

    with pytest.raises(SystemExit) as ended:
        app(["fail"])
    note(f"{EVIL}\nfine")
    text = screen.err.getvalue()
    assert ended.value.code == ClusterError.exit_code
    assert clean(text) and text.count(SEEN) == 2 and "\n  error (NOTHING)" in text and "\n  fine" in text


def test_layers_and_progress(screen: Any) -> None:
    print_costs(costs(f"{EVIL}\nx"))
    assert clean(screen.out.getvalue()) and f"{SEEN}\\nx" in screen.out.getvalue()
    event = {"phase": "online", "name": f"{EVIL}\nx", "seconds": 1.0}
    Watcher(None, quiet=False).event(event)
    assert f"{SEEN}\\nx" in screen.err.getvalue() and clean(screen.err.getvalue())
    file = io.StringIO()
    with Progress(TextColumn("{task.description}", markup=False), console=Console(file=file, width=1000)) as bar:
        watcher = Watcher(bar, quiet=False)
        watcher.job("model")
        watcher.event(event)
    assert SEEN in file.getvalue() and visible(file.getvalue()) == file.getvalue()


def test_cells_of_tables(screen: Any) -> None:
    table = Table("name")
    table.add_row(EVIL)
    common.out.print(table)
    assert SEEN in screen.out.getvalue()


def test_tables_on_80_columns(screen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With long runs' figures: a row is a line, nothing is cut; where a text of somebody's or two words of choices are
    longer, numbers stay."""
    narrow = Terminal(file=screen.out, force_terminal=True, width=80, no_color=True)
    for module in (demo, doctor, evaluate_show, plan, sys.modules["ditto.cli.report"], common):
        monkeypatch.setattr(module, "out", narrow)
    phase = {"seconds": 1234.56, "bytes_to_party": [4 * 10**9] * 2, "rounds": 12345, "bytes_sent": [10**9] * 2}
    row = {"offline": phase, "online": phase}

    def lines() -> list[str]:
        text = re.sub(r"\x1b\[[0-9;]*m", "", screen.out.getvalue())
        screen.out.truncate(0), screen.out.seek(0)
        assert "…" not in text.replace('"…"', "") and max(map(len, text.splitlines())) <= 80
        return [line for line in text.splitlines() if line.strip()]

    print_costs(row | {"layers": [row | {"name": "embeddings"}] * 3})
    assert len(lines()) == 5
    said = {"label": "positive", "probability": 0.999}
    sentences = [{"text": text} | said | {"plaintext": said} for text in demo.SENTENCES]
    demo.out.print(demo._sentiment_table({"sentences": sentences}))
    pairs = [{"a": a, "b": b, "similarity": -0.99, "plaintext": -0.99} for a, b in demo.PAIRS]
    demo.out.print(demo._similarity_table({"pairs": pairs}))
    assert len(lines()) == 1 + len(demo.SENTENCES) + 1 + 2 * len(demo.PAIRS)
    demo.out.print(demo.NEXT)
    assert lines() == demo.NEXT.strip().split("\n")
    value = {"value": 0.9123, "interval": [0.9012, 0.9312]}
    modes = [{"mode": mode, "n": 872, "metrics": {"spearman": value, "pearson": value}, "less_fp32": value, **value,
              "compared_with": None, "seconds": 123.456, "online_seconds": 123.456, "offline_seconds": 123.456,
              "mb_party": 12345.67, "mb_dealer": 12345.67, "rounds": 12345.6, "out_of_range": None}
             for mode in ("fp32", "plain", "mpc")]  # fmt: skip
    demo.out.print(evaluate_show._answers(modes))
    demo.out.print(evaluate_show._costs(modes))
    assert len(lines()) == 8
    option = {"own": False, "taken": True, "rounds": 1234, "bytes_sent": 8 * 10**8, "bytes_from_dealer": 8 * 10**8}
    option |= {"seconds": 123.456, "error": 0.00123}
    choices = {"softmax": {"exponential": "narrow", "used": "table"}, "layernorm": {"deviation": "medium"}}
    choices["gelu"] = {"activation": "by neuron", "gelu": "precise"}
    rows = [{"layer": 23, "part": part, "options": [option | {"choice": one}]} for part, one in choices.items()]
    end = {"rounds": 12345, "bytes_sent": 8 * 10**8, "bytes_from_dealer": 8 * 10**9, "seconds": 12345.67}
    end |= {"online_seconds": 1234.56, "offline_seconds": 1234.56}
    plan._show(cast(Any, None), {"network": "loopback", "rows": rows, "own": end, "planned": end})
    shown = lines()
    assert sum("800.0 MB  800.0 MB  123.456  0.00123" in line for line in shown) == 3
    assert [line.split()[0] for line in shown[-3:]] == ["on", "the", "as"]
    groups = [{"model": "bert-base", "layers": 12, "seq": 128, "network": name, "preset": preset, "rounds": 1234,
               "online_seconds": 1234.5, "offline_seconds": 1234.5, "bytes_sent": 10**9, "bytes_from_dealer": 10**10}
              for name in ("lan", "wan") for preset in PRESETS]  # fmt: skip
    assert max(map(len, apart(groups, []))) <= 80
    doctor._show(Finding("client", "disk", Verdict.warning, "much " * 30, "do this and that " * 8))
    shown = lines()
    assert shown[1].startswith(" " * 10 + "much") and shown[-1].startswith(" " * 13) and len(shown) == 5


def test_generated_text(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer: Any = SimpleNamespace(
        end_of_text=None, stream=lambda: SimpleNamespace(push=lambda token: EVIL, finish=lambda: "\n")
    )
    writer, words = Writer("a prompt\n", Watcher(None, quiet=True)), Words(tokenizer)
    writer.write(words.push(1))
    writer.finish(words.finish())
    assert capsys.readouterr().out == f"a prompt\n{SEEN}\n\n"


def test_what_is_waited_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In lines: none before two seconds, one in two seconds, none twice; nothing when quiet. On a terminal a bar."""
    now = [0.0]
    monkeypatch.setattr("ditto.cli.waiting.time", SimpleNamespace(monotonic=lambda: now[0]))
    lines, quiet = Waiting(None, False), Waiting(None, True)
    for second, text in ((1, "a"), (2, "b"), (3, "c"), (4, "c"), (6, "c"), (9, "d\x1b[2J")):
        now[0] = float(second)
        lines(text)
        quiet(text)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["b", "c", "d\\x1b[2J"] and not captured.out
    with Progress(TextColumn("{task.description}"), console=Console(file=io.StringIO()), disable=True) as bar:
        Waiting(bar, False)("half", 1, 2)
        assert (bar.tasks[0].description, bar.tasks[0].percentage) == ("half", 50)
