"""What processes, models, jobs and sharings are called; the same words everywhere."""

from __future__ import annotations

import re
from typing import Literal, get_args

from ditto.errors import UsageError

Role = Literal["party0", "party1", "dealer", "coordinator", "client"]
ROLES: tuple[str, ...] = get_args(Role)
PARTIES: tuple[str, str] = ("party0", "party1")  # a party's index is its place here
SERVERS: tuple[str, ...] = ("dealer", *PARTIES, "coordinator")  # in the order of their start

PRESETS = ("ditto", "ditto-icml24", "ditto-icml24-exact", "puma", "mpcformer", "secformer")  # `ditto.presets` has them

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ID = r"^[0-9a-f]{32}$"


def server_name(role: str, worker: int = 0) -> str:
    """Of one server among those of a cluster: party0, and from a party's second worker on party0-1."""
    return f"{role}-{worker}" if worker else role


def check_name(name: str) -> str:
    """A model's name is also a directory's, at its owner: 1 to 64 characters that are safe there. Raises UsageError."""
    if not re.fullmatch(NAME, name):
        raise UsageError(
            f"{name[:100]!r} is no model name: letters, digits, '.', '_' and '-', a letter or digit first, at most 64"
        )
    return name


def check_id(value: str) -> str:
    """Jobs and sharings are named by 32 hexadecimal digits, also in file names. Raises UsageError."""
    if not re.fullmatch(ID, value):
        raise UsageError("bad identifier: 32 hexadecimal digits expected")
    return value
