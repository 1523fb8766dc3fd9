"""`ditto audit`: one party's recorded view of a job, run again on that party's machine."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ditto.cli.common import Json, emit, out
from ditto.client.home import home
from ditto.client.local_cluster import Cluster
from ditto.errors import ConfigError, UsageError
from ditto.names import PARTIES
from ditto.net.config import PartyConfig, load_config
from ditto.report.pieces import size


def audit(
    party: Annotated[int, typer.Option(min=0, max=1, help="Whose view: 0 or 1.")],
    job: Annotated[str, typer.Option(help="The job's name, or its first digits; without it, what is recorded.")] = "",
    config: Annotated[
        Path | None, typer.Option("--config", help="The party's YAML file; default: the local cluster's.")
    ] = None,
    json: Json = False,
) -> None:
    """Run one party's side of a recorded job again, and say at which step it did not do what it should have.

    Works on what that party keeps, without a server; never on both parties' views.
    """
    found = _config(party, config)
    from ditto.service import stored
    from ditto.service.audit import audit as run_again
    from ditto.service.audit import recorded
    from ditto.service.storage import storage_of

    stored.use(storage_of(found))
    if not job:
        rows = [{"job": one.job, "bytes": one.nbytes, "recorded_at": one.at} for one in recorded(found)]
        _list(rows, json)
        return
    import torch

    torch.set_num_threads(found.thread_count)
    done = run_again(found, job)
    header, account = done.header, done.account
    facts = {"role": header.role, "job": header.job, "model": header.model, "client": header.client}
    if json:
        emit(facts | {"as_recorded": True} | vars(account))
        return
    out.print(f"{header.role}, job {header.job[:8]} of {header.client} with {header.model}: {_found(vars(account))}")


def _found(account: dict[str, int | str]) -> str:
    text = (
        f"{account['steps']:,} steps, all as recorded: {account['sent']:,} messages sent, {account['dealt']:,} dealt, "
        f"{account['outputs']:,} output shares"
    )
    if account["failed"]:
        text += f"; then the work failed with {account['failed']}, as recorded"
    if account["given_up"]:
        text += f"; the job was given up: {account['given_up']}"
    return text


def _config(party: int, path: Path | None) -> PartyConfig:
    """Raises ConfigError, UsageError for another party's."""
    role = PARTIES[party]
    path = path or Cluster(home()).config_path(role)
    if not path.exists():
        raise ConfigError(f"{path}: no such file; name {role}'s own configuration with --config")
    config = load_config(path, PartyConfig)
    if config.role != role:
        raise UsageError(f"{path} is {config.role}'s configuration; --party {party} is {role}")
    if not config.data_dir.is_dir():
        raise ConfigError(f"{config.data_dir}: no such directory: {role} keeps nothing on this machine")
    return config


def _list(rows: list[dict[str, object]], json: bool) -> None:
    if json:
        emit(rows)
        return
    table = Table("job", "size", "recorded", box=None, pad_edge=False)
    for row in rows:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(str(row["recorded_at"]))))
        table.add_row(str(row["job"]), size(int(str(row["bytes"]))), moment)
    out.print(table if rows else "nothing is recorded; record: N in the party's configuration keeps the last N jobs")
