"""Whose a model, a job and an identifier are: what one server's operator with a client's certificate must not get."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch
from world import SEQ, Weights, World, world_of_clients

from ditto.client.messages import ask_of, terms_of
from ditto.errors import (
    BadShare,
    ClusterError,
    DamagedFile,
    DittoError,
    JobMismatch,
    NoStock,
    NotAllowed,
    ReplayedJob,
    ReuseError,
    UnknownModel,
    VersionMismatch,
)
from ditto.models import Plan, encode_inputs, random_batch
from ditto.models.compiled import program_for, weights_of
from ditto.models.description import digest_of
from ditto.names import PARTIES
from ditto.net.config import CoordinatorConfig, PartyConfig, load_config
from ditto.net.messages import to_message
from ditto.ring import signed
from ditto.ring.prg import new_seed
from ditto.service import stored
from ditto.service.registered import Registered
from ditto.service.storage import storage_of
from ditto.service.stored import Owner, load_entry, load_tensors, save_entry
from ditto.wire import control_pb2, control_pb2_grpc, dealer_pb2, dealer_pb2_grpc, party_pb2, party_pb2_grpc


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with world_of_clients() as found:
        yield found


# Masks -------------------------------------------------------------------------------------------


def operators_copy(world: World, share_id: str, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """F of a sharing, read as party 0's operator can."""
    masked = {name: wire for name, wire in weights_of(world.description.text()).items() if wire.held != "share"}
    path = world.cluster.root / "data" / "party0" / "models" / share_id / "opened.safetensors"
    config = load_config(world.cluster.config_path("party0"), PartyConfig)
    with monkeypatch.context() as patch:
        patch.setattr(stored, "_storage", storage_of(config))
        return {name: tensor.clone() for name, tensor in load_tensors(path, masked, Owner("party0", share_id))}


def test_masks_are_used_for_one_sharing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Party 0's operator keeps F = W + B of a sharing. F' = B under the same identifier would give it W: after the
    owner replaced the model, and after a restart of all servers, nobody can have it opened."""
    old = world.model().share_id
    text = world.description.text()
    masked = {name: wire for name, wire in weights_of(text).items() if wire.held != "share"}
    kept = operators_copy(world, old, monkeypatch)
    with world.client("alice") as client:
        client.share_model(world.description, world.weights)
    fresh = world.model().share_id
    assert fresh != old and [*world.sharings(0)] == [*world.sharings(1)] == [fresh]
    seeds = world.cluster.root / "data" / "dealer" / "models"
    assert (seeds / f"{fresh}.json").exists() and not (seeds / f"{old}.json").exists(), "the dealer forgot the seed"
    check_burnt(world, old, fresh)
    after = operators_copy(world, fresh, monkeypatch)
    assert not any(
        torch.equal(signed(kept[n].long() - after[n].long(), w.ring), torch.zeros(w.shape, dtype=torch.int64))
        for n, w in masked.items()
    ), "the same weights under fresh masks"
    assert world.infer("alice")["owner"] == "client/alice"
    world.burnt.append(old)


def check_burnt(world: World, dropped: str, serving: str) -> None:
    """Neither identifier can be put, by anybody; the dealer gives no seed for the dropped one."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in world.weights.items()}
    for name, model in (("mallory", "mine"), ("alice", "m")):
        for share_id in (dropped, serving):
            for party in (0, 1):
                with pytest.raises(ReuseError, match="used before"):
                    world.put(name, party, model, share_id, zeros)
    for role in PARTIES:
        with pytest.raises(ReuseError, match="dropped"):
            world.seed(role, dropped, "0" * 64)


