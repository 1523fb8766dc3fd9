"""What killed processes left in a server's directory, collected when it starts: half-written files, and sharings that
were never received whole."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import structlog

from ditto import files
from ditto.names import ID

log = structlog.get_logger()
COPIES = "copies"  # what a worker has of its keeper's sharings
AGE = 3600.0  # seconds: another process may still be writing what is younger
# All that an upload or an activation leaves before there is an entry. A directory with anything else is not touched.
_PARTS = frozenset({"seed", "shares.safetensors", "mask_seed", "opened.safetensors", "kept.safetensors"})


def collect(data_dir: Path, age: float | None = AGE) -> None:
    """Remove what nobody will finish. Entries, damaged ones too, stay. Who is alone on the directory gives no age: then
    no clock is asked, which may have jumped."""
    for path in sorted((*data_dir.glob("models/*/"), *data_dir.glob(f"{COPIES}/*/"))):
        if re.fullmatch(ID, path.name) and _without_entry(path, age):
            log.info("sharing without an entry removed", path=str(path))
            shutil.rmtree(path, ignore_errors=True)
    for path in sorted(data_dir.rglob(".*.new")):
        if files.remove_abandoned(path, age):
            log.info("leftover removed", path=str(path))


def _without_entry(directory: Path, age: float | None) -> bool:
    inside = list(directory.iterdir())
    if age is not None and time.time() - max(path.stat().st_mtime for path in (directory, *inside)) <= age:
        return False
    return all(path.name in _PARTS or path.suffix == ".new" for path in inside)
