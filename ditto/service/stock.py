"""What a party has in stock: correlations of jobs to come, on its disk, each used once or never.

A stocked job has a name from the start; a sharing, a plan and a program; a file. The file is one sealed stream
(`stored.py`): what it is, this party's seed of the job, and the bytes that the dealer would send. It is bound to the
party, the sharing and the job's name, and its pieces to their places.

It is taken in this order, so that whatever happens between any two steps it is used at most once:

1. In memory nobody else finds it any more.
2. Its first piece is read: it opens as what was stored here.
3. The dealer notes for good that this party takes it. It refuses a second time.
4. The name goes into the sharing's list of used-up names, on the disk.
5. The file goes, on the disk. It stays open, and only this job reads it.

Killed before 4 it is as it was, but that the dealer may refuse it; killed after that it is of no use, and goes with the
next start. The list stays as long as the sharing: a name that is in it is refused in any form, also as that of a job
that is not stocked. With the sharing both go: its identifier is used up at this party for good (`share_ids.py`).
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import structlog
from pydantic import Field, ValidationError

from ditto import files
from ditto.engine.plan import Plan
from ditto.errors import (
    ClusterError,
    DamagedFile,
    DittoError,
    IntegrityError,
    LimitExceeded,
    NoStock,
    ReplayedJob,
    StorageError,
    UnknownModel,
)
from ditto.names import ID
from ditto.net.config import PartyConfig
from ditto.net.transport import short
from ditto.ring.prg import SEED_BYTES
from ditto.service.burnt import Burnt
from ditto.service.storage import START, TAG
from ditto.service.stored import PIECE, Owner, StoredEntry, load_stream, save_stream

log = structlog.get_logger()
DIRECTORY = "stock"
BURNT = "used"  # the file of a sharing's used-up names
FORMAT = 1
MB = 1 << 20
Pieces = Generator[bytes | memoryview, None, None]  # of a file; closed, it closes the file
# By this backup programs know that a directory's content is not worth keeping (bford.info/cachedir): stock that is put
# back is stock that was used.
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# Used once: not to be backed up, and never to be put back.\n"


class Header(StoredEntry):
    """What a stocked job is."""

    format: int = FORMAT
    job: str = Field(pattern=ID)
    share_id: str = Field(pattern=ID)
    plan: Plan
    fingerprint: str
    client: str  # who had it dealt; empty: the coordinator's operator
    dealing: str = ""  # what both parties know it by, see `ditto.service.terms`

    @property
    def kind(self) -> tuple[str, Plan, str]:
        """What a job has to be to take it."""
        return self.share_id, self.plan, self.fingerprint


class Stocked(NamedTuple):
    header: Header
    nbytes: int  # of its file


class Stock:
    """All of one party's. Any thread may ask and change it."""

    def __init__(self, config: PartyConfig, sharings: Iterable[str]) -> None:
        """What is there of these sharings is taken up; what is damaged, used up, or of another sharing goes."""
        self._root, self._role = config.data_dir / DIRECTORY, config.role
        self._most, self._each = config.max_stock_mb, config.max_client_stock_mb
        self._lock = threading.Lock()
        self._there: dict[str, Stocked] = {}
        self._arriving: dict[str, tuple[str, int]] = {}  # by job: its client, and bytes
        self._lost: set[str] = set()  # names that failed, or were taken, in this process
        self._gone: set[str] = set()  # sharings that were dropped in it
        self._burnt: dict[str, Burnt] = {}  # by sharing
        files.make_directory(self._root, 0o700)
        if not (self._root / "CACHEDIR.TAG").exists():
            files.write(self._root / "CACHEDIR.TAG", _TAG, files.PRIVATE)
        known = set(sharings)
        for home in sorted(self._root.iterdir()):
            if home.is_dir():
                self._take_up(home) if home.name in known else shutil.rmtree(home, ignore_errors=True)

    def _take_up(self, home: Path) -> None:
        burnt = self._burnt[home.name] = Burnt(home / BURNT)
        for path in sorted(home.iterdir()):
            if path.name == BURNT or path.suffix:
                continue
            try:
                if path.name in burnt:
                    raise DamagedFile("it was used already: the process ended before it was removed")
                header, pieces, _ = _opened(path, self._owner(home.name))
                pieces.close()
                self._there[path.name] = Stocked(header, path.stat().st_size)
            except (DamagedFile, OSError) as error:
                log.error("stocked job removed", job=short(path.name), reason=str(error))
                with contextlib.suppress(OSError):
                    path.unlink()

    def _owner(self, share_id: str) -> Owner:
        return Owner(self._role, share_id, "this job's correlations are of no use")

    # What there is --------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        with self._lock:
            return sum(entry.nbytes for entry in self._there.values())

    def __len__(self) -> int:
        with self._lock:
            return len(self._there)

    def of(self, share_id: str) -> dict[Plan, tuple[int, int]]:
        """By plan: how many jobs of a sharing, and their bytes."""
        found: dict[Plan, tuple[int, int]] = defaultdict(lambda: (0, 0))
        with self._lock:
            for header, nbytes in self._there.values():
                if header.share_id == share_id:
                    count, so_far = found[header.plan]
                    found[header.plan] = count + 1, so_far + nbytes
        return dict(found)

    def check_fresh(self, job: str) -> None:
        """Raises ReplayedJob for a name that is, or ever was, a stocked job's of a sharing that is still here."""
        with self._lock:
            self._check_fresh(job)

    def _check_fresh(self, job: str) -> None:
        burnt = any(job in names for names in self._burnt.values())
        if burnt or job in self._lost or job in self._there or job in self._arriving:
            raise ReplayedJob(f"job {job} is in stock, or was", peer=self._role)

    # Laying down ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claiming(self, header: Header, payload: int) -> Iterator[int]:
        """Room for a job of so many dealt bytes, until the block ends; what its file will take. Raises ReplayedJob,
        LimitExceeded."""
        need = START + payload + (payload // PIECE + 2) * TAG + 4096
        with self._lock:
            self._check_fresh(header.job)
            held = [*self._arriving.values(), *((e.header.client, e.nbytes) for e in self._there.values())]
            own = [nbytes for client, nbytes in held if client == header.client]
            self._hold("max_stock_mb", self._most, "all", [nbytes for _, nbytes in held], need)
            if header.client:
                self._hold("max_client_stock_mb", self._each, header.client, own, need)
            self._arriving[header.job] = header.client, need
        try:
            yield need
        except BaseException:
            with self._lock:
                self._lost.add(header.job)
            raise
        finally:
            with self._lock:
                self._arriving.pop(header.job)

    def _hold(self, field: str, most: int, whose: str, held: list[int], need: int) -> None:
        if sum(held) + need > most * MB:
            raise LimitExceeded(
                f"{self._role}: {len(held)} jobs of {whose} take {sum(held) / MB:,.1f} MB in stock, one more takes "
                f"{need / MB:,.1f} MB; it keeps at most {most:,} ({field})", peer=self._role,
            )  # fmt: skip

    def lay(self, header: Header, seed: bytes, dealt: Iterable[bytes | memoryview], payload: int) -> int:
        """Write one job down, as it comes; the bytes of its file. Within `claiming`.

        Raises StorageError (a full disk, say), IntegrityError for another number of bytes than `payload`, and what
        `dealt` raises: then nothing of it is left. UnknownModel if the sharing goes meanwhile.
        """
        home = self._root / header.share_id
        with self._lock:
            self._check_there(header)
            files.make_directory(home, 0o700)
            self._burnt.setdefault(header.share_id, Burnt(home / BURNT))
        path, text = home / header.job, header.model_dump_json().encode()
        opening = [len(text).to_bytes(4, "big"), text, seed]
        save_stream(path, _pieces(opening, _counted(dealt, payload)), self._owner(header.share_id))
        nbytes = path.stat().st_size
        with self._lock:
            try:
                self._check_there(header)
            except DittoError:
                path.unlink(missing_ok=True)
                raise
            self._there[header.job] = Stocked(header, nbytes)
        return nbytes

    def _check_there(self, header: Header) -> None:
        if header.share_id in self._gone:
            raise UnknownModel("the sharing was removed while its correlations were dealt", peer=self._role)
        if header.job in self._lost:
            raise ClusterError("the job was given up while its correlations were dealt", peer=self._role)

    # Using up -------------------------------------------------------------------------------------

    def take(self, job: str, kind: tuple[str, Plan, str], release: Callable[[], None]) -> StockSource:
        """The correlations of a job, which nobody gets again. `release` has the dealer note that, or raises.

        Raises NoStock where there are none for this job, ReplayedJob where there were, DamagedFile, StorageError:
        whatever comes of it, nobody gets them any more.
        """
        # 1
        with self._lock:
            entry = self._there.pop(job, None)
            if entry is None:
                if any(job in names for names in self._burnt.values()) or job in self._lost:
                    raise ReplayedJob(f"job {job} was in stock, and is used up", peer=self._role)
                raise NoStock(f"{self._role} has no correlations in stock under this name", peer=self._role)
            self._lost.add(job)
        if entry.header.kind != kind:
            self._burn(entry.header)
            raise NoStock(f"what {self._role} has in stock under this name is for another job", peer=self._role)
        path = self._root / entry.header.share_id / job
        try:
            # 2
            header, pieces, rest = _opened(path, self._owner(entry.header.share_id))
            try:
                if header != entry.header:
                    raise DamagedFile(f"{self._role}: {path}: not the job that was stored here", peer=self._role)
                # 3
                release()
                # 4, 5
                self._burn(header)
            except BaseException:
                pieces.close()
                raise
        except DittoError:
            with contextlib.suppress(StorageError):
                self._burn(entry.header)
            raise
        return StockSource(pieces, rest, self._role, header.dealing)

    def discard(self, job: str) -> None:
        """Give a stocked job up, if there is one of this name, or is about to be."""
        with self._lock:
            if job in self._arriving:
                self._lost.add(job)
            entry = self._there.pop(job, None)
            if entry is None:
                return
            self._lost.add(job)
        try:
            self._burn(entry.header)
        except StorageError as error:
            log.error("stocked job given up, and its name not written down", job=short(job), reason=str(error))

    def _burn(self, header: Header) -> None:
        with self._lock:
            burnt = self._burnt.get(header.share_id)
        if burnt is None:
            raise UnknownModel("the sharing was removed", peer=self._role)
        path = self._root / header.share_id / header.job
        try:
            # 4
            burnt.add(header.job)
        finally:
            # 5
            files.remove(path)

    def forget(self, share_id: str) -> None:
        """A sharing is gone: what is in stock of it goes, and its list of names."""
        with self._lock:
            self._gone.add(share_id)
            self._burnt.pop(share_id, None)
            gone = [job for job, entry in self._there.items() if entry.header.share_id == share_id]
            for job in gone:
                del self._there[job]
            self._lost.update(gone)
        shutil.rmtree(self._root / share_id, ignore_errors=True)


def _pieces(opening: Iterable[bytes], dealt: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """All of it, cut as `save_stream` writes it."""
    buffer = bytearray()
    for parts in (opening, dealt):
        for part in parts:
            left = memoryview(part)
            while left:
                room = PIECE - len(buffer)
                buffer += left[:room]
                left = left[room:]
                if len(buffer) == PIECE:
                    yield bytes(buffer)
                    buffer.clear()
    if buffer:
        yield bytes(buffer)


def _counted(dealt: Iterable[bytes | memoryview], payload: int) -> Iterator[bytes | memoryview]:
    """Raises IntegrityError unless there are as many bytes as the programs need."""
    count = 0
    for part in dealt:
        count += len(part)
        if count > payload:
            break
        yield part
    if count != payload:
        raise IntegrityError(f"the dealer sent {count:,} bytes or more, the programs take {payload:,}", peer="dealer")


def _opened(path: Path, owner: Owner) -> tuple[Header, Pieces, memoryview]:
    """What a file is, its pieces after the first one, and the first one's rest. Raises DamagedFile."""
    pieces = load_stream(path, owner)
    first = memoryview(next(pieces, b""))
    size = int.from_bytes(first[:4], "big")
    try:
        header = Header.model_validate_json(bytes(first[4 : 4 + size]))
    except ValidationError:
        raise owner.damaged(path, "it does not begin as a stocked job of this version does") from None
    if header.format != FORMAT or (header.share_id, header.job) != (owner.share_id, path.name):
        raise owner.damaged(path, "the stock of another job, or of another version")
    return header, pieces, first[4 + size :]


class StockSource:
    """Hands one job's correlations out strictly in order, as `DealerSource` does, from the disk."""

    framing = 0  # nothing comes from the dealer

    def __init__(self, pieces: Pieces, first: memoryview, role: str, dealing: str) -> None:
        self.dealing = dealing
        self._lock = threading.Lock()
        self._pieces, self._rest, self._role = pieces, first, role
        self._closed = ""
        self.until: float | None = None  # nothing is waited for
        self.received = 0  # bytes handed out
        self._seed = bytes(self._take(SEED_BYTES))

    def seed(self) -> bytes:
        return self._seed

    def take(self, nbytes: int) -> memoryview:
        """The next `nbytes` bytes. Raises DamagedFile."""
        with self._lock:
            found = self._take(nbytes)
            self.received += nbytes
            return found

    def _take(self, nbytes: int) -> memoryview:
        if self._closed:
            raise ClusterError(self._closed, peer=self._role)
        if len(self._rest) >= nbytes:
            return self._cut(nbytes)
        whole = np.empty(nbytes, dtype=np.uint8).data
        filled = 0
        while filled < nbytes:
            if not self._rest:
                self._rest = memoryview(self._next())
            part = self._cut(min(len(self._rest), nbytes - filled))
            whole[filled : filled + len(part)] = part
            filled += len(part)
        return whole

    def _next(self) -> bytes | memoryview:
        piece = next(self._pieces, None)
        if piece is None:
            what = f"it ended after {self.received} bytes, the program needs more"
            raise IntegrityError(f"correlations in stock: {what}", peer=self._role)
        return piece

    def _cut(self, nbytes: int) -> memoryview:
        found, self._rest = self._rest[:nbytes], self._rest[nbytes:]
        return found

    def close(self, reason: str = "the job was closed") -> None:
        with self._lock:
            self._closed = self._closed or reason
            self._rest = memoryview(b"")
            self._pieces.close()
