"""The replay audit: one party's recorded view of a job, run again on what that party stores, on its own machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import ditto
from ditto.engine.replay import Account, Deviation, replay
from ditto.errors import DamagedFile, IntegrityError, LimitExceeded, UnknownModel, VersionMismatch
from ditto.models.compiled import program_for
from ditto.net.config import PartyConfig
from ditto.net.peerlink import message_digests
from ditto.service.leftovers import COPIES
from ditto.service.model_store import Entry, load_weights, marks
from ditto.service.recordings import FORMAT, Header, Recorded, find, of_one_party, opened
from ditto.service.stored import Owner, load_entry


class Audit(NamedTuple):
    """What was audited, and what was found."""

    header: Header
    account: Account


def recorded(config: PartyConfig) -> list[Recorded]:
    """What this party recorded, oldest first. Raises NotAllowed where the other party's recordings lie, too."""
    return of_one_party(config.data_dir, config.role)


def audit(config: PartyConfig, job: str) -> Audit:
    """Run one party's side of a recorded job again. No server has to run, and none is asked.

    1. The recording opens as what it was written as, to its end: DamagedFile.
    2. The version is the one that ran, and so is the program: VersionMismatch.
    3. The sharing is still there, and its files are those that the job found: UnknownModel, DamagedFile.
    4. The engine does what it did, message by message: IntegrityError says where it does not.
    """
    role = config.role
    # 1
    found = find(config.data_dir, role, job)
    header, events = opened(found, role)
    for event in events:
        if event.kind == "omitted":
            raise LimitExceeded(f"{role} did not record this job: it takes more than record_mb", peer=role)
    # 2
    if (header.format, header.version) != (FORMAT, ditto.__version__):
        raise VersionMismatch(
            f"recorded by ditto {header.version} (format {header.format}); this is {ditto.__version__}", peer=role
        )
    # 3
    home = _home(config, header)
    entry = _entry(config, header)
    if program_for(entry.description, header.plan).fingerprint != header.fingerprint:
        raise VersionMismatch("the model compiles to another program here than was recorded (fingerprint)", peer=role)
    now = marks(home)
    changed = [name for name, mark in header.files.items() if now.get(name) != mark]
    if changed or entry.share_digest != header.share_digest:
        name = changed[0] if changed else "model.json"
        raise DamagedFile(f"{role}: {home / name}: not the file that this job ran on: the weights changed since", role)
    weights = load_weights(home, entry, config.index)
    # 4
    try:
        account = replay(
            opened(found, role)[1], config.index, header.job, weights,
            lambda stage: program_for(entry.description, header.plan, stage),
            partial(message_digests, header.job), header.bound,
        )  # fmt: skip
    except (LookupError, ValueError):  # with a good seal, so not by accident
        raise DamagedFile(f"{role}: {found.path}: its events do not fit together", role) from None
    except Deviation as deviation:
        raise IntegrityError(f"{role} did not compute what it should have: {deviation}", peer=role) from None
    return Audit(header, account)


def _home(config: PartyConfig, header: Header) -> Path:
    """Where a party's server has its sharings: a worker those that it fetched."""
    return config.data_dir / (COPIES if config.worker else "models") / header.share_id


def _entry(config: PartyConfig, header: Header) -> Entry:
    path = _home(config, header) / "model.json"
    if not path.exists():
        raise UnknownModel(
            f"{config.role} no longer has the sharing of {header.model} that this job ran on", peer=config.role
        )
    return load_entry(path, Entry, Owner(config.role, header.share_id))