def test_a_coordinator_cannot_have_two_sharings_opened_as_one(world: World) -> None:
    ids = [secrets.token_hex(16), secrets.token_hex(16)]
    for share_id in ids:
        for party in (0, 1):
            world.put("mallory", party, "mixed", share_id, world.weights)
    attempt = secrets.token_hex(16)

    def activate(party: int) -> None:
        ask = party_pb2.ActivateModelRequest(
            model="mixed", share_id=ids[party], attempt=attempt, owner="client/mallory",
            description_digest=digest_of(world.description.model_copy(update={"name": "mixed"}).text()),
        )  # fmt: skip
        stub = party_pb2_grpc.PartyStub
        with pytest.raises(DittoError, match="activation of"):
            world.call("coordinator", PARTIES[party], lambda c: stub(c).ActivateModel(ask, timeout=120))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(activate, (0, 1)))
    with pytest.raises(UnknownModel), world.client("mallory") as client:
        client.infer("mixed", lambda program: {}, 1, SEQ)
    with world.client("mallory") as client:
        client.remove_model("mixed")


def test_a_failed_upload_uses_its_identifier_up(world: World) -> None:
    share_id = secrets.token_hex(16)
    cut = {name: tensor for name, tensor in list(world.weights.items())}
    text = world.description.model_copy(update={"name": "cut"}).text()
    header = party_pb2.ModelHeader(model="cut", share_id=share_id, description=text)
    stub = party_pb2_grpc.PartyStub
    with pytest.raises(DittoError, match="is missing"):
        parts = [party_pb2.PutModelRequest(header=header)]
        world.call("alice", "party1", lambda c: stub(c).PutModel(iter(parts), timeout=10))
    with pytest.raises(ReuseError):
        world.put("alice", 1, "cut", share_id, cut)
    assert share_id not in world.sharings(1)
    world.put("bob", 1, "cut", secrets.token_hex(16), cut)  # the name was left free
    remove = party_pb2.RemoveModelRequest(model="cut")
    assert world.call("bob", "party1", lambda c: stub(c).RemoveModel(remove)).removed == 1


def test_the_dealer_binds_masks_to_one_pair_of_shares(world: World) -> None:
    share_id = secrets.token_hex(16)
    with pytest.raises(BadShare, match="no digest"):
        world.seed("party0", share_id, "")
    seeds = [world.seed(role, share_id, digit * 64) for role, digit in (("party0", "a"), ("party1", "b"))]
    assert seeds[0] != seeds[1]
    world.bound[share_id] = seeds
    check_bound(world, share_id)


def check_bound(world: World, share_id: str) -> None:
    """An activation can be repeated, for the same shares only."""
    again = [world.seed(role, share_id, digit * 64) for role, digit in (("party0", "a"), ("party1", "b"))]
    assert again == world.bound[share_id]
    for role, digit in (("party0", "b"), ("party1", "c")):
        with pytest.raises(ReuseError, match=f"another share of {role}"):
            world.seed(role, share_id, digit * 64)


def test_an_activation_sends_the_share_s_digest(world: World) -> None:
    """The dealer has one from each party for alice's model: another share cannot be masked in its place."""
    share_id = world.model().share_id
    for role in PARTIES:
        with pytest.raises(ReuseError, match=f"another share of {role}"):
            world.seed(role, share_id, "0" * 64)


def test_the_dealer_forgets_on_both_parties_word(world: World) -> None:
    current = world.model().share_id
    path = world.cluster.root / "data" / "dealer" / "models" / f"{current}.json"
    stub = dealer_pb2_grpc.DealerStub
    request = dealer_pb2.ForgetModelRequest(share_id=current)
    with pytest.raises(DittoError, match="may not call ForgetModel"):
        world.call("alice", "dealer", lambda c: stub(c).ForgetModel(request, timeout=10))
    for _ in range(2):  # twice by one party is still one word
        world.call("party0", "dealer", lambda c: stub(c).ForgetModel(request, timeout=10))
    assert path.exists()
    world.infer("alice")
    world.call("party1", "dealer", lambda c: stub(c).ForgetModel(request, timeout=10))
    assert not path.exists()
    with pytest.raises(UnknownModel):
        world.infer("alice")
    with world.client("alice") as client:
        client.share_model(world.description, world.weights)
    world.infer("alice")


