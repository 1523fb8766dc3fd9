"""Correlations in stock: used once or never, whatever is killed, put back, asked for twice, or full."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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
    ReuseError,
    StorageError,
    UnknownModel,
)
from ditto.names import PARTIES
from ditto.net.config import DealerConfig, PartyConfig, Tls
from ditto.net.identity import Identity
from ditto.service import dealer_service, rekey, stored
from ditto.service.burnt import Burnt
from ditto.service.dealer_service import DealerService
from ditto.service.dealer_service import Entry as Masks
from ditto.service.leftovers import collect
from ditto.service.stock import BURNT, DIRECTORY, Header, Stock
from ditto.service.storage import Storage
from ditto.service.stored import PIECE, Owner, save_entry
from ditto.service.terms import binding
from ditto.wire import dealer_pb2

SHARE, JOB, PLAN = "5" * 32, "1" * 32, Plan(1, 16, guard=True)
KIND = SHARE, PLAN, "f"
SEED = bytes(range(16))
TLS = Tls(ca=Path("ca"), cert=Path("cert"), key=Path("key"))


def config(root: Path, party: int = 0, **fields: Any) -> PartyConfig:
    role = PARTIES[party]
    return PartyConfig.model_validate({"role": role, "listen": "a:1", "data_dir": root / role, "tls": TLS} | fields)


def header(job: str = JOB, client: str = "client/alice", **fields: Any) -> Header:
    return Header(job=job, share_id=SHARE, plan=PLAN, fingerprint="f", client=client).model_copy(update=fields)


def lay(
    stock: Stock, job: str = JOB, data: bytes = b"dealt", seed: bytes = SEED, client: str = "client/alice",
    dealing: str = "",
) -> int:  # fmt: skip
    entry = header(job, client, dealing=dealing)
    with stock.claiming(entry, len(data)):
        return stock.lay(entry, seed, [data[:3], memoryview(data[3:])], len(data))


def freely() -> None:
    """The dealer has nothing against it."""


# What a party does with it --------------------------------------------------------------------------


def test_what_is_laid_down_is_what_is_taken_once(tmp_path: Path) -> None:
    stock = Stock(config(tmp_path), [SHARE])
    data = secrets.token_bytes(2 * PIECE + 7)
    nbytes = lay(stock, data=data)
    assert stock.of(SHARE) == {PLAN: (1, nbytes)} and nbytes > len(data)
    stock = Stock(config(tmp_path), [SHARE])  # over a restart
    assert (len(stock), stock.nbytes) == (1, nbytes)
    source = stock.take(JOB, KIND, freely)
    assert not (tmp_path / "party0" / DIRECTORY / SHARE / JOB).exists()  # gone before a byte is used
    assert source.seed() == SEED
    assert b"".join(bytes(source.take(n)) for n in (5, PIECE, 0, len(data) - PIECE - 5)) == data
    assert source.received == len(data)
    with pytest.raises(IntegrityError, match="the program needs more"):
        source.take(1)
    source.close()
    with pytest.raises(ClusterError):
        source.take(0)
    for again in (stock, Stock(config(tmp_path), [SHARE])):
        with pytest.raises(ReplayedJob):
            again.take(JOB, KIND, freely)
        with pytest.raises(ReplayedJob):  # not as the name of any other job either
            again.check_fresh(JOB)
        with pytest.raises(ReplayedJob):
            lay(again)
    stock.check_fresh("2" * 32)
    with pytest.raises(NoStock):
        stock.take("2" * 32, KIND, freely)


@pytest.mark.parametrize("other", [("6" * 32, PLAN, "f"), (SHARE, Plan(1, 32, guard=True), "f"), (SHARE, PLAN, "g")])
def test_it_fits_one_kind_of_job(other: tuple[str, Plan, str], tmp_path: Path) -> None:
    stock = Stock(config(tmp_path), [SHARE])
    lay(stock)
    with pytest.raises(NoStock, match="another job"):
        stock.take(JOB, other, freely)
    with pytest.raises(ReplayedJob):  # who asks so has no second try
        stock.take(JOB, KIND, freely)


def test_a_refusal_of_the_dealer_uses_it_up(tmp_path: Path) -> None:
    stock = Stock(config(tmp_path), [SHARE])
    lay(stock)

    def refuses() -> None:
        raise ReuseError("taken before", peer="dealer")

    with pytest.raises(ReuseError):
        stock.take(JOB, KIND, refuses)
    assert not len(Stock(config(tmp_path), [SHARE]))


def test_of_many_at_once_one_has_it(tmp_path: Path) -> None:
    stock, had, refused = Stock(config(tmp_path), [SHARE]), [], []
    lay(stock)
    together = threading.Barrier(8)

    def take() -> None:
        together.wait()
        try:
            had.append(stock.take(JOB, KIND, freely))
        except ReplayedJob as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(had), len(refused)) == (1, 7)


def test_every_changed_byte_is_an_error(tmp_path: Path) -> None:
    """Of the start, the tags and pieces' ends: each place where something else is read. Found at the latest when the
    piece is used, and the name is used up."""
    data, path = bytes(PIECE), tmp_path / "party0" / DIRECTORY / SHARE / JOB
    lay(Stock(config(tmp_path), [SHARE]), data=data)
    whole = path.read_bytes()
    cut = [whole[:-1], whole[: PIECE // 2], whole[:10], b""]
    flipped = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        for at in (0, 9, 23, 24, 60, 200, 24 + PIECE, len(whole) - 17, len(whole) - 1)
    ]
    for changed in (*cut, *flipped, whole + b"x"):
        path.write_bytes(changed)
        (path.parent / BURNT).unlink(missing_ok=True)
        stock = Stock(config(tmp_path), [SHARE])
        if not len(stock):  # its first piece: gone with the start
            assert not path.exists()
            continue
        with pytest.raises(DamagedFile):  # in the second one
            stock.take(JOB, KIND, freely).take(len(data))
        assert not path.exists()
    path.write_bytes(whole)
    (path.parent / BURNT).unlink()
    assert len(Stock(config(tmp_path), [SHARE])) == 1
    path.rename(path.with_name("2" * 32))  # another name's
    assert not len(Stock(config(tmp_path), [SHARE]))
    path.write_bytes(whole)  # another party's
    other = config(tmp_path, 1).data_dir / DIRECTORY / SHARE
    other.mkdir(parents=True)
    shutil.copy(path, other / JOB)
    assert not len(Stock(config(tmp_path, 1), [SHARE]))


def test_changed_while_the_server_runs(tmp_path: Path) -> None:
    stock, path = Stock(config(tmp_path), [SHARE]), tmp_path / "party0" / DIRECTORY / SHARE / JOB
    lay(stock)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFile):
        stock.take(JOB, KIND, freely)
    lay(stock, "2" * 32)
    (path.parent / ("2" * 32)).unlink()
    with pytest.raises(DamagedFile):
        stock.take("2" * 32, KIND, freely)


def test_limits_before_anything_is_written(tmp_path: Path) -> None:
    stock = Stock(config(tmp_path, max_stock_mb=3, max_client_stock_mb=2), [SHARE])
    lay(stock, "1" * 32, bytes(PIECE + 1))
    with pytest.raises(LimitExceeded, match=r"1 jobs of client/alice .* at most 2 \(max_client_stock_mb\)"):
        lay(stock, "2" * 32, bytes(PIECE))
    with stock.claiming(header("3" * 32, "client/bob"), PIECE):  # room that somebody else is about to fill
        with pytest.raises(LimitExceeded, match=r"2 jobs of all .* at most 3 \(max_stock_mb\)"):
            lay(stock, "4" * 32, bytes(PIECE), client="client/carol")
        with pytest.raises(ReplayedJob):
            stock.check_fresh("3" * 32)
    lay(stock, "4" * 32, bytes(PIECE), client="client/carol")
    stock.discard("1" * 32)
    lay(stock, "5" * 32, bytes(PIECE // 2), client="")  # the operator's own has the whole limit only
    none = Stock(config(tmp_path / "none", max_stock_mb=0), [SHARE])
    with pytest.raises(LimitExceeded):
        lay(none)


def test_what_is_not_laid_down_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, home = Stock(config(tmp_path), [SHARE]), tmp_path / "party0" / DIRECTORY / SHARE

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            lay(stock, data=bytes(PIECE))
    for number, (data, need) in enumerate([(b"short", 9), (b"too long", 3)]):
        entry = header(str(2 + number) * 32)
        with pytest.raises(IntegrityError, match="the programs take"), stock.claiming(entry, need):
            stock.lay(entry, SEED, [data], need)

    def ends() -> Iterator[bytes]:
        yield b"deal"
        raise ClusterError("the coordinator wants it no more")

    with pytest.raises(ClusterError), stock.claiming(header("7" * 32), 5):
        stock.lay(header("7" * 32), SEED, ends(), 5)

    def given_up() -> Iterator[bytes]:
        yield b"dealt"
        stock.discard("8" * 32)  # when all of it is there already

    with pytest.raises(ClusterError, match="given up"), stock.claiming(header("8" * 32), 5):
        stock.lay(header("8" * 32), SEED, given_up(), 5)
    assert not [*home.iterdir()] and not len(stock) and not stock.nbytes
    with pytest.raises(ReplayedJob):  # a name that failed is not asked for again
        lay(stock)


def test_a_full_disk_takes_no_stock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written down as used is not used."""
    stock = Stock(config(tmp_path), [SHARE])
    lay(stock)

    def full(path: Path, data: bytes) -> None:
        raise StorageError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "append", full)
        with pytest.raises(StorageError):
            stock.take(JOB, KIND, freely)
    assert not len(stock) and not len(Stock(config(tmp_path), [SHARE]))


