"""Another storage key for what a stopped server keeps: every file is read and written again under it.

A file is replaced as a whole, so it is under one key or the other. While some are under each, a mark in the directory
keeps the server from starting with either. A change that was cut off is finished by the same command; with another new
key it is refused.

1. Alone on the directory: its server does not run. The old key is the directory's.
2. The mark, sealed under the new key.
3. Leftovers go. Each file that is not under the new key yet is opened under the old one, and replaced.
4. The directory's witness of its key is replaced; the mark goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ditto import files
from ditto.engine.program import Wire
from ditto.errors import ConfigError, DamagedFile, DittoError, UsageError
from ditto.models.compiled import weights_of
from ditto.net.config import ServerConfig
from ditto.service.leftovers import collect
from ditto.service.model_store import OPENED, SHARE_IDS, Entry, of_kind
from ditto.service.process import alone
from ditto.service.public_parts import DIRECTORY as PUBLIC
from ditto.service.recordings import DIRECTORY as RECORDINGS
from ditto.service.stock import DIRECTORY as STOCK
from ditto.service.storage import CHANGING, WITNESS, Altered, Storage, bear_witness, check_witness, key_of
from ditto.service.stored import (
    Owner,
    is_under,
    load_entry,
    load_stream,
    load_tensors,
    reseal,
    save_stream,
    save_tensors,
    use,
)


class Changed(NamedTuple):
    """Files that are under the new key now, and those that could not be read: they stay as they are, of no use."""

    files: int
    left: list[Path]


def change_key(config: ServerConfig, new_key: Path) -> Changed:
    """Bring a server's directory under the key in `new_key`. Raises ConfigError, ClusterError while it runs,
    StorageError (a full disk, say), after which it can be repeated."""
    if config.storage == "plaintext":
        raise UsageError(f"{config.role} stores plaintext: there is no key to change")
    old, new = key_of(config.storage_key), key_of(new_key)
    if old == new:
        raise UsageError(f"{new_key} holds the key that is in use")
    both, only = Storage(new, previous=old), Storage(new)
    if not (config.data_dir / WITNESS).exists():
        raise ConfigError(f"{config.data_dir} holds nothing of a server")
    # 1
    with alone(config):
        check_witness(both, config.data_dir, config.role)
        # 2
        check_witness(only, config.data_dir, config.role, CHANGING)
        # 3
        use(both)
        collect(config.data_dir, age=0.0)
        done, left = 0, list[Path]()
        for path in _stored(config.data_dir):
            try:
                _bring(path, config.role, only)
                done += 1
            except (DamagedFile, Altered):
                left.append(path)
        # 4
        bear_witness(only, config.data_dir, config.role)
        files.remove(config.data_dir / CHANGING)
    return Changed(done, left)


def _stored(data_dir: Path) -> Iterator[Path]:
    """All that is sealed; a file of no bytes says by its name what it says."""
    for path in sorted(data_dir.rglob("*")):
        own = path.parent == data_dir and path.name in (WITNESS, CHANGING)
        if not own and path.is_file() and Storage.sealed(path):
            yield path


def _bring(path: Path, role: str, only: Storage) -> None:
    """Raises DamagedFile, Altered."""
    owner, stream = _owner(path, role), path.parent.name in (RECORDINGS, PUBLIC) or path.parent.parent.name == STOCK
    if is_under(path, owner, only, stream):
        return
    if stream:
        save_stream(path, load_stream(path, owner), owner)
    elif path.suffix == ".safetensors":
        wires = _wires(path, owner)
        save_tensors(path, wires, (tensor for _, tensor in load_tensors(path, wires, owner)), owner)
    else:
        reseal(path, owner)


def _owner(path: Path, role: str) -> Owner:
    """At a party a sharing has a directory, an identifier a file of its name, a recording one of its job's; elsewhere a
    sharing is in the name of its file."""
    if path.parent.name == SHARE_IDS:
        return Owner(role, path.name)
    by_directory = role.startswith("party") and path.parent.name != RECORDINGS
    return Owner(role, path.parent.name if by_directory else path.stem)


def _wires(path: Path, owner: Owner) -> dict[str, Wire]:
    entry = load_entry(path.parent / "model.json", Entry, owner)
    try:
        wires = weights_of(entry.description)
    except DittoError as error:  # of an earlier version
        raise owner.damaged(path, str(error)) from None
    return wires if path.stem == "shares" else of_kind(wires, masked=path.name == OPENED)
