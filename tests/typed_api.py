"""The Python API as its documentation uses it: checked by mypy (`make types`), and run by test_api."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import ditto

Numbers = NDArray[np.float32]


def classify(cluster: ditto.Cluster, name: str, texts: list[str]) -> list[ditto.Classification]:
    found = []
    for answer in assert_type(cluster.model(name).classify(texts, batch=2), Iterator[ditto.Classification]):
        assert_type(answer.label, str)
        assert_type(answer.probabilities, dict[str, float])
        assert_type(answer.labels, tuple[str, ...])
        assert_type(answer.in_range, bool | None)
        assert_type(answer.cost.online.seconds, float)
        assert_type(answer.cost.offline.bytes_sent, tuple[int, int])
        found.append(answer)
    return found


def vectors(cluster: ditto.Cluster, name: str, texts: list[str]) -> Numbers:
    return assert_type(cluster.model(name).encode(texts, normalize=True), Numbers)


def scores(cluster: ditto.Cluster, name: str, pairs: list[tuple[str, str]]) -> Numbers:
    return assert_type(cluster.model(name).score(pairs), Numbers)


def text(cluster: ditto.Cluster, name: str, prompt: str) -> tuple[ditto.Generation, list[ditto.Token]]:
    going = assert_type(cluster.model(name).generate(prompt, max_new_tokens=4), ditto.Generation)
    tokens = [assert_type(token, ditto.Token) for token in going]
    assert_type(going.cost, ditto.Cost)
    return going, tokens


def owner(cluster: ditto.Cluster, checkpoint: Path, texts: list[str]) -> list[ditto.ModelInfo]:
    model = assert_type(cluster.share(checkpoint, "mine", calibrate=texts, preset="ditto"), ditto.Model)
    cluster.grant(model.name, "bob")
    cluster.revoke(model.name, "bob")
    found = assert_type(cluster.models(), list[ditto.ModelInfo])
    cluster.remove(model.name)
    try:
        cluster.remove(model.name)
    except ditto.errors.UnknownModel as error:
        assert_type(error.code, str)
    return found


async def asynchronously(cluster: ditto.aio.Cluster, name: str, texts: list[str]) -> list[ditto.Classification]:
    model = assert_type(await cluster.model(name), ditto.aio.Model)
    return [assert_type(answer, ditto.Classification) async for answer in model.classify(texts)]
