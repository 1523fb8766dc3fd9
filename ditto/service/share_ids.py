"""The identifiers of sharings that one party ever took: each stands for one sharing, for good.

The masks of a model are chosen by its sharing's identifier. Under an identifier that is taken twice, two different
weights would be opened under one mask, and their difference would be no secret any more. So an identifier is written
down before the first share is accepted, and stays when the sharing is dropped, has failed, or its files are lost.
"""

from __future__ import annotations

from pathlib import Path

from ditto import files
from ditto.errors import ReuseError
from ditto.names import check_id

_DROPPED = ".dropped"


class ShareIds:
    """A file for each identifier, empty: that it exists is all that counts. The caller sees to one change at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        files.make_directory(root, 0o700)

    def take(self, share_id: str) -> None:
        """Use up an identifier, on the disk when this returns. Raises ReuseError for one that was taken."""
        path = self._root / check_id(share_id)
        if path.exists():
            raise ReuseError("the identifier of this sharing was used before; share the model again")
        files.write(path, b"", files.PRIVATE)

    def drop(self, share_id: str) -> None:
        """Note that a sharing is gone. The dealer is yet to be told."""
        path = self._root / check_id(share_id)
        files.write(path, b"", files.PRIVATE)  # also where an older version took it
        files.write(path.with_name(share_id + _DROPPED), b"", files.PRIVATE)

    def untold(self) -> list[str]:
        """What was dropped and the dealer does not know about."""
        return sorted(path.name.removesuffix(_DROPPED) for path in self._root.glob(f"*{_DROPPED}"))

    def told(self, share_id: str) -> None:
        (self._root / (check_id(share_id) + _DROPPED)).unlink(missing_ok=True)
