"""The Python API on the cluster of `place`. About 10 s of CPU here, and 10 s of the four servers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typed_api
from place import CLOSE, CLOSE_VECTORS, KINDS, PAIRS, PROMPT, TEXTS, Place

import ditto
from ditto.api import cluster as clusters


def test_classify(place: Place) -> None:
    answers = typed_api.classify(place.cluster, "labels", TEXTS)
    assert [answer.text for answer in answers] == TEXTS
    want, cli = place.reference("labels", TEXTS), place.cli("infer", "--model", "labels", *_texts(TEXTS))
    assert np.abs(want - want.mean(0)).max() > 4 * CLOSE, "any text's answer would do"
    for answer, floats, other in zip(answers, want, cli["output"], strict=True):
        assert answer.logits == pytest.approx(floats, abs=CLOSE) and answer.logits == pytest.approx(other, abs=CLOSE)
        assert answer.label == ("low", "middle", "high")[answer.index] and answer.in_range is True
        assert answer.logits[answer.index] == max(answer.logits) and answer.labels == (answer.label,)
        assert list(answer.probabilities) == ["low", "middle", "high"]
        powers = [math.exp(logit) for logit in answer.logits]
        assert list(answer.probabilities.values()) == pytest.approx([power / sum(powers) for power in powers])
    costs = [answer.cost for answer in answers]
    assert costs[0] is costs[1] and [cost.texts for cost in costs] == [2, 2, 2, 2, 1]
    assert len({cost.job for cost in costs}) == 3
    assert costs[0].online.rounds == cli["online"]["rounds"] and costs[0].offline.rounds == 0
    assert min(*costs[0].online.bytes_sent, *costs[0].offline.bytes_sent) > 0
    assert costs[0].seconds > costs[0].online.seconds > 0
    with pytest.raises(FrozenInstanceError):
        answers[0].label = "other"  # type: ignore[misc]


def test_several_labels_at_once(place: Place) -> None:
    """Each label by itself, as a sigmoid says; the command line says the same."""
    answers = list(place.cluster.model("tags").classify(TEXTS))
    cli = place.cli("infer", "--model", "tags", *_texts(TEXTS))["answers"]
    for answer, floats, other in zip(answers, place.reference("tags", TEXTS), cli, strict=True):
        assert answer.logits == pytest.approx(floats, abs=CLOSE)
        each = {name: 1 / (1 + math.exp(-x)) for name, x in zip(("low", "middle", "high"), answer.logits, strict=True)}
        assert answer.probabilities == pytest.approx(each) and answer.probabilities == pytest.approx(
            other["probabilities"], abs=CLOSE
        )
        assert answer.labels == tuple(name for name, p in each.items() if p >= 0.5)
        assert other["labels"] == [name for name, p in other["probabilities"].items() if p >= 0.5]


def test_answers_come_job_by_job(place: Place) -> None:
    """Nothing is asked for that nobody takes."""
    model, asked = place.cluster.model("labels"), []
    with pytest.MonkeyPatch.context() as patch:
        ask = model._client.infer
        patch.setattr(model._client, "infer", lambda *args: asked.append(args) or ask(*args))  # type: ignore[func-returns-value]
        answers = model.classify(TEXTS, batch=3, in_flight=1)
        assert not asked
        assert next(answers).text == TEXTS[0] and next(answers).text == TEXTS[1] and len(asked) == 1
    assert list(model.classify([])) == []


def test_pairs(place: Place) -> None:
    firsts, seconds = zip(*PAIRS, strict=True)
    model = place.cluster.model("labels")
    together = list(model.classify(firsts, pairs=seconds, range_check=False))
    apart = list(model.classify(PAIRS, range_check=False))
    want = place.reference("labels", PAIRS)
    for a, b, floats in zip(together, apart, want, strict=True):
        assert a.text == b.text and a.logits == pytest.approx(floats, abs=CLOSE)
        assert b.logits == pytest.approx(floats, abs=CLOSE)
        assert a.in_range is None
    scores = typed_api.scores(place.cluster, "score", PAIRS)
    assert scores.shape == (2,) and scores.dtype == np.float32
    assert scores == pytest.approx(place.reference("score", PAIRS)[:, 0], abs=CLOSE)
    assert place.cluster.model("score").score("the cat", "a dog").shape == (1,)


def test_encode(place: Place) -> None:
    """First tokens, of length 1, as the checkpoint's modules.json has it; the command line's, too."""
    model = place.cluster.model("vectors")
    found = model.encode(TEXTS)
    assert found.shape == (5, 16) and found.dtype == np.float32
    want, cli = place.reference("vectors", TEXTS), place.cli("infer", "--model", "vectors", *_texts(TEXTS), "--check")
    assert np.abs(want - want.mean(0)).max() > 4 * CLOSE_VECTORS, "any text's answer would do"
    assert np.abs(found - want).max() < CLOSE_VECTORS and np.abs(found - cli["output"]).max() < CLOSE_VECTORS
    assert np.array(cli["plaintext_output"]) == pytest.approx(want) and cli["max_abs_error"] < CLOSE_VECTORS
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)
    assert model.encode(TEXTS[0]).shape == (16,) and model.encode([]).shape == (0, 16)
    assert np.linalg.norm(typed_api.vectors(place.cluster, "vectors", TEXTS[:1]), axis=1) == pytest.approx(1)


def test_generate(place: Place, writer: str) -> None:
    """Greedy: the tokens of the command line."""
    cli = place.cli("generate", "--model", writer, "--prompt", PROMPT, "--max-new-tokens", "4")
    going, tokens = typed_api.text(place.cluster, writer, PROMPT)
    assert [token.id for token in tokens] == cli["output_tokens"][0]
    assert going.text == "".join(map(str, tokens)) == cli["output"][0]
    assert going.in_range is True and going.cost.online.rounds == cli["online"]["rounds"] and going.prompt == PROMPT
    assert [token.seconds for token in tokens] == sorted(token.seconds for token in tokens)
    assert going.tokens_per_second > 0


def test_a_text_that_nobody_wants_any_more(place: Place, writer: str) -> None:
    going = place.cluster.model(writer).generate(PROMPT, max_new_tokens=30)
    with pytest.raises(ditto.errors.UsageError, match="not complete"):
        _ = going.cost
    next(going)
    going.close()
    assert going.cost.online.rounds > 0 and list(going) == []
    assert len(going._finished().tokens[0]) < 30, "the job ended early"
    dropped = place.cluster.model(writer).generate(PROMPT, max_new_tokens=30)
    job, first = dropped._job, next(dropped)
    del dropped
    assert job.result is not None and 1 <= len(job.result.tokens[0]) < 30 and first.text


def test_asyncio(place: Place, writer: str) -> None:
    async def asked() -> None:
        async with ditto.aio.connect(place.root / "configs" / "client.yaml") as cluster:
            # the directory of imported models is that of this user's home, as with `connect`
            answers, vectors = await asyncio.gather(
                typed_api.asynchronously(cluster, "labels", TEXTS[:2]),
                (await cluster.model("vectors")).encode(TEXTS[:2]),
            )
            assert [answer.text for answer in answers] == TEXTS[:2]
            assert np.abs(vectors - place.reference("vectors", TEXTS[:2])).max() < CLOSE_VECTORS
            assert (await (await cluster.model("score")).score(PAIRS)).shape == (2,)
            going = (await cluster.model(writer)).generate(PROMPT, max_new_tokens=2)
            assert [token.text async for token in going] and going.cost.texts == 1
            assert {info.name for info in await cluster.models()} >= set(KINDS)
            with pytest.raises(ditto.errors.UnknownModel):
                await cluster.model("other")
            await cancelled((await cluster.model(writer)).generate(PROMPT, max_new_tokens=30))

    async def cancelled(going: ditto.aio.Generation) -> None:
        async def take() -> None:
            async for _ in going:
                began.set()

        began = asyncio.Event()
        task = asyncio.create_task(take())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await going.aclose()
        assert going._generation._job._thread is not None and not going._generation._job._thread.is_alive()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DITTO_HOME", str(place.root))
        asyncio.run(asked())


def test_the_owner(place: Place) -> None:
    found = typed_api.owner(place.cluster, place.checkpoints["labels"], TEXTS)
    mine = next(info for info in found if info.name == "mine")
    assert (mine.kind, mine.labels, mine.max_length) == ("labels", ("low", "middle", "high"), 32)
    assert "mine" not in {info.name for info in place.cluster.models()}


def test_imported_models_are_brought_to_a_cluster_of_ones_own(place: Place) -> None:
    place.cluster.remove("score")
    assert place.cluster.model("score").kind == "labels"


def test_a_model_that_was_imported_anew(place: Place) -> None:
    """What is asked would be encoded for another model than the one that is shared."""
    path = place.checkpoints["labels"]
    clusters.import_checkpoint(path, "score", TEXTS, None, "secret", place.root / "models")
    with pytest.raises(ditto.errors.JobMismatch, match="share it again"):
        place.cluster.model("score")
    place.cluster.share(place.checkpoints["score"], "score", calibrate=[*TEXTS, *PAIRS])


def test_questions_are_refused_before_a_job(place: Place) -> None:
    labels, vectors, score = (place.cluster.model(name) for name in ("labels", "vectors", "score"))
    usage = ditto.errors.UsageError
    with pytest.raises(ditto.errors.EmptyText):
        labels.classify(["the cat", " "])
    with pytest.raises(ditto.errors.TextTooLong):
        vectors.encode(["the cat", "the cat " * 20])
    for call in (
        lambda: labels.encode("a"), lambda: vectors.classify("a"), lambda: score.classify("a"),
        lambda: labels.score("a"), lambda: labels.generate("a"), lambda: labels.ask("a", batch=0),
        lambda: labels.ask(["a"], ["a", "b"]), lambda: labels.ask(PAIRS, ["a", "b"]),
        lambda: labels.ask([3]), lambda: labels.ask([("a", "b", "c")]),  # type: ignore[list-item]
        lambda: place.cluster.share(place.checkpoints["labels"], "new"),
        lambda: place.cluster.model("../labels"),
    ):  # fmt: skip
        with pytest.raises(usage):
            call()
    with pytest.raises(ditto.errors.UnknownModel):
        place.cluster.model("other")


def test_answers_that_may_be_wrong_come_with_a_warning(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    model = place.cluster.model("vectors")
    real = model._client.infer

    def marked(*args: Any) -> Any:
        answer = real(*args)
        answer.report["in_range"] = False
        return answer

    monkeypatch.setattr(model._client, "infer", marked)
    with pytest.warns(ditto.errors.RangeWarning, match="2 of 2 answers may be wrong"):
        model.encode(TEXTS[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert next(place.cluster.model("vectors").ask("sat")).in_range is False


def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path))
    monkeypatch.delenv("DITTO_CONFIG", raising=False)
    for named in (None, tmp_path / "client.yaml"):
        with pytest.raises(ditto.errors.ConfigError):
            ditto.connect(named)


def test_a_forgotten_cluster_is_closed(place: Place) -> None:
    """As one without `with`: its servers' end is a finalizer's, which also runs when the interpreter ends."""
    ended: list[bool] = []
    servers = contextlib.ExitStack()
    servers.callback(ended.append, True)
    config = clusters.client_config(place.root / "configs" / "client.yaml")
    cluster: ditto.Cluster | None = ditto.Cluster(config, [place.root / "models"], servers)
    assert cluster is not None and cluster._end.atexit
    model = cluster.model("labels")
    cluster = None
    gc.collect()
    assert not ended, "a model keeps its cluster"
    del model
    gc.collect()
    assert ended


def test_importing_loads_nothing_heavy() -> None:
    script = "import sys, ditto; ditto.errors.UnknownModel; dir(ditto); print(*sys.modules)"
    here = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=here)
    loaded = done.stdout.split()
    assert {name for name in loaded if name.startswith("ditto")} == {"ditto", "ditto.errors"}
    assert not {"torch", "grpc", "numpy", "pydantic", "yaml"} & set(loaded)


def test_what_ditto_shows() -> None:
    assert {getattr(ditto, name) is not None for name in ditto.__all__} == {True}
    assert set(ditto.__all__) <= set(dir(ditto)) and ditto.aio.connect is not ditto.connect
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = ditto.other


def _texts(texts: list[str]) -> list[str]:
    return [part for text in texts for part in ("--text", text)]
