"""A model that is shared again while others ask it: which sharing answers, and that every answer is one of a model that
served meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import torch
from world import SEQ, Weights, World, world_of_clients

from ditto.client.client import Client
from ditto.client.messages import ask_of, terms_of
from ditto.engine.plain import run_plain
from ditto.errors import ClusterError, JobMismatch, NotAllowed, UnknownModel
from ditto.models import Description, Plan, encode_inputs, random_batch
from ditto.models.compiled import program_for
from ditto.net.transport import open_channel
from ditto.wire import control_pb2, control_pb2_grpc

CLIENTS, QUESTIONS = 4, 6
PLAN = Plan(1, SEQ)
NEAR = 0.05  # as in tests/test_bert.py; the answers of the two models are 2 apart and more


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with world_of_clients() as found:
        with found.client("alice") as client:
            client.grant_model("m", "bob")
        yield found


@pytest.fixture(scope="module")
def models(world: World) -> list[Weights]:
    """Two models of one description: the second one's answers are the first one's with the other sign."""
    last = [name for name in world.weights if name.endswith(("norm2.gamma", "norm2.beta"))]
    assert len(last) == 2
    return [world.weights, world.weights | {name: -world.weights[name] for name in last}]


def inputs(world: World) -> Callable[[Any], dict[str, torch.Tensor]]:
    return lambda program: encode_inputs(world.description, program, random_batch(1, SEQ))


def nearest(world: World, outputs: dict[str, torch.Tensor]) -> int:
    """Which of the two models answered: by the plaintext computation of the first."""
    program = program_for(world.description.text(), PLAN)
    scale = 2.0 ** -program.outputs["hidden"].frac
    want = run_plain(program, inputs(world)(program), world.weights)["hidden"] * scale
    got = outputs["hidden"] * scale
    apart = [float((got - sign * want).abs().max()) for sign in (1, -1)]
    assert min(apart) < NEAR and max(apart) > 2, apart
    return apart.index(min(apart))


def settle(world: World, weights: Weights, description: Description | None = None) -> None:
    with world.client("alice") as client:
        client.share_model(description or world.description, weights)


def test_every_question_is_answered_while_the_model_is_shared_again(world: World, models: list[Weights]) -> None:
    """Every answer is right for a model that served between the question and the answer."""
    settle(world, models[0])
    shared: list[tuple[int, float, float]] = [(0, 0.0, time.monotonic())]  # which, from its start to its end
    done = threading.Event()

    def share_again() -> None:
        with world.client("alice") as client:
            for which in (0, 1, 1, 0) * 25:
                if done.is_set():
                    return
                began = time.monotonic()
                client.share_model(world.description, models[which])
                shared.append((which, began, time.monotonic()))

    def ask(name: str) -> list[tuple[int, float, float]]:
        found = []
        with world.client(name) as client:
            for _ in range(QUESTIONS):
                began = time.monotonic()
                outputs = client.infer("m", inputs(world), 1, SEQ).outputs
                found.append((nearest(world, outputs), began, time.monotonic()))
        return found

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        sharing = pool.submit(share_again)
        try:
            asked = [pool.submit(ask, ("alice", "bob")[i % 2]) for i in range(CLIENTS)]
            answers = [answer for future in asked for answer in future.result(240)]
        finally:
            done.set()
        sharing.result(60)
    assert len(answers) == CLIENTS * QUESTIONS and len(shared) > 4 and {which for which, _, _ in answers} == {0, 1}
    ends = [end for _, _, end in shared[1:]] + [time.monotonic()]  # of the sharing that took each one's place
    for answered, began, ended in answers:
        served = [which for (which, start, _), end in zip(shared, ends, strict=True) if start <= ended and began <= end]
        assert answered in served
    assert len(world.sharings(0)) == len(world.sharings(1)) == 1


def held(client: Client, first: Callable[[], None]) -> Client:
    """Does something else between the moment when its job is open at both parties and its inputs."""
    start = client._start

    def later(*args: Any) -> None:
        client._start = start  # type: ignore[method-assign]
        first()
        start(*args)

    client._start = later  # type: ignore[method-assign]
    return client


def test_a_running_job_keeps_its_sharing(world: World, models: list[Weights]) -> None:
    """Removed under it: the parties and the dealer forget it when the job has ended. Shared again: the next sharing is
    activated beside it, and the one that it runs on removed."""
    settle(world, models[0])
    with world.client("alice") as owner:
        with held(world.client("bob"), lambda: owner.remove_model("m")) as bob:
            assert nearest(world, bob.infer("m", inputs(world), 1, SEQ).outputs) == 0
        assert not world.sharings(0) and not world.sharings(1)
        with pytest.raises(UnknownModel):
            world.infer("alice")
        settle(world, models[0])
        owner.grant_model("m", "bob")

    with held(world.client("bob"), lambda: settle(world, models[1])) as bob:
        assert nearest(world, bob.infer("m", inputs(world), 1, SEQ).outputs) == 0
        assert len(world.sharings(0)) == len(world.sharings(1)) == 1
        assert nearest(world, bob.infer("m", inputs(world), 1, SEQ).outputs) == 1


def other(world: World) -> Description:
    """The same program under another description."""
    sizes = world.description.dimensions
    return world.description.model_copy(update={"dimensions": sizes.model_copy(update={"labels": ("a", "b")})})


def test_a_job_whose_description_changed_says_so(world: World, models: list[Weights]) -> None:
    """The client then encodes its question for the new description, and asks again. What changes while a job waits for
    its turn is in test_job_run.py."""
    settle(world, models[0])
    with world.client("bob") as bob:
        before = bob._model("m")
        ask = ask_of(terms_of(before, PLAN, program_for(before.description, PLAN)))
        ask.owner = "client/mallory"
        with pytest.raises(JobMismatch, match="belongs to client/alice"):
            run_raw(world, "bob", ask)
        settle(world, models[1], other(world))
        now, found, texts = bob._model, [before], list[str]()
        bob._model = lambda name: before  # type: ignore[method-assign]
        with pytest.raises(JobMismatch, match="another description; ask again"):
            bob.infer("m", inputs(world), 1, SEQ)

        def question(program: Any) -> dict[str, torch.Tensor]:
            texts.append(program.fingerprint)
            return inputs(world)(program)

        bob._model = lambda name: found.pop() if found else now(name)  # type: ignore[method-assign]
        assert nearest(world, bob.infer("m", question, 1, SEQ).outputs) == 1
    assert len(texts) == 2, "encoded for the description that it had, and for the one that answered"
    settle(world, models[0])


def test_two_sharings_at_once_leave_one_that_serves(world: World, models: list[Weights]) -> None:
    """The one that was put later wins, whichever is activated first; the other says so or served before it."""
    with ThreadPoolExecutor(3) as pool:
        ended = [pool.submit(settle, world, models[i % 2]) for i in range(3)]
        errors = [future.exception(60) for future in ended]
    assert errors.count(None) >= 1 and all(isinstance(e, ClusterError | UnknownModel) for e in errors if e)
    assert world.infer("alice")
    settle(world, models[0])
    assert len(world.sharings(0)) == len(world.sharings(1)) == 1


def run_raw(world: World, name: str, ask: control_pb2.RunJobRequest) -> list[str]:
    def run(channel: grpc.Channel) -> list[str]:
        return [str(e.WhichOneof("event")) for e in control_pb2_grpc.CoordinatorStub(channel).RunJob(ask, timeout=30)]

    return list(world.call(name, "coordinator", run))


def test_who_may_not_ask_hears_it_at_once(world: World) -> None:
    """While another's job runs: not after waiting for it. As PERMISSION_DENIED."""
    config = world.configs["mallory"]
    refused: list[grpc.RpcError] = []

    def others() -> None:
        model = world.model()
        ask = ask_of(terms_of(model, PLAN, program_for(model.description, PLAN)))
        with open_channel(config.peers.coordinator, "coordinator", config.tls, "client") as channel:
            stub = control_pb2_grpc.CoordinatorStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                for event in stub.RunJob(ask, timeout=30):
                    raise AssertionError(event)
            refused.append(caught.value)

    with held(world.client("alice"), others) as alice:
        alice.infer("m", inputs(world), 1, SEQ)
    assert refused[0].code() is grpc.StatusCode.PERMISSION_DENIED
    with world.client("mallory") as client, pytest.raises(NotAllowed, match="not granted it to client/mallory"):
        client.get_model("m")
