"""A server's directory when it starts: nobody else's, and without what killed processes left in it, half-written files
and sharings that were never received whole."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import structlog

from ditto import files
from ditto.errors import ConfigError
from ditto.names import ID

log = structlog.get_logger()
PATIENCE = 10.0  # seconds: an older server of the same directory may be about to end
# All that an upload or an activation leaves before there is an entry. A directory with anything else is not touched.
_PARTS = frozenset({"seed", "shares.safetensors", "mask_seed", "masked.safetensors", "kept.safetensors"})


@contextlib.contextmanager
def alone(data_dir: Path, patience: float = PATIENCE) -> Iterator[None]:
    """No other server uses this directory until the block ends, or the process does: two would not know which
    identifiers the other one uses up. Raises ConfigError."""
    files.make_directory(data_dir, 0o700)
    try:
        with files.locked(data_dir / "server.lock", patience, lambda: None):
            yield
    except TimeoutError:
        raise ConfigError(f"another server runs on {data_dir}") from None


def collect(data_dir: Path) -> None:
    """Remove what nobody will finish: who calls is `alone`. Entries, damaged ones too, stay. No clock is asked."""
    for path in sorted(data_dir.glob("models/*/")):
        if re.fullmatch(ID, path.name) and _without_entry(path):
            log.info("sharing without an entry removed", path=str(path))
            shutil.rmtree(path, ignore_errors=True)
    for path in sorted(data_dir.rglob(".*.new")):
        if files.remove_abandoned(path):
            log.info("leftover removed", path=str(path))


def _without_entry(directory: Path) -> bool:
    return all(path.name in _PARTS or path.suffix == ".new" for path in directory.iterdir())
