"""Jobs while processes die, stop, lose their time or their disk: does every one end, rightly or in a clear error?

    make soak                                # 200 jobs
    make soak ARGS="--jobs 40 --seed 7 --json"

A local cluster of its own, real processes over mutual TLS, two small models (BERT, GPT-2) and a third that is shared
again and again. A few clients ask; at random moments drawn from the seed one thing at a time happens to a process
(chaos.py), and `cluster up` repairs it, as an operator would. The plan is the seed's; what each moment meets is not.

Held against it: every job ends within the deadline, in the plain interpreter's answer or in a numbered error, and in an
error only where something happened meanwhile; a killed client's jobs end with it. No job identifier and no key is used
twice. Once it is quiet, every server takes what it took before, and the cluster answers. After a last restart every
stored file authenticates, nothing is left over, and what the servers hold fits together. Exit code 1 otherwise.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.asking import model
from benchmarks.chaos import Chaos, Fault, plan, small_disks
from benchmarks.servers import Usage, Watched, asking_command, client_config, stored_wrongly, used_twice
from benchmarks.soak_report import tables
from ditto.cli.common import note
from ditto.client.client import Client
from ditto.client.local_cluster import _free_ports
from ditto.errors import BY_CODE, DittoError
from ditto.names import SERVERS

CLIENTS = 3
# Not derived: three jobs in line, each found lost after the keepalive (7 s), on a machine busy with starting servers.
DEADLINE_S = 45.0  # and three times the timeout of connecting
IDLE_S = 8.0  # in the servers' configurations: after that a job goes whose coordinator or client was killed
# Not derived; what is taken a second time, in each of 200 jobs, or for each of 100 faults is beyond them.
SLACK = Usage(megabytes=48, threads=48, files=24)


@dataclass
class Span:
    """When something began and ended, by time.monotonic."""

    began: float
    ended: float = float("inf")

    def meets(self, other: Span) -> bool:
        return self.began <= other.ended and other.began <= self.ended


@dataclass
class Run:
    """What happened."""

    faults: list[tuple[Fault, Span]] = field(default_factory=list)
    outcomes: dict[int, dict[str, Any]] = field(default_factory=dict)
    spans: dict[int, Span] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)  # identifiers
    wrong: list[str] = field(default_factory=list)
    before: dict[str, Usage] = field(default_factory=dict)
    after: dict[str, Usage] = field(default_factory=dict)
    keys: int = 0
    seconds: float = 0.0


def tasks(draws: random.Random, jobs: int, faults: list[Fault]) -> list[dict[str, Any]]:
    """What is asked, in order. A full disk meets a model that is shared."""
    found: list[dict[str, Any]] = []
    for n in range(jobs):
        name = draws.choices(("bert", "gpt2", "spare", "share"), (45, 30, 15, 10))[0]
        seed = draws.randrange(1 << 30)
        share = name == "share" or any(fault.kind == "disk" and fault.after == n for fault in faults)
        found.append({"n": n, "share": "spare"} if share else {"n": n, "model": name, "seed": seed})
    return found


# Clients ------------------------------------------------------------------------------------------


class Asker:
    """One client's program, in a process that may be killed and is then started again."""

    def __init__(self, config: Path, owner: bool, deadline: float) -> None:
        self._config, self._deadline = config, deadline
        self.owner = owner  # of the models: only its programs may share them
        self.killed = self.ended = False
        self._launch()

    def _launch(self) -> None:
        self.process = subprocess.Popen(
            asking_command(self._config), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self.process, self._said), daemon=True).start()

    def ready(self) -> None:
        if self._said.get(timeout=120) is None:
            raise RuntimeError("a client did not start")

    @staticmethod
    def _read(process: subprocess.Popen[str], said: queue.Queue[dict[str, Any] | None]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):  # a killed one's last line may be cut
            for line in process.stdout:
                said.put(json.loads(line))
        said.put(None)

    def ask(self, task: dict[str, Any], jobs: list[str]) -> dict[str, Any]:
        """What came of it: HANGS past the deadline, KILLED if this client was."""
        if self.process.poll() is not None:  # killed between two tasks
            self._again()
        assert self.process.stdin is not None
        until = time.monotonic() + self._deadline
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            while True:
                said = self._said.get(timeout=max(0.0, until - time.monotonic()))
                if said is None:
                    break
                if "outcome" in said:
                    return said
                jobs.append(said["job"])
        except queue.Empty:
            self._again()
            return {"outcome": "HANGS", "seconds": self._deadline}
        except BrokenPipeError:
            pass
        found = "KILLED" if self.killed else "DIED"
        self._again()
        return {"outcome": found, "seconds": 0.0}

    def _again(self) -> None:
        """Started once more, and again if it is killed meanwhile."""
        self.close()
        while not self.ended:
            self.killed = False
            self._launch()
            try:
                return self.ready()
            except RuntimeError:
                self.close()
                if not self.killed:
                    raise

    def kill(self) -> None:
        self.killed = True
        self.process.kill()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


