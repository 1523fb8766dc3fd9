"""What this coordinator has in stock at its parties: which names it may give to jobs, and how the stock is laid down.

The parties keep the correlations (`stock.py`). Here is a list of names, each for one sharing, plan and program, on the
disk before the parties are asked and gone before they take it; so a name that this list still has after a failure may
be of no use, and never the other way round. A name that the parties refuse costs its job nothing but the asking: it
goes on without stock, under another name.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import grpc
import structlog
from pydantic import Field

from ditto import files
from ditto.errors import DamagedFile, DittoError, LimitExceeded, NoStock, ReplayedJob, ReuseError, StorageError
from ditto.models import Plan
from ditto.models.compiled import program_for
from ditto.models.description import digest_of
from ditto.names import ID, NAME
from ditto.net.config import CoordinatorConfig, StockLevel
from ditto.net.messages import to_message
from ditto.net.transport import short
from ditto.service.job_run import JobRun, Stubs
from ditto.service.limits import admit_job, need_of
from ditto.service.registered import Registered, RegisteredModels
from ditto.service.stored import Owner, StoredEntry, readable_entries, save_entry
from ditto.service.turns import Need, Turns
from ditto.wire import control_pb2, party_pb2

log = structlog.get_logger()
DIRECTORY = "stock"
IDLE = 0.2  # seconds between two looks whether a job has come
AFTER_ERROR = 30.0  # seconds until the stock is filled up again
# What a party says of a stocked job that it does not give out: the job goes on without
_REFUSED = (NoStock, ReplayedJob, ReuseError, DamagedFile, StorageError)


class Kept(StoredEntry):
    """One stocked job. Its name is the file's: JOB.json."""

    model: str = Field(pattern=NAME)
    share_id: str = Field(pattern=ID)
    plan: dict[str, int | bool]
    fingerprint: str

    @property
    def kind(self) -> tuple[str, str, Plan, str]:
        return self.model, self.share_id, Plan(**self.plan), self.fingerprint  # type: ignore[arg-type]