def test_with_the_sharing_all_of_it_goes(tmp_path: Path) -> None:
    stock, home = Stock(config(tmp_path), [SHARE]), tmp_path / "party0" / DIRECTORY / SHARE
    lay(stock)
    lay(stock, "2" * 32)
    stock.take(JOB, KIND, freely).close()
    with stock.claiming(header("3" * 32), 5):
        stock.forget(SHARE)
        with pytest.raises(UnknownModel):  # it was on its way
            stock.lay(header("3" * 32), SEED, [b"dealt"], 5)
    assert not home.exists() and not len(stock)
    with pytest.raises(ReplayedJob):
        stock.take("2" * 32, KIND, freely)
    with pytest.raises(UnknownModel):
        lay(stock, "4" * 32)
    again = Stock(config(tmp_path / "again"), [SHARE])
    lay(again)
    assert not len(Stock(config(tmp_path / "again"), []))  # dropped while the server was down
    assert not (tmp_path / "again" / "party0" / DIRECTORY / SHARE).exists()


def test_backups_pass_it_over(tmp_path: Path) -> None:
    stock = Stock(config(tmp_path), [SHARE])
    lay(stock)
    archive = tmp_path / "backup.tar"
    subprocess.run(
        ["tar", "-C", str(tmp_path), "--exclude-caches-under", "-cf", str(archive), "party0"], check=True
    )  # fmt: skip
    listed = subprocess.run(["tar", "-tf", str(archive)], check=True, capture_output=True, text=True).stdout
    assert DIRECTORY in listed and JOB not in listed


