"""What a party keeps of its jobs for `ditto audit`, where its operator asks for it: one file a job, its view alone.

A recording is written as its job goes, by a thread of its own, and gets its name when it is whole: encrypted and
authenticated as everything that a server stores, bound to the party and the job. Whatever becomes of it, the job goes
on. The oldest go when there are more than `record` or they take more than `record_mb`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import structlog
from pydantic import Field, ValidationError

import ditto
from ditto.engine.plan import Plan
from ditto.engine.recording import Event, Recorder, events
from ditto.errors import ClusterError, NotAllowed
from ditto.files import make_directory
from ditto.names import ID, PARTIES, check_id
from ditto.net.config import PartyConfig
from ditto.net.transport import short
from ditto.service.storage import START, TAG
from ditto.service.stored import PIECE, Owner, StoredEntry, load_stream, save_stream

log = structlog.get_logger()
DIRECTORY = "recordings"
FORMAT = 3
AHEAD = 16  # pieces that wait to be written


class Header(StoredEntry):
    """Whose view of which job a recording is, and what it needs to be run again."""

    format: int = FORMAT
    version: str = ditto.__version__
    role: str
    job: str = Field(pattern=ID)
    client: str
    model: str
    share_id: str = Field(pattern=ID)
    share_digest: str
    files: dict[str, str]  # the sharing's, by what each is known again
    plan: Plan
    fingerprint: str
    bound: str  # what the parties told each other that it is (`ditto.service.terms`)


class Recorded(NamedTuple):
    """One recording in the directory."""

    job: str
    path: Path
    nbytes: int
    at: float  # seconds since 1970, when it was whole


class Recordings:
    """All of one party's."""

    def __init__(self, config: PartyConfig) -> None:
        self._root, self._role = config.data_dir / DIRECTORY, config.role
        self._jobs, self._limit = config.record, config.record_mb << 20
        self._lock = threading.Lock()
        self._writers: list[threading.Thread] = []

    def begin(self, header: Header, seed: bytes) -> Recorder:
        """What takes the events of a job."""
        make_directory(self._root, 0o700)
        text = header.model_dump_json().encode()
        path, opening = _path(self._root, header.job, self._role), Event("header", "", text).head() + text
        writer = _Writer(path, _owner(self._role, header.job), opening, self._limit, self._evict)
        with self._lock:
            self._writers = [w for w in self._writers if w.is_alive()] + [writer]
        writer.start()
        recorder = Recorder(writer.write, writer.finish)
        recorder.add("seed", data=seed)
        return recorder

    def _evict(self) -> None:
        with self._lock:
            kept = nbytes = 0
            for found in sorted(stored(self._root, self._role), key=lambda found: found.at, reverse=True):
                nbytes += found.nbytes
                if kept < self._jobs and nbytes <= self._limit:
                    kept += 1
                else:
                    found.path.unlink(missing_ok=True)

    def close(self, timeout: float = 3.0) -> None:
        """Wait a little for what is being written: who stops a server does not wait for long either."""
        for writer in self._writers:
            writer.join(timeout)


class _TooLarge(Exception):
    pass


class _Writer(threading.Thread):
    """Cuts what comes into pieces and writes them; `done` is called when the file is there."""

    def __init__(self, path: Path, owner: Owner, opening: bytes, limit: int, done: Callable[[], None]) -> None:
        super().__init__(name="recording", daemon=True)
        self._path, self._owner, self._opening, self._limit, self._done = path, owner, opening, limit, done
        self._pieces: queue.Queue[bytes | None] = queue.Queue(AHEAD)
        self._buffer = bytearray(opening)
        self._given_up = self._over = False

    def write(self, data: bytes | memoryview) -> None:
        """Waits where the disk is slower; no more than AHEAD pieces are in memory."""
        rest = memoryview(data)
        while rest and not self._given_up:
            if len(self._buffer) == PIECE:
                self._pieces.put(bytes(self._buffer))
                self._buffer = bytearray()
            room = PIECE - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]

    def finish(self) -> None:
        self._pieces.put(bytes(self._buffer))
        self._pieces.put(None)

    def _next(self) -> bytes | None:
        piece = self._pieces.get()
        self._over = piece is None
        return piece

    def _queued(self) -> Iterator[bytes]:
        nbytes = START
        for piece in iter(self._next, None):
            nbytes += len(piece) + TAG
            if nbytes > self._limit:
                raise _TooLarge
            yield piece

    def run(self) -> None:
        job = short(self._owner.share_id)
        try:
            self._save()
            self._done()
            log.info("job recorded", job=job, bytes=self._path.stat().st_size)
        except Exception as error:  # of the disk, most likely: no reason to lose a job
            self._give_up()
            log.error("job not recorded", job=job, reason=str(error) or type(error).__name__)

    def _save(self) -> None:
        try:
            save_stream(self._path, self._queued(), self._owner)
        except _TooLarge:
            self._give_up()
            log.warning("job too large to be recorded (record_mb)", job=short(self._owner.share_id))
            save_stream(self._path, [self._opening + Event("omitted", "").head()], self._owner)

    def _give_up(self) -> None:
        """Take what still comes, so that nobody waits."""
        self._given_up = True
        while not self._over:
            self._next()


# Reading -----------------------------------------------------------------------------------------


def _path(root: Path, job: str, role: str) -> Path:
    return root / f"{check_id(job)}.{role}"


def _owner(role: str, job: str) -> Owner:
    return Owner(role, job, "this job cannot be audited")


def stored(root: Path, role: str) -> list[Recorded]:
    """What a directory has of this party, oldest first."""
    found = []
    for path in root.glob(f"*.{role}"):
        stat = path.stat()
        found.append(Recorded(path.stem, path, stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda one: (one.at, one.job))


def of_one_party(data_dir: Path, role: str) -> list[Recorded]:
    """The same, for who runs them again. Raises NotAllowed where the other party's lie, too: both views of a job tell
    what it computed on."""
    other = next(name for name in PARTIES if name != role)
    if strange := next(data_dir.rglob(f"recordings/*.{other}"), None):
        raise NotAllowed(f"{strange} is a recording of {other}; nothing is audited where both parties' lie", peer=role)
    return stored(data_dir / DIRECTORY, role)


def find(data_dir: Path, role: str, job: str) -> Recorded:
    """By its name, or the first digits of it. Raises ClusterError; NotAllowed as `of_one_party`."""
    known = of_one_party(data_dir, role)
    matching = [one for one in known if job and one.job.startswith(job)]
    if len(matching) != 1:
        names = ", ".join(short(one.job) for one in known) or "none"
        many = "several recordings begin with" if matching else "no recording of"
        raise ClusterError(f"{role} has {many} job {job[:40]!r}; recorded: {names}", peer=role)
    return matching[0]


def opened(recorded: Recorded, role: str) -> tuple[Header, Iterator[Event]]:
    """What a recording says it is, and the events after that. Raises DamagedFile, as late as where the damage is."""
    owner = _owner(role, recorded.job)
    found = _events(recorded.path, owner)
    first = next(found, None)
    try:
        header = Header.model_validate_json(bytes(first.data) if first and first.kind == "header" else b"")
    except ValidationError:
        raise owner.damaged(recorded.path, "it does not begin as a recording of this version does") from None
    if (header.role, header.job) != (role, recorded.job):
        raise owner.damaged(recorded.path, "the recording of another job")
    return header, found


def _events(path: Path, owner: Owner) -> Iterator[Event]:
    try:
        yield from events(load_stream(path, owner))
    except (ValueError, OverflowError):
        raise owner.damaged(path, "its events do not fit together") from None