# The run ------------------------------------------------------------------------------------------


class Soak:
    def __init__(
        self, cluster: Watched, disks: str, askers: list[Asker], todo: list[dict[str, Any]], faults: list[Fault]
    ) -> None:
        self._askers, self._todo, self._faults = askers, [*todo, {}], faults  # the last one is the end
        self._chaos = Chaos(cluster, disks, lambda i: askers[i].kill())
        self._changed = threading.Condition()
        self._begun, self._over, self._broken = 0, 0, False
        self.run = Run()

    def go(self) -> Run:
        threads = [threading.Thread(target=self._ask, args=(asker,)) for asker in self._askers]
        for thread in threads:
            thread.start()
        try:
            for fault in self._faults:
                self._happen(fault)
        except BaseException:
            with self._changed:
                self._broken = True
            raise
        finally:
            with self._changed:
                self._changed.notify_all()
            for thread in threads:
                thread.join()
        return self.run

    def _happen(self, fault: Fault) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._begun > fault.after)
        time.sleep(fault.delay)
        span = Span(time.monotonic())
        self.run.faults.append((fault, span))
        note(f"job {fault.after} + {fault.delay:.1f} s: {fault.kind}, {', '.join(fault.targets)}, {fault.seconds:g}")
        try:
            self._chaos.happen(fault, lambda: fault.after in self.run.outcomes)
        except DittoError as error:
            self.run.wrong.append(f"not repaired after {fault.kind} of {', '.join(fault.targets)}: {error}")
            self._chaos.again()
        span.ended = time.monotonic()
        with self._changed:
            self._over += 1
            self._changed.notify_all()

    def _next(self, asker: Asker) -> dict[str, Any] | None:
        """A job waits until what began before those now under way is repaired: else all would meet one repair."""
        with self._changed:
            self._changed.wait_for(lambda: asker.owner or "share" not in self._todo[self._begun])
            task = self._todo[self._begun]
            if not task:
                return None
            self._begun += 1
            self._changed.notify_all()
            due = sum(fault.after <= task["n"] - len(self._askers) for fault in self._faults)
            self._changed.wait_for(lambda: self._over >= due or self._broken)
            return None if self._broken else task

    def _ask(self, asker: Asker) -> None:
        while task := self._next(asker):
            span = self.run.spans[task["n"]] = Span(time.monotonic())
            found = asker.ask(task, self.run.jobs)
            span.ended = time.monotonic()
            self.run.outcomes[task["n"]] = found


def judged(run: Run, todo: list[dict[str, Any]]) -> list[str]:
    """What the jobs did that they must not."""
    shares = {task["n"] for task in todo if "share" in task}
    wrong = []
    for task in todo:
        n = task["n"]
        found = run.outcomes.get(n)
        what = f"job {n} ({task.get('model', 'share')})"
        if found is None:
            wrong.append(f"{what} has no end")
            continue
        code = found["outcome"]
        met = any(span.meets(run.spans[n]) for _, span in run.faults)
        if task.get("model") == "spare" or n in shares:
            met = met or any(run.spans[n].meets(run.spans[m]) for m in shares - {n} if m in run.spans)
        if code not in (*BY_CODE, "right", "KILLED") or code == DittoError.code:
            wrong.append(f"{what}: {code} {found.get('message', '')}")
        elif code not in ("right", "KILLED") and not met:
            wrong.append(f"{what}: {code} though nothing happened: {found['message']}")
    wrong += [f"job identifier {job[:8]} twice" for job, times in Counter(run.jobs).items() if times > 1]
    return wrong


