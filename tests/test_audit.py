"""The replay audit: what a party did is what it says it did, or the step is named at which it is not."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine import both
from test_transcript import linked
from tiny import small_shapes
from typer.testing import CliRunner

import ditto
from ditto.cli import app
from ditto.client.client import Client
from ditto.client.local_cluster import Cluster, _free_ports, home
from ditto.client.messages import chunks
from ditto.engine import job as engine_job
from ditto.engine.channel import MemoryChannel
from ditto.engine.job import DealerJob, _PartyContext
from ditto.engine.program import Program
from ditto.engine.recording import KINDS, Event, RecordedSource, events
from ditto.engine.sharing import share
from ditto.engine.weights import DealerWeights
from ditto.errors import (
    ClusterError,
    DamagedFile,
    DittoError,
    IntegrityError,
    LimitExceeded,
    NotAllowed,
    PeerLost,
    StorageError,
    UnknownModel,
    VersionMismatch,
)
from ditto.models import Plan, encode_inputs, generator_of, random, random_model
from ditto.models.compiled import program_for, weights_of
from ditto.models.description import Description, digest_of
from ditto.models.tokenizer import Batch, Prompts
from ditto.net.config import PartyConfig, Tls
from ditto.net.framing import dealt_digest
from ditto.net.messages import to_message
from ditto.net.metrics import PartyMetrics
from ditto.ops import Masked, WeightShare
from ditto.ring.kernels import RingMatrix
from ditto.ring.prg import new_seed
from ditto.service import audit as service_audit
from ditto.service import recordings, stored
from ditto.service.audit import audit, recorded
from ditto.service.laying import Laying
from ditto.service.leftovers import collect
from ditto.service.model_store import ModelStore
from ditto.service.party_jobs import Jobs
from ditto.service.stored import Owner
from ditto.wire import dealer_pb2, party_pb2

SEQ, TOKENS = 8, 3
Weights = dict[str, torch.Tensor]
Inputs = list[dict[str, torch.Tensor]]


class Dealt(list[dealer_pb2.CorrelationsReply]):
    def cancel(self) -> None:
        pass


@dataclass
class World:
    """Two parties as they serve one model, over a link in this process; what is dealt is dealt before a job."""

    configs: list[PartyConfig]
    description: Description
    links: Any
    share_id: str = field(default_factory=lambda: secrets.token_hex(16))
    dealt: list[dict[str, Dealt]] = field(default_factory=lambda: [{}, {}])

    def share(self, weights: Weights) -> None:
        self.stores = [ModelStore(config.data_dir, config.index) for config in self.configs]
        text, seed, masks = self.text, new_seed(), (new_seed(), new_seed())
        wires = weights_of(text)
        self.masks = DealerWeights(wires, masks)
        channels = MemoryChannel.pair()

        def put(party: int) -> None:
            header = party_pb2.ModelHeader(model="tiny", share_id=self.share_id, description=text)
            parts = [party_pb2.PutModelRequest(header=header)]
            if party == 0:
                parts[0].header.seed = seed
            else:
                for key, wire in wires.items():
                    pieces = chunks(key, wire, share(key, weights[key], wire, seed))
                    parts += [party_pb2.PutModelRequest(chunk=chunk) for chunk in pieces]
            entry = self.stores[party].put(iter(parts), "client/alice")
            self.stores[party].activate(entry, masks[party], channels[party])

        both(put)
        self.serve()

    def serve(self) -> None:
        def dealer(party: int) -> Any:
            return SimpleNamespace(
                Correlations=lambda request: self.dealt[party][request.job], TakeStock=lambda request, timeout: None
            )

        self.jobs = [
            Jobs(config, self.stores[i], self.links[i], dealer(i), PartyMetrics())
            for i, config in enumerate(self.configs)
        ]
        self.laying = [
            Laying(config, self.stores[i], self.jobs[i].stock, dealer(i), PartyMetrics(), self.jobs[i].check_fresh)
            for i, config in enumerate(self.configs)
        ]

    def configure(self, **fields: Any) -> None:
        self.configs = [config.model_copy(update=fields) for config in self.configs]
        self.serve()

    @property
    def text(self) -> str:
        return self.description.text()

    def program(self, plan: Plan, stage: int = 0) -> Program:
        return program_for(self.text, plan, stage)

    def ask(self, plan: Plan, inputs: Inputs, fails: bool = False, stocked: bool = False) -> str:
        """Run a job to its end, from stock where it is `stocked`; returns its name."""
        name, seeds, programs = secrets.token_hex(16), (new_seed(), new_seed()), range(plan.stages)
        self._deal(name, seeds, [self.program(plan, stage) for stage in programs])
        request = party_pb2.OpenJobRequest(
            job=name, model="tiny", share_id=self.share_id, plan=to_message(plan), client="client/alice",
            fingerprint=self.program(plan).fingerprint, description_digest=digest_of(self.text),
        )  # fmt: skip
        if stocked:
            lay = party_pb2.StockRequest.FromString(request.SerializeToString())  # the same fields
            both(lambda i: self.laying[i].lay(lay, lambda _: True))
            assert [len(jobs.stock) for jobs in self.jobs] == [1, 1]
            self.dealt = [{}, {}]
            request.stocked = True
        both(lambda i: self.jobs[i].open(request))

        def work(i: int) -> None:
            job = self.jobs[i].get(name)
            try:
                for stage, values in enumerate(inputs):
                    for key, x in values.items():
                        job.set_input(stage, key, x if i == 0 else x * 0)
                    for phase in ("offline", "online"):
                        job.step(phase, party_pb2.StepRequest(job=name, stage=stage, rest=True))  # type: ignore[arg-type]
            except Exception:
                self.jobs[i].close(name, "a step failed")
                raise

        try:
            both(work)
            assert not fails
        except PeerLost:
            assert fails
        for jobs in self.jobs:
            jobs.close(name)
            if jobs._recordings is not None:
                jobs._recordings.close(60)
        return name

    def _deal(self, name: str, seeds: tuple[bytes, bytes], programs: list[Program]) -> None:
        pieces: list[list[bytes]] = [[], []]
        first, carried = 0, dict[str, torch.Tensor]()
        for program in programs:
            for party, data in DealerJob(program, name, seeds, self.masks, first, carried).deal():
                pieces[party].append(bytes(data))
            first += len(program.steps)
        for party in (0, 1):
            replies = [(seeds[party], b""), *((b"", data) for data in pieces[party])]
            self.dealt[party][name] = Dealt(
                dealer_pb2.CorrelationsReply(seed=seed, data=data, digest=dealt_digest(place, seed, data))
                for place, (seed, data) in enumerate(replies)
            )


def party_config(root: Path, party: int, **fields: Any) -> PartyConfig:
    tls = Tls(ca=root / "ca.pem", cert=root / "c.pem", key=root / "k.key")
    role: Any = f"party{party}"
    return PartyConfig(role=role, listen="127.0.0.1:1", data_dir=root / role, tls=tls, **fields)


@pytest.fixture(scope="module", params=["bert"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch, linked() as links:
        small_shapes(patch, SEQ)
        description, weights, _ = random_model(request.param, 1, SEQ)
        root = tmp_path_factory.mktemp("parties")
        made = World([party_config(root, i) for i in (0, 1)], description.model_copy(update={"name": "tiny"}), links)
        made.share({name: weights[name] for name in weights_of(made.text)})
        yield made


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    """As it was shared, recording."""
    shared.configure(record=4)
    yield shared
    for config in shared.configs:
        shutil.rmtree(config.data_dir / "recordings", ignore_errors=True)


def question(world: World) -> tuple[Plan, Inputs]:
    plan, ids = Plan(1, SEQ, guard=True), torch.arange(SEQ)[None]
    batch = Batch(ids, torch.zeros_like(ids), torch.ones_like(ids))
    return plan, [encode_inputs(world.description, world.program(plan), batch)]


def prompt(world: World) -> tuple[Plan, Inputs]:
    gpt2, plan = generator_of("GPT2LMHeadModel"), Plan(1, SEQ, TOKENS, argmax=True, guard=True)
    first = gpt2.encode(world.description, world.program(plan), Prompts(torch.arange(SEQ)[None], [5]))
    later = [
        gpt2.encode_next(world.description, world.program(plan, stage), [stage], [4 + stage])
        for stage in range(1, TOKENS)
    ]
    return plan, [first, *later]


def deviation(world: World, party: int, job: str) -> str:
    with pytest.raises(IntegrityError, match=f"party{party} did not compute what it should have: ") as caught:
        audit(world.configs[party], job)
    assert caught.value.exit_code == 33
    return str(caught.value)


# As recorded -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stocked", [False, True], ids=["dealt", "stocked"])
@pytest.mark.parametrize(("shared", "asks"), [("bert", question), ("gpt2", prompt)], indirect=["shared"])
def test_a_job_as_recorded(world: World, asks: Any, stocked: bool) -> None:
    """Of each kind, with the range guard, each party by itself; and nothing of it changes what is stored."""
    plan, inputs = asks(world)
    job = world.ask(plan, inputs, stocked=stocked)
    programs = [world.program(plan, stage) for stage in range(plan.stages)]
    for config in world.configs:
        before = {path: path.read_bytes() for path in config.data_dir.rglob("*") if path.is_file()}
        found = audit(config, job[:8]).account
        assert before == {path: path.read_bytes() for path in config.data_dir.rglob("*") if path.is_file()}
        assert (found.stages, found.steps) == (plan.stages, sum(len(p.steps) for p in programs))
        rounds = sum(p.cost().rounds for p in programs)
        assert found.sent == rounds + 1 + plan.stages  # the common key, a transcript a stage
        assert found.outputs == sum(len(p.outputs) for p in programs) and found.dealt > 0
        assert (found.failed, found.given_up) == ("", "")


@pytest.mark.parametrize("shared", ["gpt2"], indirect=True)
def test_a_generation_that_was_ended_early(world: World) -> None:
    plan, inputs = prompt(world)
    job = world.ask(plan, inputs[:2])
    assert [one.job for one in recorded(world.configs[0])] == [job]
    header, account = audit(world.configs[1], job)
    assert (header.client, header.model, header.plan, header.role) == ("client/alice", "tiny", plan, "party1")
    assert (account.stages, account.given_up) == (2, "")


def test_a_job_that_failed_is_audited_up_to_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is gone before a message: what came before is as recorded, and so is the failure."""
    plan, inputs = question(world)
    send = world.links[0].send

    def breaks(job: str, sequence: int, *rest: Any) -> Any:
        if sequence == 9:
            raise PeerLost("gone")
        return send(job, sequence, *rest)

    monkeypatch.setattr(world.links[0], "send", breaks)
    job = world.ask(plan, inputs, fails=True)
    for config in world.configs:
        found = audit(config, job).account
        assert 0 < found.sent <= 10 and found.outputs == 0
        assert found.given_up == "a step failed"
    assert audit(world.configs[0], job).account.failed == "PEER_LOST"