class StockKeeper:
    """Any thread may ask. A name is in `_kept` while it can be given away, in `_reserved` from a job's first line on
    until it is opened, and in neither afterwards."""

    def __init__(
        self, config: CoordinatorConfig, stubs: Stubs, turns: Turns, models: RegisteredModels,
        connect: Callable[[int], object],
    ) -> None:  # fmt: skip
        """`stubs`: of the first pair of workers, where the stock lies. `connect` waits for a pair and the dealer, or
        raises."""
        self._config, self._stubs, self._turns, self._models, self._connect = config, stubs, turns, models, connect
        self._root, self._lock = config.data_dir / DIRECTORY, threading.Lock()
        self._kept: dict[str, Kept] = {}
        self._reserved: dict[str, Kept] = {}
        self._stopping = threading.Event()
        files.make_directory(self._root, 0o700)
        for path in sorted(self._root.glob("*.json")):
            for entry in readable_entries([path], Kept, lambda path: _owner(path.stem)):
                self._kept[path.stem] = entry
        if config.stock:
            threading.Thread(target=self._refill, name="refill", daemon=True).start()

    # Jobs that take it ----------------------------------------------------------------------------

    def name_for(self, model: Registered, plan: Plan, fingerprint: str) -> str:
        """What a job is called: as one that is in stock for it, or a fresh name."""
        wanted = model.model, model.share_id, plan, fingerprint
        with self._lock:
            older = [name for name, k in self._kept.items() if k.model == model.model and k.share_id != model.share_id]
        for gone in older:  # of a sharing that was replaced: the parties have dropped it
            self._forget(gone)
        with self._lock:
            name = next((name for name, kept in self._kept.items() if kept.kind == wanted), None)
            if name is not None:
                self._reserved[name] = self._kept.pop(name)
        return name or secrets.token_hex(16)

    def open(self, run: JobRun, ask: party_pb2.OpenJobRequest) -> None:
        """Open a job at both parties, with what is in stock for it if they have it. Whatever becomes of the stock then,
        its name is not given away again. On workers that have none, the job goes on under another name."""
        with self._lock:
            kept = self._reserved.get(run.name)
        if kept is not None:
            if run.pair == 0:
                self._forget(run.name)
                if kept.share_id == ask.share_id and self._opened(run, ask):
                    return
            else:
                self.leave(run.name)
            run.job = ask.job = secrets.token_hex(16)
            run.span.note(job=short(run.job))
            log.info("job goes on without stock", name=short(run.name), job=short(run.job), pair=run.pair)
        ask.stocked = run.stocked = False
        run.both(lambda stub, timeout: stub.OpenJob.future(ask, timeout=timeout, **run.span.carried))

    def _opened(self, run: JobRun, ask: party_pb2.OpenJobRequest) -> bool:
        ask.stocked = True
        try:
            run.both(lambda stub, timeout: stub.OpenJob.future(ask, timeout=timeout, **run.span.carried))
        except _REFUSED as error:
            log.warning("no stock for this job", job=short(run.name), reason=str(error))
            run.close("its correlations are not in stock")  # the other party's are used up by that
            return False
        run.stocked = True
        return True

    def leave(self, name: str) -> None:
        """A job has ended. What it did not open may be another's."""
        with self._lock:
            if name in self._reserved:
                self._kept[name] = self._reserved.pop(name)

    def _forget(self, name: str) -> None:
        with self._lock:
            self._kept.pop(name, None)
            self._reserved.pop(name, None)
        files.remove(self._root / f"{name}.json")

    # Laying it down -------------------------------------------------------------------------------

    def deal(
        self, model: Callable[[], Registered], plan: Plan, fingerprint: str, client: str, count: int,
        context: grpc.ServicerContext,
    ) -> Iterator[control_pb2.DealEvent]:  # fmt: skip
        """Lay down so many jobs for a client, each in a turn of its own: those of others come between them. `model` is
        looked up in each turn. Raises what the parties say, a full stock among others; what is laid down stays."""
        most = self._config.max_deal
        if not 1 <= count <= most:
            raise LimitExceeded(f"coordinator: {count:,} jobs to lay down; it takes 1 to {most:,} (max_deal)")
        for done in range(1, count + 1):
            run = JobRun(secrets.token_hex(16), self._stubs, self._config.step_timeout_s, client)
            self._turns.enter(run.name, client, _need(model(), plan), pair=0)
            try:
                if not context.add_callback(run.cancel):
                    run.cancel()
                for place in run.places(self._turns, self._config.step_timeout_s):
                    yield control_pb2.DealEvent(queued=control_pb2.Queued(position=place))
                run.check()
                self._connect(0)
                start = time.perf_counter()
                nbytes = self._lay(run, model(), plan, fingerprint)
                run.done = True
            finally:
                self._turns.leave(run.name)
            laid = control_pb2.Laid(done=done, bytes=nbytes, seconds=time.perf_counter() - start)
            yield control_pb2.DealEvent(laid=laid)

    def _lay(self, run: JobRun, model: Registered, plan: Plan, fingerprint: str) -> list[int]:
        """One job, under the run's name; the bytes that each party keeps."""
        ask = party_pb2.StockRequest(
            job=run.name, model=model.model, share_id=model.share_id, plan=to_message(plan), fingerprint=fingerprint,
            client=run.client, description_digest=digest_of(model.description),
        )  # fmt: skip
        kept = Kept(model=model.model, share_id=model.share_id, plan=asdict(plan), fingerprint=fingerprint)
        save_entry(self._root / f"{run.name}.json", kept, _owner(run.name))
        try:
            replies = run.both(lambda stub, timeout: stub.Stock.future(ask, timeout=timeout))
        except BaseException:
            run.close("its correlations were not laid down at both")
            self._forget(run.name)
            raise
        with self._lock:
            self._kept[run.name] = kept
        return [reply.bytes for reply in replies]

    # By the configuration -------------------------------------------------------------------------

    def _refill(self) -> None:
        """Up to the levels of the configuration, job by job, while nothing else is to do."""
        pause = IDLE
        while not self._stopping.wait(pause):
            pause = IDLE
            for level in self._config.stock:  # one that cannot be had keeps no other from being filled up
                try:
                    self._refill_level(level)
                except DittoError as error:
                    log.warning("stock not filled up", model=level.model, reason=str(error))
                    pause = AFTER_ERROR

    def _refill_level(self, level: StockLevel) -> None:
        """One job, if some are missing and nobody is there. It is given up when somebody comes."""
        model = self._models.find(level.model)
        if model is None or self._others():
            return
        plan = Plan(**level.model_dump(exclude={"model", "count"}), hold_mb=self._config.hold_mb)
        fingerprint = program_for(model.description, plan).fingerprint
        wanted = model.model, model.share_id, plan, fingerprint
        with self._lock:
            there = sum(kept.kind == wanted for kept in (*self._kept.values(), *self._reserved.values()))
        if there >= level.count:
            return
        admit_job(model.description, plan, fingerprint, self._config, self._config.role)
        run = JobRun(secrets.token_hex(16), self._stubs, self._config.step_timeout_s)
        self._turns.enter(run.name, need=_need(model, plan), pair=0)
        try:
            if self._turns.place(run.name):
                return
            self._connect(0)
            threading.Thread(target=self._give_way, args=(run,), name="give-way", daemon=True).start()
            self._lay(run, model, plan, fingerprint)
        except DittoError:
            if not run.cancelled.is_set():
                raise
        finally:
            run.done = True
            self._turns.leave(run.name)

    def _others(self, own: str = "") -> bool:
        """Does anybody run or wait, beside a turn of one's own?"""
        turns = self._turns.state()
        return bool(turns.waiting or turns.aside or {*turns.running} - {own})

    def _give_way(self, run: JobRun) -> None:
        while not run.done:
            if self._others(run.name) or self._stopping.is_set():
                run.cancel()
                return
            time.sleep(IDLE / 4)

    def close(self) -> None:
        self._stopping.set()


def _need(model: Registered, plan: Plan) -> Need:
    """Of laying down a job: the dealer deals it, the parties write what comes."""
    return Need(dealer=need_of(model.description, plan).dealer)


def _owner(name: str) -> Owner:
    return Owner("coordinator", name)