def test_another_storage_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_storage", None)
    for name in ("old.key", "new.key"):
        (tmp_path / name).write_text(secrets.token_hex(32))
    mine = config(tmp_path, storage_key=tmp_path / "old.key")
    stored.use(rekey.Storage(rekey.key_of(mine.storage_key)))
    rekey.bear_witness(stored._in_use(), mine.data_dir, mine.role) if mine.data_dir.mkdir() is None else None
    data = secrets.token_bytes(PIECE + 3)
    lay(Stock(mine, [SHARE]), data=data)
    assert rekey.change_key(mine, tmp_path / "new.key") == (1, [])
    stored.use(Storage(rekey.key_of(tmp_path / "new.key")))
    assert bytes(Stock(mine, [SHARE]).take(JOB, KIND, freely).take(len(data))) == data


# Names that are used up -------------------------------------------------------------------------------


def test_a_word_that_was_cut_off_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, (a, b, c) = tmp_path / "used", (letter * 32 for letter in "abc")
    burnt = Burnt(path)
    assert burnt.add(a) and not burnt.add(a)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
        with pytest.raises(StorageError, match="No space left"):
            burnt.add(b)
    assert b in burnt  # for this process
    assert burnt.add(c)
    assert Burnt(path)._words == {a, c}
    path.write_bytes(path.read_bytes() + bytes(40))  # after the end of the power
    assert Burnt(path).add(b) and Burnt(path)._words == {a, b, c}
    with pytest.raises(ValueError, match="no word"):
        burnt.add("../x")


# Killed ---------------------------------------------------------------------------------------------