# Deviations --------------------------------------------------------------------------------------


def first_opening_after(program: Program, weight: str) -> int:
    """The first step whose message depends on a weight."""
    touched = {weight}
    for index, step in enumerate(program.steps):
        if touched & {*step.inputs}:
            if step.op.opens():
                return index
            touched |= {*step.outputs}
    raise AssertionError


def with_a_flipped_bit(held: Any, bit: int) -> Any:
    if isinstance(held, torch.Tensor):
        held = held.clone()
        held.view(-1)[0] ^= 1 << bit
        return held
    if isinstance(held, Masked):
        return Masked(with_a_flipped_bit(held.value, bit), held.mask)
    whole = held.masked.take(torch.arange(held.masked.rows))
    return WeightShare(held.share, RingMatrix(with_a_flipped_bit(whole, bit), held.masked.bits))


@pytest.mark.parametrize("held", ["matrix", "masked", "share"])
def test_a_bit_flipped_in_memory_is_found(held: str, world: World) -> None:
    """In what a party holds of a weight while it runs: the first message that depends on it is named. The bit is one in
    the middle: truncation drops the highest ones of a wide ring, and nothing deviates."""
    plan, inputs = question(world)
    program = world.program(plan)
    weight = [name for name, wire in program.weights.items() if wire.held == held][1]
    cache = world.stores[0].weights(world.share_id)._cache
    good, cache[weight] = cache[weight], with_a_flipped_bit(cache[weight], program.weights[weight].ring // 2)
    job = world.ask(plan, inputs)
    cache[weight] = good
    at = first_opening_after(program, weight)
    text = deviation(world, 0, job)
    layer = program.steps[at].layer
    assert f"layer {layer} ({program.layers[layer]}), online: sent message '{at}/{program.steps[at].label} " in text
    assert audit(world.configs[1], job).account.outputs > 0  # the other party did what it should
    audit(world.configs[0], world.ask(plan, inputs))


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("shared", ["gpt2"], indirect=True)
def test_a_message_that_should_not_have_been_sent(
    party: int, stage: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A party sends something else than it computed, once: that step of that stage is named, and the one before."""
    plan, inputs = prompt(world)
    program = world.program(plan, stage)
    first = sum(len(world.program(plan, before).steps) for before in range(stage))
    openings = [i for i, step in enumerate(program.steps) if step.op.opens()]
    index = openings[len(openings) // 2]
    open_ = _PartyContext.open

    def deviates(self: _PartyContext, shares: list[torch.Tensor], *rest: Any) -> Any:
        if self.party == party and self._index == first + index:
            shares = [*shares[:-1], shares[-1] + 1]  # the first ones may have been sent ahead
        return open_(self, shares, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(_PartyContext, "open", deviates)
        job = world.ask(plan, inputs)
    step = program.steps[index]
    text = deviation(world, party, job)
    assert f"stage {stage}, layer {step.layer} ({program.layers[step.layer]}), online: " in text
    assert (
        f": sent message '{first + index}/{step.label} " in text and "the last message that was as recorded: " in text
    )
    audit(world.configs[1 - party], job)


def test_an_output_that_is_not_what_was_computed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, inputs = question(world)
    rerandomised = engine_job.rerandomised

    def deviates(share: torch.Tensor, party: int, *rest: Any) -> torch.Tensor:
        return rerandomised(share, party, *rest) + (party == 1)

    with monkeypatch.context() as patch:
        patch.setattr(engine_job, "rerandomised", deviates)
        job = world.ask(plan, inputs)
    name = next(iter(world.program(plan).outputs))
    assert f"stage 0, outputs: output share {name!r} is not the one" in deviation(world, 1, job)
    audit(world.configs[0], job)


def test_a_dealt_message_that_changed_on_its_way_to_the_engine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, inputs = question(world)
    take, flipped = RecordedSource.take, list[str]()

    def once(self: RecordedSource, nbytes: int) -> Any:
        data = bytearray(take(self, nbytes))
        jobs = world.jobs[0]._jobs
        if not flipped and any(job.source is self._inner for job in jobs.values()):
            flipped.extend(jobs)
            data[0] ^= 1
        return data

    with monkeypatch.context() as patch:
        patch.setattr(RecordedSource, "take", once)
        job = world.ask(plan, inputs)
    assert flipped == [job] and "offline: dealt message '" in deviation(world, 0, job)


# What is no deviation ----------------------------------------------------------------------------


def recording(world: World, party: int, job: str) -> Path:
    return world.configs[party].data_dir / "recordings" / f"{job}.party{party}"


def test_every_changed_byte_of_a_recording_is_an_error(world: World) -> None:
    """And never taken for a deviation: beginning, middle, end, cut, longer, another's name."""
    job = world.ask(*question(world))
    path, config = recording(world, 0, job), world.configs[0]
    good = path.read_bytes()
    places = [0, 7, 8, 23, 24, 100, len(good) // 2, len(good) - 16, len(good) - 1]
    changed = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in places]
    for bad in [*changed, good[:-1], good[: len(good) // 2], good[:24], b"", good + b"x"]:
        path.write_bytes(bad)
        with pytest.raises(DamagedFile, match="not what was stored here; this job cannot be audited") as caught:
            audit(config, job)
        assert caught.value.exit_code == 26
    other = "0" * 32
    path.rename(recording(world, 0, other)).write_bytes(good)
    with pytest.raises(DamagedFile):
        audit(config, other)


@pytest.mark.parametrize(
    "strange", [("input", "9/x"), ("stage", "x"), ("stage", "77"), ("run", "0/0"), ("prepare", "0/99"), ("output", "/")]
)
def test_a_recording_that_nobody_would_write(strange: tuple[str, str], world: World) -> None:
    """Sealed as it should be, and yet no party's: an error like another."""
    job = world.ask(*question(world))
    config, path = world.configs[0], recording(world, 0, job)
    owner = Owner("party0", job)
    written = [*events(stored.load_stream(path, owner))]
    for at in (1, 2, 3):
        bad = [*written[:at], Event(*strange), *written[at:]]
        stored.save_stream(path, [b"".join(event.head() + bytes(event.data) for event in bad)], owner)
        with pytest.raises(DittoError):
            audit(config, job)


def test_weights_that_changed_since_are_named(world: World) -> None:
    """A file that was written anew, a damaged one, a sharing that is gone: not the computation's fault."""
    job = world.ask(*question(world))
    config = world.configs[0]
    home_, owner = config.data_dir / "models" / world.share_id, Owner("party0", world.share_id)
    good = {path.name: path.read_bytes() for path in home_.iterdir()}
    stored.save_seed(home_ / "mask_seed", new_seed(), owner)
    with pytest.raises(DamagedFile, match="mask_seed: not the file that this job ran on: the weights changed since"):
        audit(config, job)
    (home_ / "mask_seed").write_bytes(good["mask_seed"])
    masked = bytearray(good["opened.safetensors"])
    masked[-20] ^= 1
    (home_ / "opened.safetensors").write_bytes(masked)
    with pytest.raises(DamagedFile, match=r"opened\.safetensors: .* is not what was stored here"):
        audit(config, job)
    (home_ / "opened.safetensors").write_bytes(good["opened.safetensors"])
    audit(config, job)
    home_.rename(aside := home_.with_name("aside"))
    with pytest.raises(UnknownModel, match="no longer has the sharing of tiny"):
        audit(config, job)
    aside.rename(home_)


def test_another_version_or_program(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.ask(*question(world))
    with monkeypatch.context() as patch:
        patch.setattr(ditto, "__version__", "0.0.1")
        with pytest.raises(VersionMismatch, match=r"recorded by ditto .*; this is 0\.0\.1"):
            audit(world.configs[0], job)
    with monkeypatch.context() as patch:
        other = world.program(Plan(1, SEQ))
        patch.setattr(service_audit, "program_for", lambda *_: other)
        with pytest.raises(VersionMismatch, match="fingerprint"):
            audit(world.configs[0], job)


def test_never_both_views_in_one_place(world: World) -> None:
    job = world.ask(*question(world))
    theirs = recording(world, 1, job)
    mine = recording(world, 0, job)
    (mine.parent / theirs.name).write_bytes(theirs.read_bytes())
    for attempt in (lambda: audit(world.configs[0], job), lambda: recorded(world.configs[0])):
        with pytest.raises(NotAllowed, match="is a recording of party1"):
            attempt()
    (mine.parent / theirs.name).unlink()
    theirs.write_bytes(mine.read_bytes())  # the other's view under this party's name
    with pytest.raises(DamagedFile):
        audit(world.configs[1], job)


def test_an_unknown_job(world: World) -> None:
    with pytest.raises(ClusterError, match="no recording of job 'abc'; recorded: none"):
        audit(world.configs[0], "abc")
    jobs = [world.ask(*question(world)) for _ in range(2)]
    with pytest.raises(ClusterError, match=f"recorded: {jobs[0][:8]}, {jobs[1][:8]}"):
        audit(world.configs[0], "x")


# What is kept ------------------------------------------------------------------------------------


def test_off_by_default_and_then_nothing_is_there(world: World) -> None:
    assert PartyConfig.model_fields["record"].default == 0
    world.configure(record=0)
    plan, inputs = question(world)
    job = world.ask(plan, inputs)
    assert not (world.configs[0].data_dir / "recordings").exists() and job
    assert all(jobs._recordings is None for jobs in world.jobs)


def test_the_oldest_go(world: World) -> None:
    """By number, and by size."""
    world.configure(record=2)
    jobs = [world.ask(*question(world)) for _ in range(3)]
    assert [one.job for one in recorded(world.configs[0])] == jobs[1:]
    nbytes = recorded(world.configs[1])[0].nbytes
    for at, config in enumerate(world.configs):
        kept = recordings.Recordings(config.model_copy(update={"record": 9}))
        kept._limit = 2 * nbytes - 1 if at else 2**40
        kept._evict()
    assert [one.job for one in recorded(world.configs[0])] == jobs[1:]
    assert [one.job for one in recorded(world.configs[1])] == jobs[2:]


def test_a_job_that_is_too_large(world: World) -> None:
    """Nothing of it stays but that it was one; the job goes on."""
    for jobs in world.jobs:
        assert jobs._recordings is not None
        jobs._recordings._limit = 20_000
    job = world.ask(*question(world))
    for config in world.configs:
        with pytest.raises(LimitExceeded, match="more than record_mb"):
            audit(config, job)
        assert sum(one.nbytes for one in recorded(config)) <= 20_000


def test_a_full_disk_costs_the_recording_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(recordings, "save_stream", full)
        job = world.ask(*question(world))
    with monkeypatch.context() as patch:
        patch.setattr(recordings, "make_directory", full)
        other = world.ask(*question(world))
    assert not recorded(world.configs[0]) and job != other


def test_a_process_that_is_killed_leaves_no_recording(tmp_path: Path) -> None:
    """Half a file is never found, and is collected."""
    script = """if True:
        import os, signal, sys
        from pathlib import Path
        from ditto.engine.plan import Plan
        from ditto.net.config import PartyConfig, Tls
        from ditto.service import stored
        from ditto.service.recordings import Header, Recordings
        from ditto.service.storage import Storage
        root = Path(sys.argv[1])
        stored.use(Storage(bytes(32)))
        tls = Tls(ca=root, cert=root, key=root)
        config = PartyConfig(role="party0", listen="127.0.0.1:1", data_dir=root, tls=tls, record=3)
        header = Header(role="party0", job="a" * 32, client="c", model="m", share_id="b" * 32, share_digest="",
                        files={}, plan=Plan(1, 8), fingerprint="f", bound="")
        recorder = Recordings(config).begin(header, bytes(16))
        recorder.add("taken", data=bytes(5 << 20))
        while not any(path.stat().st_size > 2 << 20 for path in root.rglob(".*.new")):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    config = party_config(tmp_path, 0).model_copy(update={"data_dir": tmp_path})
    left = list((tmp_path / "recordings").iterdir())
    assert len(left) == 1 and left[0].suffix == ".new" and not recorded(config)
    with pytest.raises(ClusterError, match="no recording of"):
        audit(config, "a" * 32)
    left[0].rename(recording_at := left[0].with_name("a" * 32 + ".party0"))  # taken for whole all the same
    stored.use(stored.Storage(bytes(32)))
    with pytest.raises(DamagedFile):
        audit(config, "a" * 32)
    recording_at.rename(left[0])
    os.utime(left[0], (0, 0))
    collect(tmp_path)
    assert not left[0].exists()


@pytest.mark.parametrize("cut", [1, 7, 1000, 1 << 20])
def test_events_come_back_however_they_were_cut(cut: int) -> None:
    written = [Event("seed", "", bytes(16)), Event("sent", "7/q k ü", b"x" * 3000), Event("end", "")]
    data = b"".join(event.head() + bytes(event.data) for event in written)
    assert [*events(data[i : i + cut] for i in range(0, len(data), cut))] == written
    for bad in (data[:-1], data[:20], bytes([len(KINDS)]) + data[1:], data + b"\0"):
        with pytest.raises(ValueError):
            [*events([bad])]


# By the command line -----------------------------------------------------------------------------


def test_ditto_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local cluster records, is stopped, and each party is audited by itself."""
    monkeypatch.setenv("DITTO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stored, "_storage", stored._storage)  # a command sets it: put back afterwards

    def run(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*args, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if result.stdout else result.stderr

    small_shapes(monkeypatch, SEQ)
    description, weights, _ = random_model("bert", 1, SEQ)
    cluster = Cluster(home())
    cluster.configure(ports=_free_ports())
    try:
        run("cluster", "up", "--record", "2")
        assert "stop the cluster first" in run("cluster", "up", "--record", "0", code=24)
        with Client(cluster.client_config()) as client:
            client.share_model(description, weights)
            batch = random.random_batch(1, SEQ)
            answer = client.infer(description.name, lambda p: encode_inputs(description, p, batch), 1, SEQ)
            job = answer.report["job"]
    finally:
        run("cluster", "down")
    for party in ("0", "1"):
        assert [row["job"] for row in run("audit", "--party", party)] == [job]
        found = run("audit", "--party", party, "--job", job)
        assert found["as_recorded"] and found["steps"] > 50 and found["role"] == f"party{party}"
    text = CliRunner().invoke(app, ["audit", "--party", "0", "--job", job[:8]]).stdout
    assert f"party0, job {job[:8]}" in text and "steps, all as recorded" in text
    mine, theirs = (cluster.config_path(f"party{i}") for i in (0, 1))
    assert "--party 0 is party0" in run("audit", "--party", "0", "--job", job, "--config", str(theirs), code=2)
    run("audit", "--party", "0", "--job", "f" * 32, code=24)
    run("audit", "--party", "0", "--config", str(tmp_path / "absent.yaml"), code=22)
    path = cluster.root / "data" / "party0" / "recordings" / f"{job}.party0"
    path.write_bytes(path.read_bytes()[:-1])
    run("audit", "--party", "0", "--job", job, "--config", str(mine), code=26)
