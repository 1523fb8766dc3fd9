"""The dealer's process: mask seeds of models, and one stream of correlations for each party and job."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import grpc
import structlog
from pydantic import Field
from torch import Tensor

from ditto import files
from ditto.engine.job import DealerJob
from ditto.engine.program import Wire
from ditto.engine.weights import DealerWeights, keeps_whole
from ditto.errors import BadShare, ClusterError, DittoError, ReplayedJob, ReuseError, UnknownModel, UsageError
from ditto.models.compiled import generates, program_for
from ditto.models.description import parse
from ditto.names import ID, NAME, PARTIES, check_id, check_name
from ditto.net.bulk import Dealt
from ditto.net.config import DealerConfig
from ditto.net.emulation import Link
from ditto.net.framing import around_dealt, dealt_digest
from ditto.net.identity import caller
from ditto.net.messages import plan_of
from ditto.net.metrics import DealerMetrics
from ditto.net.tracing import OFF, Attributes, Context, Tracing, received
from ditto.net.transport import Roles, short
from ditto.ring.kernels import kernel_of
from ditto.ring.malloc import give_back
from ditto.ring.prg import derive, new_seed
from ditto.service.about import about
from ditto.service.feed import Feed
from ditto.service.limits import admit_job, admit_model, need_of
from ditto.service.room import Room
from ditto.service.stored import Owner, StoredEntry, load_entry, readable_entries, save_entry
from ditto.wire import dealer_pb2, dealer_pb2_grpc

log = structlog.get_logger()
Head = dealer_pb2.CorrelationsReply  # of one: all but its data
_PARTIES = frozenset(PARTIES)
ROLES: Roles = dict.fromkeys(("ModelSeed", "ForgetModel", "Correlations"), _PARTIES) | {
    "Inventory": frozenset({"coordinator"})
}
_DIGEST = r"[0-9a-f]{64}"


class Entry(StoredEntry):
    """What the dealer keeps of a sharing. Whose it is, is in the name of its file: SHARE_ID.json."""

    model: str = Field(pattern=NAME)
    description: str
    master: str = Field(pattern=ID, repr=False)  # the seed of both parties' masks
    digests: dict[str, str] = Field(default_factory=dict)  # by role: of the one share that each party masks with it


def _owner(share_id: str) -> Owner:
    return Owner("dealer", share_id)


def _pair(master: bytes) -> tuple[bytes, bytes]:
    return derive(master, "party", 0), derive(master, "party", 1)


class _Job:
    """Both parties' feeds of one job and the thread that fills them, stage after stage, ahead of their use."""

    def __init__(
        self,
        request: dealer_pb2.CorrelationsRequest,
        entry: Entry,
        limit: int,
        tracing: Tracing = OFF,
        parent: Context | None = None,
    ) -> None:
        """`parent`: the span of the party that came first."""
        self.plan = plan_of(request.plan)
        self.about: Attributes = {
            "job": short(request.job), "model": entry.model, "preset": parse(entry.description).preset,
            "batch": self.plan.batch, "padded_length": self.plan.seq, "tokens": self.plan.tokens,
        }  # fmt: skip
        self.span = tracing.start("deal", parent, **self.about)
        self.key = (request.share_id, self.plan)
        self.name, self._entry = request.job, entry
        self.seeds = _pair(new_seed())
        self.feeds = (Feed(limit), Feed(limit))
        self.joined: set[int] = set()
        self.finished: set[int] = set()
        self.began = time.monotonic()

    def deal(self, service: DealerService) -> None:
        structlog.contextvars.bind_contextvars(job=short(self.name))
        try:
            carried: dict[str, Tensor] = {}
            first = 0
            for stage in range(self.plan.stages):
                if stage == 1:
                    _step_back()
                program = program_for(self._entry.description, self.plan, stage)
                if stage == 0:  # all stages have the same weights; a model may be removed under a job
                    masks = service.weights(self.key[0], program.weights, self._entry)
                for party, data in DealerJob(program, self.name, self.seeds, masks, first, carried).deal():
                    self.feeds[party].add(data, self.feeds[1 - party])
                for feed, other in zip(self.feeds, self.feeds[::-1], strict=True):
                    feed.flush(wait_with=other)
                first += len(program.steps)
            for feed in self.feeds:
                feed.end()
            self.span.end()
        except DittoError as error:
            self.drop(error)
        except Exception as error:
            log.error("dealing failed", exc_info=error)
            self.drop(DittoError(f"dealer: internal error: {type(error).__name__}", peer="dealer"))

    def drop(self, error: DittoError) -> None:
        for feed in self.feeds:
            feed.end(error)
        self.span.end(error.code)