def test_what_the_dealer_missed_it_is_told_later(world: World) -> None:
    old = world.model().share_id
    path = world.cluster.root / "data" / "dealer" / "models" / f"{old}.json"
    dealer = next(process for process in world.cluster.status() if process.role == "dealer")
    assert dealer.pid is not None and path.exists()
    process = psutil.Process(dealer.pid)
    process.kill()
    process.wait(10)
    for role in PARTIES:
        remove = party_pb2.RemoveModelRequest(model="m")
        world.call("alice", role, lambda c, ask=remove: party_pb2_grpc.PartyStub(c).RemoveModel(ask, timeout=30))
    assert path.exists()
    world.cluster.up()
    with world.client("alice") as client:
        client.share_model(world.description, world.weights)
    assert not path.exists()


# Models ------------------------------------------------------------------------------------------


def test_a_name_belongs_to_its_owner(world: World) -> None:
    """At each party by itself, and at the coordinator."""
    check_owner(world)
    with pytest.raises(NotAllowed), world.client("mallory") as client:
        client.share_model(world.description, world.weights)
    world.infer("alice")


def check_owner(world: World) -> None:
    share_id = world.model().share_id
    party, control = party_pb2_grpc.PartyStub, control_pb2_grpc.CoordinatorStub
    assert world.sharings(0)[share_id] == world.sharings(1)[share_id] == world.model().owner == "client/alice"
    for index, role in enumerate(PARTIES):
        with pytest.raises(NotAllowed, match="belongs to client/alice, not to client/mallory"):
            world.put("mallory", index, "m", secrets.token_hex(16), world.weights)
        for request in (
            party_pb2.RemoveModelRequest(model="m"),
            party_pb2.RemoveModelRequest(model="m", only=share_id),
        ):
            with pytest.raises(NotAllowed):
                world.call("mallory", role, lambda c, ask=request: party(c).RemoveModel(ask, timeout=10))
        with pytest.raises(ClusterError, match="does not serve"):
            keep = party_pb2.RemoveModelRequest(model="m", keep=share_id)
            world.call("mallory", role, lambda c, ask=keep: party(c).RemoveModel(ask, timeout=10))
        grant = party_pb2.GrantModelRequest(model="m", to="mallory")
        with pytest.raises(NotAllowed):
            world.call("mallory", role, lambda c, ask=grant: party(c).GrantModel(ask, timeout=10))
    with pytest.raises(NotAllowed):
        ask = control_pb2.UnregisterModelRequest(model="m")
        world.call("mallory", "coordinator", lambda c, ask=ask: control(c).UnregisterModel(ask, timeout=10))
    with pytest.raises(NotAllowed):
        world.register("mallory", "m", share_id)


def test_a_sharing_is_activated_for_its_owner(world: World) -> None:
    """Another client's sharing under a name of one's own would be a model that its owner did not publish."""
    share_id = secrets.token_hex(16)
    for party in (0, 1):
        world.put("alice", party, "draft", share_id, world.weights)
    with pytest.raises(NotAllowed):
        world.register("mallory", "draft", share_id)
    with pytest.raises(NotAllowed):
        world.register("mallory", "stolen", share_id)
    world.register("alice", "draft", share_id)
    with world.client("alice") as client:
        client.remove_model("draft")
        assert [model.name for model in client.list_models()] == ["m"]
        with pytest.raises(UnknownModel):
            client.remove_model("draft")


def test_a_removed_name_is_free(world: World) -> None:
    other = world.description.model_copy(update={"name": "brief"})
    with world.client("alice") as alice, world.client("bob") as bob:
        alice.share_model(other, world.weights)
        with pytest.raises(NotAllowed):
            bob.remove_model("brief")
        alice.remove_model("brief")
        bob.share_model(other, world.weights)
        assert {model.name: model.owner for model in bob.list_models()} == {"brief": "client/bob"}
        assert [model.name for model in alice.list_models()] == ["m"], "what is not theirs is not shown"
        bob.remove_model("brief")
    assert len(world.sharings(0)) == len(world.sharings(1)) == 1