def rounds(askers: list[Asker], count: int, seed: int) -> list[str]:
    """Every client asks each model, all at once; what was not answered rightly."""
    wrong: list[str] = []

    def ask(number: int, asker: Asker) -> None:
        for i in range(count):
            for name in ("bert", "gpt2", "spare"):
                task = {"n": 0, "model": name, "seed": seed + 100 * number + i}
                found = asker.ask(task, [])
                if found["outcome"] != "right":
                    wrong.append(f"a quiet cluster: {name}: {found}")

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(askers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def grown(before: dict[str, Usage], after: dict[str, Usage]) -> list[str]:
    return [
        f"{role} takes {getattr(after[role], name)} {name}; before: {getattr(before[role], name)}"
        for role in SERVERS
        for name, slack in zip(Usage._fields, SLACK, strict=True)
        if getattr(after[role], name) > getattr(before[role], name) + slack
    ]


@contextlib.contextmanager
def soaked(root: Path, connect: float) -> Iterator[tuple[Watched, str, list[Asker]]]:
    """The cluster with its models and clients; all gone when the block ends."""
    cluster, askers = Watched(root), list[Asker]()
    with small_disks(root) as disks:
        try:
            cluster.configure(ports=_free_ports())
            both = {"connect_timeout_s": connect}
            cluster.prepare({role: both | {"idle_timeout_s": IDLE_S} for role in SERVERS} | {"client": both})
            configs = [cluster.config_path("client")]  # the owner's, in two programs, and another identity's
            configs += [configs[0], cluster.add_client("alice")]
            askers += [Asker(config, config == configs[0], DEADLINE_S + 3 * connect) for config in configs]
            cluster.up(180)
            with Client(client_config(configs[0])) as client:
                for name in ("bert", "gpt2", "spare"):
                    client.share_model(model(name).description, model(name).weights)
                    client.grant_model(name, "alice")
            for asker in askers:
                asker.ready()
            yield cluster, disks, askers
        finally:
            for asker in askers:
                asker.ended = True
                asker.close()
            cluster.down()


def soak(jobs: int, count: int, seed: int, quiet: float, connect: float, keep: Path | None = None) -> dict[str, Any]:
    began, draws = time.monotonic(), random.Random(seed)
    faults = plan(draws, jobs, count, CLIENTS)
    todo = tasks(draws, jobs, faults)
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        with soaked(root, connect) as (cluster, disks, askers):
            wrong = rounds(askers, 2, seed)
            time.sleep(min(quiet, 1.0))
            before = cluster.usage()
            run = Soak(cluster, disks, askers, todo, faults).go()
            run.before = before
            wrong += run.wrong + judged(run, todo) + rounds(askers, 2, seed + 1)
            time.sleep(quiet)
            run.after = cluster.usage()
            wrong += grown(run.before, run.after)
            cluster.down()
            cluster.up(180)
            wrong += rounds(askers[:1], 1, seed + 2)
            cluster.down()
            wrong += stored_wrongly(cluster)
            run.keys, twice = used_twice(root / "recorded")
            wrong += twice
            if not run.keys:
                wrong.append("no key was recorded: nothing was watched")
    finally:
        if keep is not None:
            shutil.copytree(root / "logs", keep, dirs_exist_ok=True)
        shutil.rmtree(root, ignore_errors=True)
    run.seconds = time.monotonic() - began
    return report(run, todo, disks, seed, wrong)


# Its account --------------------------------------------------------------------------------------


def report(run: Run, todo: list[dict[str, Any]], disks: str, seed: int, wrong: list[str]) -> dict[str, Any]:
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for found in run.outcomes.values():
        seconds[found["outcome"]].append(found["seconds"])
    outcomes = {
        code: {"jobs": len(of), "p50_seconds": round(statistics.median(of), 2), "max_seconds": round(max(of), 2)}
        for code, of in sorted(seconds.items(), key=lambda item: -len(item[1]))
    }
    done = [
        {"kind": fault.kind, "targets": list(fault.targets), "after": fault.after, "seconds": fault.seconds,
         "repaired_seconds": round(span.ended - span.began, 2)}
        for fault, span in run.faults
    ]  # fmt: skip
    return {
        "seed": seed,
        "jobs": len(todo),
        "seconds": round(run.seconds, 1),
        "full_disk": disks,
        "clock": "what Python reads: time.time, datetime.now",
        "faults": done,
        "outcomes": outcomes,
        "errors": [{"job": n, **found} for n, found in sorted(run.outcomes.items()) if "exit_code" in found],
        "keys_expanded": run.keys,
        "job_identifiers": len(run.jobs),
        "usage": {role: {"before": run.before[role]._asdict(), "after": run.after[role]._asdict()} for role in SERVERS},
        "breaches": wrong,
    }


def main(
    jobs: Annotated[int, typer.Option(min=1)] = 200,
    faults: Annotated[int, typer.Option(help="How many things happen; default: one for two jobs.")] = -1,
    seed: Annotated[int, typer.Option()] = 1,
    quiet: Annotated[float, typer.Option(help="Seconds of rest before what servers take is compared.")] = IDLE_S + 4,
    connect: Annotated[float, typer.Option(help="connect_timeout_s of all processes; more on a busy machine.")] = 5.0,
    keep: Annotated[Path | None, typer.Option(help="A directory for the servers' logs.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    found = soak(jobs, jobs // 2 if faults < 0 else faults, seed, quiet, connect, keep)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        for part in tables(found):
            Console(width=120).print(part, markup=False)
    raise typer.Exit(1 if found["breaches"] else 0)


if __name__ == "__main__":
    typer.run(main)
