"""The tutorial runs as it is stored, against this code, and says what it said.

Some 30 s of processor time on a busy machine: a kernel and four servers, each of which loads torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"


def said(book: Any) -> dict[str, str]:
    """What the cells print whose output is the same on every machine, by the id of the cell."""
    cells = [cell for cell in book.cells if "same" in cell.metadata.get("tags", ())]
    return {cell.id: "".join(o.text for o in cell.outputs if o.get("name") == "stdout") for cell in cells}


def test_the_tutorial_says_what_is_stored(tmp_path: Path) -> None:
    stored = nbformat.read(TUTORIAL, 4)
    expected = said(stored)
    assert len(expected) == 6 and all(expected.values())
    assert "negative  Two hours" in str(expected) and "out of range" in str(expected)
    pictures = [o for cell in stored.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(pictures) == 3 and TUTORIAL.stat().st_size < 100_000

    book = nbformat.read(TUTORIAL, 4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    here = str(Path.cwd())
    own = {"PYTHONPATH": here, "DITTO_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path)}
    NotebookClient(book, timeout=120, resources={"metadata": {"path": here}}).execute(env=os.environ | own)
    assert said(book) == expected
