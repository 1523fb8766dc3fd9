"""What `ditto infer` prints for people."""

from typing import TYPE_CHECKING, Any

from ditto.cli.common import note, one_line, out
from ditto.cli.report import largest, print_costs

if TYPE_CHECKING:
    from ditto.cli.said import Reader
    from ditto.models.tokenizer import Text


def show(texts: "list[Text]", summary: dict[str, Any], reader: "Reader") -> None:
    """Answers in the order of the texts, then what they cost."""
    for text, values in zip(texts, summary["output"], strict=True):
        out.print(text if isinstance(text, str) else "\n+ ".join(text), style="bold")
        out.print(f"  {reader.line(text, values)}")
    if "verdict_text" in summary:
        out.print(summary["verdict_text"])
    out.print()
    print_costs(summary)
    out.print(f"\nthe model belongs to {one_line(summary['owner'])}")
    out.print(f"{summary['texts']} text(s) padded to {summary['seq']} tokens")
    out.print(largest(summary["spent"]))


def show_written(summary: dict[str, Any]) -> None:
    """After answers were written elsewhere, on stderr: stdout may have them."""
    before = f", {summary['answered_before']:,} before" if summary["answered_before"] else ""
    note(f"{summary['texts']:,} texts answered{before}; {largest(summary['spent'])}")
    if "verdict_text" in summary:
        note(summary["verdict_text"])