CHILD = """
import gc, os, shutil, signal, sys
from pathlib import Path
from ditto.engine.plan import Plan
from ditto.net.config import PartyConfig, Tls
from ditto.service import stored
from ditto.service.burnt import Burnt
from ditto.service.leftovers import collect
from ditto.service.stock import Header, Stock
from ditto.service.storage import Storage

root, job, share = Path(sys.argv[1]), "1" * 32, "5" * 32
stored.use(Storage(bytes(32)))
tls = Tls(ca=root, cert=root, key=root)
config = PartyConfig(role="party0", listen="a:1", data_dir=root / "party0", tls=tls)
plan = Plan(1, 16, guard=True)
header = Header(job=job, share_id=share, plan=plan, fingerprint="f", client="")

def start():
    collect(config.data_dir, age=None)
    return Stock(config, [share])

def lay(stock):
    with stock.claiming(header, 5):
        stock.lay(header, bytes(16), [b"dealt"], 5)

def take(stock):
    dealer = Burnt(root / "dealer")
    def release():
        if not dealer.add(job + ".party0"):
            raise RuntimeError("the dealer refuses")
    source = stock.take(job, (share, plan, "f"), release)
    (root / f"used-{os.getpid()}").write_bytes(bytes(source.take(5)))  # a byte is used

def killed_before(step, work):
    pid = os.fork()
    if pid == 0:
        def counted(call):
            def wrapped(*args, **named):
                global count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **named)
            return wrapped
        globals()["count"] = 0
        stock = start() if work is take else None
        os.fsync = lambda descriptor: None  # killed, not cut off from power
        for place, name in ((os, "open"), (os, "write"), (os, "fsync"), (Path, "unlink"), (Path, "replace"),
                            (Path, "mkdir")):
            setattr(place, name, counted(getattr(place, name)))
        try:
            work(stock or start())
        except Exception:
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def fresh():
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()

gc.freeze()
for what, before in (("take", True), ("lay", False)):
    step = 0
    while True:
        step += 1
        fresh()
        if before:
            lay(start())
        code = killed_before(step, take if what == "take" else lay)
        there = len(start())
        again = killed_before(0, take)
        third = killed_before(0, take)
        uses = len(list(root.glob("used-*")))
        left = [p.name for p in root.rglob("*.new")]
        print(what, step, code, there, again, third, uses, len(left), flush=True)
        if code == 0:
            break
"""


def test_killed_at_every_step() -> None:
    """Taking and laying down, killed before each operation on a file, then started and tried again, twice."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        ran = subprocess.run(
            [sys.executable, "-c", CHILD, place], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            check=True,
        )  # fmt: skip
    rows = [line.split() for line in ran.stdout.splitlines() if line.startswith(("take", "lay"))]
    taking = [list(map(int, row[1:])) for row in rows if row[0] == "take"]
    laying = [list(map(int, row[1:])) for row in rows if row[0] == "lay"]
    for step, code, there, again, third, uses, left in taking:
        assert code == (-9 if step < len(taking) else 0)
        assert uses <= 1 and third != 0 and not left, step
        assert uses == (code == 0) + (again == 0), step
        if not there:  # written down as used
            assert again != 0
    assert {there for _, _, there, *_ in taking} == {0, 1}  # killed before and after
    assert len(taking) >= 8  # the dealer's list, its own, the file, each to the disk
    for step, code, there, again, third, uses, left in laying:
        assert code == (-9 if step < len(laying) else 0)
        assert uses == there == (again == 0) and third != 0 and not left, step
    assert {there for _, _, there, *_ in laying} == {0, 1}


# Put back --------------------------------------------------------------------------------------------


class Servers:
    """Both parties' stock and the dealer, as processes that have just started on these directories; the parties know
    the sharing unless a file says that they dropped it. A coordinator that tries everything is in the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dealer = DealerService(DealerConfig(listen="a:1", data_dir=root / "dealer", tls=TLS))
        self.dropped = [(root / role / "dropped").exists() for role in PARTIES]
        self.stocks = [
            Stock(config(root, party), [] if dropped else [SHARE]) for party, dropped in enumerate(self.dropped)
        ]

    def lay(self, seeds: dict[int, bytes]) -> None:
        """A dealing has fresh seeds, whoever asks how often; a party that refuses leaves it to the other."""
        dealing = secrets.token_hex(16)
        for party, seed in seeds.items():
            if not self.dropped[party]:
                with suppress(DittoError):
                    lay(self.stocks[party], seed=seed, dealing=dealing)

    def open(self, party: int, stocked: bool) -> tuple[bytes, str]:
        """As a party opens the job: its seed, and what it tells the other party that it means. Raises DittoError."""
        if self.dropped[party]:
            raise UnknownModel("dropped")
        if not stocked:
            self.stocks[party].check_fresh(JOB)
            return secrets.token_bytes(16), binding(*KIND, False, "now")

        def release() -> None:
            ask = dealer_pb2.TakeStockRequest(job=JOB, share_id=SHARE)
            self.dealer.TakeStock(ask, SimpleNamespace(role=PARTIES[party]))  # type: ignore[arg-type]

        source = self.stocks[party].take(JOB, KIND, release)
        return source.seed(), binding(*KIND, True, source.dealing)

    def used(self, *stocked: bool) -> set[bytes]:
        """Seeds with which something is opened: both parties go along, and mean the same."""
        found = []
        for party, asked in enumerate(stocked):
            with suppress(DittoError):
                found.append(self.open(party, asked))
        return {seed for seed, _ in found} if len({bound for _, bound in found}) == 1 < len(found) else set()


