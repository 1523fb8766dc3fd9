"""What a soak run found, for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from benchmarks.servers import Usage


def tables(found: dict[str, Any]) -> Iterator[Table | str]:
    table = Table("what happened", "times", "repaired in, at most s")
    kinds: defaultdict[str, list[float]] = defaultdict(list)
    for fault in found["faults"]:
        whom = "client" if fault["kind"] == "client" else ", ".join(sorted(fault["targets"]))
        kinds[f"{fault['kind']}: {whom}"].append(fault["repaired_seconds"])
    for kind, of in sorted(kinds.items()):
        table.add_row(kind, str(len(of)), f"{max(of):.1f}")
    yield table
    table = Table("outcome", "jobs", "p50 s", "max s")
    for code, of in found["outcomes"].items():
        table.add_row(code, str(of["jobs"]), f"{of['p50_seconds']:.2f}", f"{of['max_seconds']:.2f}")
    yield table
    table = Table("server", "MB before, after", "threads", "files")
    for role, of in found["usage"].items():
        table.add_row(role, *(f"{of['before'][name]}, {of['after'][name]}" for name in Usage._fields))
    yield table
    yield (
        f"{found['jobs']} jobs, {len(found['faults'])} faults, seed {found['seed']}, {found['seconds']:.0f} s; "
        f"full disk: {found['full_disk']}; clock: {found['clock']}; "
        f"{found['keys_expanded']} uses of keys, {found['job_identifiers']} job identifiers"
    )
    yield from (f"BREACH: {line}" for line in found["breaches"])