def test_who_may_ask(world: World) -> None:
    """The owner and whom it grants, the next sharing of the name as well."""
    with pytest.raises(NotAllowed, match="not granted it to client/bob"):
        world.infer("bob")
    with world.client("alice") as client:
        client.grant_model("m", "bob")
        with pytest.raises(UnknownModel):
            client.grant_model("absent", "bob")
    assert world.infer("bob")["owner"] == "client/alice"
    heard: list[tuple[int, int]] = []  # of bytes on their way
    with world.client("alice") as client:
        client.share_model(world.description, world.weights, sent=lambda *done: heard.append(done))
    of = sum(wire.nbytes for wire in weights_of(world.description.text()).values())
    assert heard == sorted(heard) and heard[-1] == (of, of) and len(heard) > 1
    world.infer("bob")
    with pytest.raises(NotAllowed):
        world.infer("mallory")
    with world.client("bob") as client, pytest.raises(NotAllowed):
        client.grant_model("m", "mallory")
    with world.client("alice") as client:
        client.grant_model("m", "bob", revoke=True)
    with pytest.raises(NotAllowed):
        world.infer("bob")


def test_a_list_has_what_is_ones_own_or_granted(world: World) -> None:
    """A page at a time, at the coordinator and at the parties; nobody else's names, owners or descriptions."""
    names = [f"list-{i}" for i in range(5)]
    with world.client("alice") as alice, world.client("bob") as bob, world.client("mallory") as mallory:
        for name in names:
            alice.share_model(world.description.model_copy(update={"name": name}), world.weights)
        alice.grant_model("list-3", "bob")
        assert [model.name for model in alice.list_models()] == [*names, "m"]
        assert [model.model for model in alice._listed(page_size=2)] == [*names, "m"]
        assert {model.name: model.owner for model in bob.list_models()} == {"list-3": "client/alice"}
        assert mallory.list_models() == []
        assert alice.status()["dealer"]["models"] == [*names, "m"] and not bob.status()["dealer"]["models"]
        with pytest.raises(UnknownModel, match="yours: none"):
            mallory.get_model("absent")

        stub = party_pb2_grpc.PartyStub
        for who, expected in (("alice", 6), ("bob", 1), ("mallory", 0), ("coordinator", 6)):
            seen, pages, token = list[str](), 0, ""
            while not pages or token:
                ask = party_pb2.PartyModelsRequest(page_token=token, page_size=2)
                reply = world.call(who, "party1", lambda c, ask=ask: stub(c).ListModels(ask, timeout=10))
                seen += [model.model for model in reply.models]
                pages, token = pages + 1, reply.next_page_token
                assert len(reply.models) <= 2
            assert len(seen) == len({*seen}) == expected and pages == max(1, -(-expected // 2)), who
        for name in names:
            alice.remove_model(name)


def test_a_description_that_is_not_the_parties(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator's file was exchanged for another's, well-formed and under its key: nobody is handed it, no job
    runs on it, the status names it; sharing again heals it."""
    path = world.cluster.root / "data" / "coordinator" / "models" / "m.json"
    config = load_config(world.cluster.config_path("coordinator"), CoordinatorConfig)
    sizes = world.description.dimensions.model_copy(update={"labels": ("no", "yes")})
    text = world.description.model_copy(update={"dimensions": sizes}).text()
    process = psutil.Process(next(p.pid for p in world.cluster.status() if p.role == "coordinator") or 0)
    process.terminate()
    process.wait(10)
    with monkeypatch.context() as patch:
        patch.setattr(stored, "_storage", storage_of(config))
        entry = load_entry(path, Registered, Owner("coordinator", "m"))
        exchanged = entry.model_copy(update={"description": text})
        save_entry(path, exchanged, Owner("coordinator", "m"))
    world.cluster.up()
    says = "the coordinator's description of m is not the one that party0 has with its share"
    with world.client("alice") as client:
        with pytest.raises(DamagedFile, match=says):
            client.get_model("m")
        model = control_pb2.Model(**exchanged.model_dump(exclude={"public"}))
        ask = ask_of(terms_of(model, Plan(1, SEQ), program_for(text, Plan(1, SEQ))))
        with pytest.raises(DamagedFile, match=says):
            world.call("alice", "coordinator", lambda c: list(control_pb2_grpc.CoordinatorStub(c).RunJob(ask)))
        faults = [{"model": "m", "role": role, "what": "has another description"} for role in PARTIES]
        assert client.status()["faults"] == faults
        client.share_model(world.description, world.weights)
        assert client.status()["faults"] == []
    world.infer("alice")


def test_parties_check_the_description_of_a_job_themselves(world: World) -> None:
    model = world.model()
    request = party_pb2.OpenJobRequest(
        job=secrets.token_hex(16), model="m", share_id=model.share_id, plan=to_message(Plan(1, SEQ)),
        fingerprint=program_for(model.description, Plan(1, SEQ)).fingerprint, client="client/alice",
        description_digest=bytes(16),
    )  # fmt: skip
    check = party_pb2.CheckModelRequest(model="m", share_id=model.share_id, client="client/alice")
    for role in PARTIES:
        with pytest.raises(DamagedFile, match=role):
            world.call("coordinator", role, lambda c: party_pb2_grpc.PartyStub(c).OpenJob(request, timeout=10))
        with pytest.raises(DamagedFile, match=role):
            world.call("coordinator", role, lambda c: party_pb2_grpc.PartyStub(c).CheckModel(check, timeout=10))


# Jobs --------------------------------------------------------------------------------------------


def test_a_job_id_opens_nothing(world: World) -> None:
    """Every server knows the job's name. Its operator, as another client, gets no answer, brings no inputs and starts
    nothing."""
    seen: list[str] = []
    refused: list[type[DittoError]] = []
    party, control = party_pb2_grpc.PartyStub, control_pb2_grpc.CoordinatorStub
    model = world.model()
    program = program_for(model.description, Plan(1, SEQ))
    terms = terms_of(model, Plan(1, SEQ), program)

    def attempt(peer: str, method: Callable[[grpc.Channel], Any]) -> None:
        with pytest.raises(NotAllowed, match="belongs to") as caught:
            world.call("mallory", peer, method)
        refused.append(caught.type)

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "accepted":
            seen.append(event["job"])
            start = control_pb2.StartJobRequest(job=seen[0])
            attempt("coordinator", lambda c: control(c).StartJob(start, timeout=10))
        elif event["event"] == "layer" and event["phase"] == "online":  # after the last one, the answer is there
            name, wire = next(iter(program.inputs.items()))
            header = party_pb2.InputHeader(
                job=seen[0], name=name, ring=wire.ring, shape=list(wire.shape), seed=new_seed(), terms=terms
            )
            put = party_pb2.PutInputRequest(header=header)
            fetch = [party_pb2.FetchOutputRequest(job=seen[0], name=name) for name in program.outputs]
            for role in PARTIES:
                attempt(role, lambda c: party(c).PutInput(iter([put]), timeout=10))
                for ask in fetch:
                    attempt(role, lambda c, ask=ask: list(party(c).FetchOutput(ask, timeout=10)))

    assert world.infer("alice", on_event)["owner"] == "client/alice"
    assert len(refused) == 1 + 4 * len(program.layers)


def opened(world: World, plan: Plan, client: str) -> str:
    """A job that the coordinator opens at both parties on its own, for a client that did not ask for it."""
    model, name = world.model(), secrets.token_hex(16)
    fingerprint = program_for(model.description, plan).fingerprint
    request = party_pb2.OpenJobRequest(
        job=name, model="m", share_id=model.share_id, plan=to_message(plan), fingerprint=fingerprint, client=client,
        description_digest=digest_of(model.description),
    )  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(
                world.call, "coordinator", role, lambda c: party_pb2_grpc.PartyStub(c).OpenJob(request, timeout=30)
            )
            for role in PARTIES
        ]
        for call in calls:
            call.result()
    return name


def closed(world: World, job: str) -> None:
    for role in PARTIES:
        ask = party_pb2.CloseJobRequest(job=job, reason="test")
        world.call("coordinator", role, lambda c, ask=ask: party_pb2_grpc.PartyStub(c).CloseJob(ask, timeout=10))


def test_the_coordinator_opens_no_job_for_a_stranger(world: World) -> None:
    for stranger in ("", "client", "client/mallory"):
        with pytest.raises(NotAllowed, match="belongs to client/alice"):
            opened(world, Plan(1, SEQ), stranger)


def test_parties_and_client_mean_the_same_job(world: World) -> None:
    """The coordinator opens one job and tells the client of another: each party names what differs, at the header."""
    plan = Plan(1, SEQ)
    job = opened(world, plan, "client/alice")
    model = world.model()
    program = program_for(model.description, plan)
    good = terms_of(model, plan, program)
    name, wire = next(iter(program.inputs.items()))
    changes: dict[str, Any] = {
        "model": "other", "owner": "client/bob", "share_id": "0" * 32, "plan": to_message(Plan(2, SEQ)),
        "fingerprint": "0" * 32, "description_digest": bytes(16),
    }  # fmt: skip

    def bring(role: str, terms: party_pb2.JobTerms) -> None:
        header = party_pb2.InputHeader(
            job=job, name=name, ring=wire.ring, shape=list(wire.shape), seed=new_seed(), terms=terms
        )
        parts = iter([party_pb2.PutInputRequest(header=header)])
        world.call("alice", role, lambda c: party_pb2_grpc.PartyStub(c).PutInput(parts, timeout=10))

    for role in PARTIES:
        for changed, value in changes.items():
            fields = {key: getattr(good, key) for key in changes} | {changed: value}
            error = VersionMismatch if changed == "fingerprint" else JobMismatch
            word = {"share_id": "sharing", "description_digest": "description"}.get(changed, changed)
            with pytest.raises(error, match=word) as caught:
                bring(role, party_pb2.JobTerms(**fields))
            assert caught.value.peer == role
        with pytest.raises(DittoError):
            bring(role, party_pb2.JobTerms())
        bring(role, good)
    closed(world, job)
    world.infer("alice")


# Stock -------------------------------------------------------------------------------------------


def in_stock(world: World) -> dict[str, int]:
    """Jobs by party, as the owner's status says."""
    with world.client("alice") as client:
        return {row["role"]: row["jobs"] for row in client.status()["stock"] if row["model"] == "m"}


def stocked_files(world: World, role: str) -> list[Path]:
    home = world.cluster.root / "data" / role / "stock"
    return sorted(path for path in home.glob("*/*") if len(path.name) == 32)


def test_who_may_lay_down_stock(world: World) -> None:
    """Who may ask. What is laid down is for all of them; what one party lost costs one job its stock."""
    plan = Plan(1, SEQ)
    with world.client("mallory") as client, pytest.raises(NotAllowed):
        client.deal("m", plan, 1)
    with world.client("alice") as client:
        client.grant_model("m", "bob")
    for name in ("alice", "bob"):
        with world.client(name) as client:
            laid = client.deal("m", plan, 2)
        assert laid["done"] == 2 and min(laid["bytes"]) > 1000
    assert in_stock(world) == {"party0": 4, "party1": 4}
    before = [
        sum(report["traffic"][role]["from_dealer"]["payload"] for role in PARTIES)
        for report in (world.infer("bob"), world.infer("alice"))
    ]
    assert before[0] == before[1] > 0 and in_stock(world) == {"party0": 2, "party1": 2}
    for path in stocked_files(world, "party1"):
        path.unlink()
    report = world.infer("bob")
    assert not report["stock"] and report["stocked_jobs"] == 0
    assert len(stocked_files(world, "party0")) == 1  # the other half is used up, too
    assert not world.infer("bob")["stock"] and not in_stock(world)
    assert not stocked_files(world, "party0")
    with world.client("alice") as client:
        client.grant_model("m", "bob", revoke=True)
        client.deal("m", plan, 1)
        assert client.infer(
            "m", lambda p: encode_inputs(world.description, p, random_batch(1, SEQ)), 1, SEQ, guard=True
        )
        assert in_stock(world) == {"party0": 1, "party1": 1}  # it asked for another kind of job
        client.share_model(world.description, world.weights)
    assert not in_stock(world) and not stocked_files(world, "party0") + stocked_files(world, "party1")


def test_a_coordinator_makes_no_two_jobs_of_one_name(world: World) -> None:
    """It has a job laid down at one party alone. Opened as a stocked job there and as a fresh one here, the parties
    find out with their first message."""
    model, job, plan = world.model(), secrets.token_hex(16), Plan(1, SEQ)
    common = {
        "job": job, "model": "m", "share_id": model.share_id, "plan": to_message(plan), "client": "client/alice",
        "fingerprint": program_for(model.description, plan).fingerprint,
        "description_digest": digest_of(model.description),
    }  # fmt: skip

    def at(party: int, call: Callable[[Any], Any]) -> Any:
        return world.call("coordinator", PARTIES[party], lambda c: call(party_pb2_grpc.PartyStub(c)))

    fresh, stocked = party_pb2.OpenJobRequest(**common), party_pb2.OpenJobRequest(**common, stocked=True)
    at(0, lambda s: s.Stock(party_pb2.StockRequest(**common), timeout=30))
    with pytest.raises(ReplayedJob):  # not once more, nor as another job
        at(0, lambda s: s.Stock(party_pb2.StockRequest(**common), timeout=30))
    with pytest.raises(ReplayedJob):
        at(0, lambda s: s.OpenJob(fresh, timeout=30))
    at(0, lambda s: s.OpenJob(stocked, timeout=30))
    assert not stocked_files(world, "party0")
    at(1, lambda s: s.OpenJob(fresh, timeout=30))
    step = party_pb2.StepRequest(job=job)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(at, party, lambda s: s.Prepare(step, timeout=30)) for party in (0, 1)]
        errors = [str(call.exception()) for call in calls]
    assert any("this party opens 'common key" in text for text in errors) and "None" not in errors
    with pytest.raises(NoStock):
        other = party_pb2.OpenJobRequest(**common | {"job": secrets.token_hex(16)}, stocked=True)
        at(1, lambda s: s.OpenJob(other, timeout=30))


# Restart -----------------------------------------------------------------------------------------


def test_a_restart_forgets_nothing(world: World) -> None:
    """Burnt identifiers, bound digests, owners and grants; a sharing that was put and not activated is dropped."""
    serving, draft = world.model().share_id, secrets.token_hex(16)
    for party in (0, 1):
        world.put("bob", party, "draft", draft, world.weights)
    with world.client("alice") as client:
        client.grant_model("m", "bob")
    world.restart()
    assert world.model().share_id == serving and {*world.sharings(0)} == {*world.sharings(1)} == {serving}
    check_owner(world)
    check_burnt(world, world.burnt[0], serving)
    for share_id in world.bound:
        check_bound(world, share_id)
    for name in ("alice", "bob"):
        assert world.infer(name)["owner"] == "client/alice"
    with pytest.raises(NotAllowed):
        world.infer("mallory")
    with world.client("alice") as client:
        client.share_model(world.description, world.weights)
    check_burnt(world, draft, world.model().share_id)  # the dealer heard of it with the next activation
