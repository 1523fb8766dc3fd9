"""Checkpoints as they come: one file or shards, fp16 and bf16, old names, pickled or lying ones refused."""

from __future__ import annotations

import json
import shlex
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditto.errors import BadCheckpoint
from ditto.models import load_checkpoint, tensors
from ditto.models.tensors import INDEX, SINGLE, read_tensors, without_prefix

CONFIG = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 40,
    "max_position_embeddings": 24, "num_labels": 3,
}  # fmt: skip


def same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert got[name].dtype == torch.float32 and torch.equal(got[name], tensor), name


def model() -> Any:
    """A classifier of transformers with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**CONFIG))


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    made = model()
    made.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / SINGLE).exists() and len(list(tmp_path.glob("model-*.safetensors"))) > 3
    return tmp_path, {name: tensor for name, tensor in made.state_dict().items() if tensor.is_floating_point()}


def index_of(directory: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((directory / INDEX).read_text())
    return index


def test_shards_equal_the_model(sharded: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    directory, want = sharded
    opened: list[Path] = []
    original = tensors.safe_open

    def counting(path: Path, **options: Any) -> Any:
        opened.append(path)
        return original(path, **options)

    monkeypatch.setattr(tensors, "safe_open", counting)
    same(read_tensors(directory), want)
    assert sorted(opened) == sorted(directory.glob("model-*.safetensors")), "each shard once"
    assert load_checkpoint(directory).class_name == "BertForSequenceClassification"


def test_one_file_goes_before_an_index(sharded: tuple[Path, dict[str, torch.Tensor]]) -> None:
    directory, _ = sharded
    save_file({"w": torch.ones(2)}, directory / SINGLE)
    same(read_tensors(directory), {"w": torch.ones(2)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every one of the 65,536 patterns but those of no number."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    every = every[torch.isfinite(every)]
    save_file({"w": every, "one": torch.tensor(1.5, dtype=dtype)}, tmp_path / SINGLE)
    got = read_tensors(tmp_path)
    assert got["w"].dtype == got["one"].dtype == torch.float32 and got["one"] == 1.5
    assert torch.equal(got["w"].double(), every.double())


def test_buffers_are_left_out(tmp_path: Path) -> None:
    mask, ids = torch.ones((1, 1, 4, 4), dtype=torch.bool), torch.arange(4)[None]
    wide = torch.tensor([1.0, 2.5], dtype=torch.float64)
    save_file({"w": wide, "position_ids": ids, "mask": mask, "u8": mask.to(torch.uint8)}, tmp_path / SINGLE)
    same(read_tensors(tmp_path), {"w": wide.float()})


def test_names_of_the_first_checkpoints(tmp_path: Path) -> None:
    one, two = torch.ones(2), torch.zeros(2)
    save_file({"bert.a.LayerNorm.gamma": one, "bert.a.LayerNorm.beta": two, "gamma": -one}, tmp_path / SINGLE)
    same(read_tensors(tmp_path), {"bert.a.LayerNorm.weight": one, "bert.a.LayerNorm.bias": two, "gamma": -one})
    save_file({"LayerNorm.gamma": one, "LayerNorm.weight": two}, tmp_path / SINGLE)
    with pytest.raises(BadCheckpoint, match=r"LayerNorm\.weight is there twice"):
        read_tensors(tmp_path)


def test_small_floats_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / SINGLE)
    with pytest.raises(BadCheckpoint, match="tensor w is F8_E4M3"):
        read_tensors(tmp_path)


def test_a_shard_or_tensor_that_is_missing(sharded: tuple[Path, dict[str, torch.Tensor]]) -> None:
    directory, _ = sharded
    index = index_of(directory)
    shard = index["weight_map"]["classifier.weight"]
    held = load_file(directory / shard)
    save_file({name: tensor for name, tensor in held.items() if name != "classifier.weight"}, directory / shard)
    with pytest.raises(BadCheckpoint, match=rf"{shard}: tensor classifier\.weight is missing"):
        read_tensors(directory)
    (directory / shard).unlink()
    with pytest.raises(BadCheckpoint, match=f"{shard}: no such file"):
        read_tensors(directory)


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "pytorch_model.bin", ""],
)
def test_a_shard_stays_in_its_directory(tmp_path: Path, shard: str) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    for path in (tmp_path, directory):
        save_file({"w": torch.ones(2)}, path / "x.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": {"w": "x.safetensors"}}))
    same(read_tensors(directory), {"w": torch.ones(2)})
    (directory / INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(BadCheckpoint, match="no safetensors file of this directory"):
        read_tensors(directory)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"w": 1}}'])
def test_an_index_that_is_none(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(BadCheckpoint, match=r"index\.json"):
        read_tensors(tmp_path)


def tensor(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"w": tensor([1000, 1000, 1000, 1000], 0, 4 * 10**12)},  # more than the file has
        {"w": tensor([1000, 1000, 1000, 1000], 0, 8)},
        {"w": tensor([2**62, 4], 0, 8)},  # 2^64 elements: zero, for who overflows
        {"w": tensor([1], 0, 4)},  # less than the file has
        {"v": tensor([2], 0, 8), "w": tensor([2], 0, 8)},  # the same bytes twice
    ],
)
def test_headers_that_lie(tmp_path: Path, header: dict[str, Any]) -> None:
    def write(header: dict[str, Any]) -> None:
        text = json.dumps(header).encode()
        (tmp_path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))

    write({"w": tensor([2], 0, 8)})
    same(read_tensors(tmp_path), {"w": torch.zeros(2)})
    write(header)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: "):
        read_tensors(tmp_path)


@pytest.mark.parametrize("content", [b"", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_files_without_a_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: "):
        read_tensors(tmp_path)


def test_a_shard_that_was_cut(sharded: tuple[Path, dict[str, torch.Tensor]]) -> None:
    directory, _ = sharded
    path = sorted(directory.glob("model-*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadCheckpoint, match=path.name):
        read_tensors(directory)


def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    directory = tmp_path / "it's a model"
    made = model()
    made.config.architectures = ["BertForSequenceClassification"]
    made.config.save_pretrained(directory)
    torch.save(made.state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match=r"pytorch_model\.bin is pickled.*if you trust") as refused:
        read_tensors(directory)
    command = shlex.split(str(refused.value).partition("yourself: ")[2])
    assert command[:2] == ["python", "-c"]
    exec(command[2], {})
    same(read_tensors(directory), {name: t for name, t in made.state_dict().items() if t.is_floating_point()})


def test_the_command_names_no_class_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    for config in ("{}", '{"architectures": ["x; import os"]}', "[]", "{"):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(BadCheckpoint, match="import AutoModel as M"):
            read_tensors(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        read_tensors(tmp_path)


def test_prefixes() -> None:
    a, b, c = torch.ones(1), torch.zeros(2), torch.ones(3)
    plain = {"embeddings.w": a, "classifier.weight": b}
    same(without_prefix({"bert.embeddings.w": a, "classifier.weight": b}, ("bert.",)), plain)
    same(without_prefix(plain, ("bert.",)), plain)
    twice = without_prefix({"roberta.bert.w": a, "bert.w.bert.x": b, "albert.w": c}, ("bert.", "roberta."))
    same(twice, {"bert.w": a, "w.bert.x": b, "albert.w": c})
    for first, second in (("bert.w", "w"), ("w", "bert.w"), ("bert.w", "transformer.w")):
        with pytest.raises(BadCheckpoint, match=f"{first} and {second}"):
            without_prefix({first: a, second: b}, ("bert.", "transformer."))