MOMENTS = ("before", "laid", "used", "dropped")


@pytest.fixture(scope="module")
def history() -> Iterator[Path]:
    """The directories at each moment of one stocked job's life. Its seeds are SEED and SEED reversed."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place,
        pytest.MonkeyPatch.context() as patch,
    ):
        root = Path(place)
        patch.setattr(dealer_service, "caller", lambda context: Identity(context.role))
        patch.setattr(threading.Thread, "start", lambda self: None)  # a dealer's sweep for each
        patch.setattr(os, "fsync", lambda descriptor: None)  # nothing is killed here
        now = root / "now"
        (now / "dealer" / "models").mkdir(parents=True)
        entry = Masks(model="m", description="x", master="0" * 32)
        save_entry(now / "dealer" / "models" / f"{SHARE}.json", entry, Owner("dealer", SHARE))
        servers = Servers(now)
        shutil.copytree(now, root / "before")
        servers.lay({0: SEED, 1: SEED[::-1]})
        shutil.copytree(now, root / "laid")
        assert servers.used(True, True) == {SEED, SEED[::-1]}
        shutil.copytree(now, root / "used")
        for party, role in enumerate(PARTIES):
            servers.stocks[party].forget(SHARE)
            (now / role / "dropped").touch()
            ask = dealer_pb2.ForgetModelRequest(share_id=SHARE)
            servers.dealer.ForgetModel(ask, SimpleNamespace(role=role))  # type: ignore[arg-type]
        now.rename(root / "dropped")
        yield root


def test_nothing_is_used_twice_unless_all_three_forget(history: Path) -> None:
    """Each server is put back to any moment of a job that was done, and started; then a coordinator has the name laid
    down again, at either party or both, and has the job opened in every way. What it was done with comes again only
    where the parties and the dealer are all put back to before it was used."""
    again = set()
    ways = [((True, True), laid) for laid in ((), (0,), (1,), (0, 1))]
    ways += [((True, False), (1,)), ((True, False), ()), ((False, True), (0,)), ((False, True), ())]
    for moments in itertools.product(MOMENTS, repeat=3):
        home = history / "-".join(moments)
        for role, moment in zip(("dealer", *PARTIES), moments, strict=True):
            shutil.copytree(history / moment / role, home / role)
        few = ways[:2] if "dropped" in moments[1:] else ways  # a party that dropped the sharing refuses them all
        for number, (way, laid) in enumerate(few):
            place = shutil.copytree(home, history / f"{home.name}-{number}")
            servers = Servers(place)
            servers.lay({party: secrets.token_bytes(16) for party in laid})
            if servers.used(*way) & {SEED, SEED[::-1]}:
                again.add(moments)
            assert not servers.used(*way), "the same name, once more"
            shutil.rmtree(place)
        shutil.rmtree(home)
    everything = {("laid", "laid", "laid"), ("before", "laid", "laid")}
    assert again == everything


def test_two_coordinators_do_not_meet(tmp_path: Path) -> None:
    """Names are the coordinators' own; what one laid down is no other's to open, lay down or name a job by, but it may
    use it up: then it is lost."""
    stock = Stock(config(tmp_path), [SHARE])
    lay(stock, "1" * 32)
    lay(stock, "2" * 32, seed=SEED[::-1])
    with pytest.raises(ReplayedJob):
        lay(stock, "1" * 32)
    with pytest.raises(ReplayedJob):
        stock.check_fresh("1" * 32)
    assert stock.take("2" * 32, KIND, freely).seed() == SEED[::-1]
    assert stock.take("1" * 32, KIND, freely).seed() == SEED


def test_leftovers_go_with_the_start(tmp_path: Path) -> None:
    stock, home = Stock(config(tmp_path), [SHARE]), tmp_path / "party0" / DIRECTORY / SHARE
    lay(stock)
    (home / f".{'a' * 16}.new").write_bytes(b"half")
    collect(tmp_path / "party0", age=None)
    assert sorted(path.name for path in home.iterdir()) == [JOB]
