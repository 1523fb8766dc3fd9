"""The identifiers of sharings that one party ever took: each stands for one sharing, for good.

The masks of a model are chosen by its sharing's identifier. Under an identifier that is taken twice, two different
weights would be opened under one mask, and their difference would be no secret any more. So an identifier is written
down before the first share is accepted, and stays when the sharing is dropped, has failed, or its files are lost.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import structlog

from ditto import files
from ditto.errors import DamagedFile, LimitExceeded, ReuseError
from ditto.names import check_id
from ditto.service.stored import Owner, StoredEntry, load_entry, save_entry

log = structlog.get_logger()
_DROPPED, _DAMAGED = ".dropped", ".damaged"


class Taken(StoredEntry):
    """Who took an identifier; empty for one that was dropped and is not known to have been taken."""

    owner: str


class ShareIds:
    """A file for each identifier; it says who took it. The caller sees to one change at a time.

    That the file exists is what burns an identifier, whatever is in it: what others can add to this directory burns
    something at most. An empty file is an older version's, and nobody's. One that this party did not write is set aside
    as NAME.damaged, and burns its identifier all the same.
    """

    def __init__(self, root: Path, role: str, each: int) -> None:
        """`each`: how many identifiers one owner may use up. It bounds the files."""
        self._root, self._role, self._each = root, role, each
        files.make_directory(root, 0o700)
        self._count = Counter(entry.owner for path in sorted(root.iterdir()) if (entry := self._read(path)))

    def _read(self, path: Path) -> Taken | None:
        if path.suffix or not path.stat().st_size:
            return None
        try:
            return load_entry(path, Taken, Owner(self._role, path.name))
        except DamagedFile as error:
            log.error("identifier set aside", reason=str(error))
            path.rename(path.with_name(path.name + _DAMAGED))
            return None

    def take(self, share_id: str, owner: str) -> None:
        """Use up an identifier, on the disk when this returns. Raises ReuseError for one that was taken, LimitExceeded
        for an owner who has used up too many."""
        path = self._root / check_id(share_id)
        if self._burnt(path):
            raise ReuseError("the identifier of this sharing was used before; share the model again", self._role)
        if self._count[owner] >= self._each:
            raise LimitExceeded(
                f"{self._role}: {owner} has put {self._each:,} sharings, failed ones included; it takes no more of one "
                "client (max_sharings)", peer=self._role,
            )  # fmt: skip
        self._write(path, owner)
        self._count[owner] += 1

    def _burnt(self, path: Path) -> bool:
        return path.exists() or path.with_name(path.name + _DAMAGED).exists()

    def _write(self, path: Path, owner: str) -> None:
        save_entry(path, Taken(owner=owner), Owner(self._role, path.name))

    def drop(self, share_id: str) -> None:
        """Note that a sharing is gone. The dealer is yet to be told."""
        path = self._root / check_id(share_id)
        if not self._burnt(path):  # an older version's sharing
            self._write(path, "")
        self._write(path.with_name(share_id + _DROPPED), "")

    def untold(self) -> list[str]:
        """What was dropped and the dealer does not know about."""
        return sorted(path.name.removesuffix(_DROPPED) for path in self._root.glob(f"*{_DROPPED}"))

    def told(self, share_id: str) -> None:
        (self._root / (check_id(share_id) + _DROPPED)).unlink(missing_ok=True)