def _expanded(wires: dict[str, Wire], entry: Entry) -> DealerWeights:
    weights = DealerWeights(wires, _pair(bytes.fromhex(entry.master)))
    kernel_of(64)  # measured now, not in the first job, as everything below
    few = generates(entry.description) and keeps_whole(wires)
    for name, wire in wires.items():
        mask = weights[name]
        if few and wire.held == "matrix":
            mask.keep_whole()
    give_back()  # each matrix was several while it was expanded
    return weights


def _step_back() -> None:
    """Later stages are dealt ahead of need: where parties share the processor, they come first. Linux knows priorities
    of threads; a thread keeps its own until it ends, with its job."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class DealerService(dealer_pb2_grpc.DealerServicer):
    def __init__(self, config: DealerConfig, tracing: Tracing = OFF) -> None:
        self._config, self._tracing = config, tracing
        self._dir: Path = config.data_dir / "models"
        files.make_directory(self._dir, 0o700)
        self._lock = threading.Lock()
        self._weights_lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._used: set[str] = set()
        self._links = (Link(config.network), Link(config.network))  # all jobs of a party share its link
        self._weights: OrderedDict[str, DealerWeights] = OrderedDict()
        self._in_use = WeakValueDictionary[str, DealerWeights]()  # by a job: another one shares them
        self._room = Room(config.all_jobs, config.role)
        self.metrics = DealerMetrics()
        self.metrics.held.set_function(lambda: self._room.taken)
        self._known: dict[str, str] = {}  # model by sharing
        for path in sorted(self._dir.glob("*.json")):
            if self._forgotten(path.stem):  # the process ended in between
                path.unlink()
                continue
            for entry in readable_entries([path], Entry, lambda path: _owner(path.stem)):
                self._known[path.stem] = entry.model
        self.metrics.models.set_function(lambda: len({*self._known.values()}))
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()
        for party in (0, 1):
            self.metrics.waiting.labels(f"party{party}").set_function(partial(self._ready, party))

    def _ready(self, party: int) -> int:
        with self._lock:
            return sum(job.feeds[party].ready for job in self._jobs.values())

    def _end(self, job: _Job, outcome: str) -> None:
        """Account for a job that just left the table, which happens once."""
        self._room.give_back(job.name)
        self.metrics.jobs.labels(outcome).inc()
        sent = {f"bytes_to_party{party}": feed.sent for party, feed in enumerate(job.feeds)}
        seconds = round(time.monotonic() - job.began, 3)
        log.info("job ended", job=short(job.name), outcome=outcome, seconds=seconds, **sent)

    def Inventory(
        self, request: dealer_pb2.InventoryRequest, context: grpc.ServicerContext
    ) -> dealer_pb2.InventoryReply:
        with self._lock:
            jobs = [*self._jobs.values()]
            known = sorted({*self._known.values()} & {*request.models})
        reply = dealer_pb2.InventoryReply(models=known, about=about())
        if jobs:
            reply.job = short(jobs[-1].name)
            for feeds in zip(*(job.feeds for job in jobs), strict=True):
                reply.parties.add(ready=sum(feed.ready for feed in feeds), sent=sum(feed.sent for feed in feeds))
        return reply

    def _path(self, share_id: str) -> Path:
        return self._dir / f"{check_id(share_id)}.json"

    def _entry(self, share_id: str) -> Entry:
        """A registered sharing. Raises UnknownModel, DamagedFile."""
        path = self._path(share_id)
        if not path.exists():
            raise UnknownModel("the dealer does not know this sharing of the model", peer="dealer")
        return load_entry(path, Entry, _owner(share_id))

    def weights(self, share_id: str, wires: dict[str, Wire], entry: Entry) -> DealerWeights:
        """The masks of the last two models stay expanded, those of others for the jobs that use them."""
        with self._weights_lock:
            weights = self._weights.pop(share_id, None) or self._in_use.get(share_id)
            while len(self._weights) >= 2:
                self._weights.popitem(last=False)
            if weights is None:
                weights = self._in_use[share_id] = _expanded(wires, entry)
            if not self._forgotten(share_id):
                self._weights[share_id] = weights
            return weights

    def _warm(self, share_id: str, wires: dict[str, Wire], entry: Entry) -> None:
        with contextlib.suppress(DittoError):  # forgotten meanwhile, or damaged: the first job says so
            self.weights(share_id, wires, entry)

    def ModelSeed(
        self, request: dealer_pb2.ModelSeedRequest, context: grpc.ServicerContext
    ) -> dealer_pb2.ModelSeedReply:
        """The calling party's mask seed of a sharing: one seed for one pair of shares, so that F = W + B is the same
        however often it is opened.

        1. A sharing that a party dropped is burnt: ReuseError. So is one whose seed was damaged: a fresh one would be
           a second mask.
        2. The first to ask has the seed drawn.
        3. The first digest from each party is written down before it has its seed. ReuseError for any other.
        """
        path, role = self._path(request.share_id), caller(context).role
        if not re.fullmatch(_DIGEST, request.digest):
            raise BadShare(f"{role} sent no digest of its share", peer="dealer")
        wires = admit_model(request.description, self._config, self._config.role)
        with self._lock:
            # 1
            if self._burnt(request.share_id):
                raise ReuseError("this sharing was dropped, its masks are used up; share it again", peer="dealer")
            # 2
            fresh = not path.exists()
            if fresh:
                entry = Entry(model=check_name(request.model), description=request.description, master=new_seed().hex())
            else:
                entry = self._entry(request.share_id)
            if (entry.model, entry.description) != (request.model, request.description):
                raise ClusterError("the parties registered different models under one sharing", peer="dealer")
            # 3
            if entry.digests.setdefault(role, request.digest) != request.digest:
                raise ReuseError(f"the masks of this sharing hide another share of {role}", peer="dealer")
            save_entry(path, entry, _owner(request.share_id))
            self._known[request.share_id] = entry.model
        if fresh:
            log.info("model registered", model=entry.model, share=short(request.share_id))
            args = request.share_id, wires, entry
            threading.Thread(target=self._warm, args=args, name="warm", daemon=True).start()
        return dealer_pb2.ModelSeedReply(seed=_pair(bytes.fromhex(entry.master))[PARTIES.index(role)])

    def _words(self, share_id: str) -> list[Path]:
        """Whose word it is that a sharing is dropped: files that exist or not."""
        return [self._dir / f"{share_id}.{role}.dropped" for role in PARTIES]

    def _burnt(self, share_id: str) -> bool:
        damaged = self._dir / f"{share_id}.json.damaged"
        return any(path.exists() for path in (*self._words(share_id), damaged))

    def _forgotten(self, share_id: str) -> bool:
        return all(path.exists() for path in self._words(share_id))

    def ForgetModel(
        self, request: dealer_pb2.ForgetModelRequest, context: grpc.ServicerContext
    ) -> dealer_pb2.ForgetModelReply:
        """One party's word burns the identifier; the seed goes with the second one's, so that no single party takes a
        model away from jobs under way."""
        path, role = self._path(request.share_id), caller(context).role
        with self._lock:
            files.write(self._words(request.share_id)[PARTIES.index(role)], b"", files.PRIVATE)
            forgotten = self._forgotten(request.share_id)
            if forgotten:
                path.unlink(missing_ok=True)
                self._known.pop(request.share_id, None)
        if forgotten:
            with self._weights_lock:
                self._weights.pop(request.share_id, None)
                self._in_use.pop(request.share_id, None)
            log.info("model forgotten", share=short(request.share_id))
        return dealer_pb2.ForgetModelReply()

    def Correlations(self, request: dealer_pb2.CorrelationsRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        party = PARTIES.index(caller(context).role)
        parent = received(context)
        job = self._join(request, party, parent)

        def left() -> None:
            with self._lock:
                if party in job.finished:
                    return
                known = self._jobs.pop(request.job, None)
            if known is not None:
                self._end(job, "aborted")
            job.drop(ClusterError(f"party{party} left the job", peer=f"party{party}"))

        if not context.add_callback(left):
            left()
        with self._tracing.start("stream", parent, **job.about) as span:
            yield from self._stream(job, party)
            sent = job.feeds[party].sent
            span.note(bytes_to_party0=sent) if party == 0 else span.note(bytes_to_party1=sent)

    def _stream(self, job: _Job, party: int) -> Iterator[Any]:
        link, seed = self._links[party], job.seeds[party]
        reply, queued = Dealt(Head(seed=seed, digest=dealt_digest(0, seed, b""))), time.monotonic()
        around = around_dealt(reply)
        link.hold(queued, around)
        self.metrics.dealt(party, 0, around)
        yield reply
        for place, (queued, chunk) in enumerate(job.feeds[party].drain(), 1):
            reply = Dealt(Head(digest=dealt_digest(place, b"", chunk)), chunk)
            around = around_dealt(reply)
            link.hold(link.sendable(queued), len(chunk) + around)
            self.metrics.dealt(party, len(chunk), around)
            yield reply
        with self._lock:
            job.finished.add(party)
            last = len(job.finished) == 2 and self._jobs.pop(job.name, None) is not None
        if last:
            self._end(job, "done")

    def _join(self, request: dealer_pb2.CorrelationsRequest, party: int, parent: Context | None) -> _Job:
        check_id(request.job)
        entry = self._entry(request.share_id)
        plan = plan_of(request.plan)
        admit_job(entry.description, plan, request.fingerprint, self._config, self._config.role)
        need = need_of(entry.description, plan).dealer
        self._room.wait_for(request.job, need)  # not under the lock, which those take that leave
        with self._lock:
            job = self._jobs.get(request.job)
            if job is None:
                if request.job in self._used:
                    raise ReplayedJob(f"job {request.job} was dealt before", peer="dealer")
                self._room.open(request.job, need, wait=0)
                self._used.add(request.job)
                job = _Job(request, entry, self._config.ahead_mb << 20, self._tracing, parent)
                self._jobs[request.job] = job
                log.info("job started", **vars(plan))
                threading.Thread(target=job.deal, args=(self,), name="deal", daemon=True).start()
            if party in job.joined:
                raise ReplayedJob(f"job {request.job} was dealt before", peer="dealer")
            if job.key != (request.share_id, plan):
                raise UsageError("the parties opened one job with different sizes", peer="dealer")
            job.joined.add(party)
            return job

    def _sweep(self) -> None:
        while True:
            time.sleep(1.0)
            self._drop_abandoned()

    def _drop_abandoned(self) -> None:
        """Jobs that one party has finished or left, and that the other never joined."""
        with self._lock:
            late = time.monotonic() - self._config.idle_timeout_s
            names = [name for name, job in self._jobs.items() if len(job.joined) < 2 and job.began < late]
            jobs = [self._jobs.pop(name) for name in names]
        for job in jobs:
            self._end(job, "aborted")
            job.drop(ClusterError("the other party never joined the job", peer="dealer"))

    def close(self) -> None:
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.drop(ClusterError("the dealer stops", peer="dealer"))
