"""Where a user's things are."""

import os
from pathlib import Path


def home() -> Path:
    """This user's cluster and models: $DITTO_HOME, else ~/.local/state/ditto."""
    return Path(os.environ.get("DITTO_HOME") or Path.home() / ".local/state/ditto")
