"""Checkpoints as users bring them: real architectures and file layouts of `transformers`, tiny and with random weights.

`CASES` names each, says what it is, and with which exit code its import ends; `benchmarks/imports.py` prints what
each does. Imported by tests that skip where `transformers` is absent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

WORDS = "the a cat dog sat ran on under mat tree and quickly slowly red green two men play music .".split()
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXTS = ["the cat sat on the mat .", "a dog ran", "two men play music under the green tree .", "red and green"]
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": len(PIECES), "max_position_embeddings": 40, "initializer_range": 0.2,
}  # fmt: skip
SMALL_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 40, "initializer_range": 0.2}
SINGLE = "model.safetensors"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
Build = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """`code`: with which the import ends. `says`: what a refusal has to name."""

    name: str
    what: str
    build: Build
    code: int = 0
    says: str = ""


# Tokenizers ----------------------------------------------------------------------------------------


def wordpiece(at: Path) -> None:
    BertWordPieceTokenizer({word: i for i, word in enumerate(PIECES)}).save(str(at / "tokenizer.json"))


def vocabulary(at: Path) -> None:
    """What a slow tokenizer saves."""
    (at / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (at / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer"}))


def bytes_of(special: list[str], around: tuple[str, str] | None = None) -> Tokenizer:
    """Byte-level, without merges."""
    words = {word: i for i, word in enumerate([*special, *BYTES])}
    made = Tokenizer(models.BPE(words, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, special=True) for word in special])
    if around:
        first, last = around
        made.post_processor = processors.RobertaProcessing((last, words[last]), (first, words[first]))
    return made


ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def roberta(at: Path) -> None:
    bytes_of(ROBERTA, ("<s>", "</s>")).save(str(at / "tokenizer.json"))


def sentence_pieces(at: Path) -> None:
    """As XLM-R's fast tokenizer: unigrams."""
    names = [*ROBERTA[:4], *(f"▁{word}" for word in WORDS), "<mask>"]
    made = Tokenizer(models.Unigram([(name, -1.0 - i) for i, name in enumerate(names)], unk_id=3))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made.save(str(at / "tokenizer.json"))


def gpt2(at: Path) -> None:
    bytes_of(["<|endoftext|>"]).save(str(at / "tokenizer.json"))


def gpt2_slow(at: Path) -> None:
    words = {word: i for i, word in enumerate(["<|endoftext|>", *BYTES])}
    (at / "vocab.json").write_text(json.dumps(words))
    (at / "merges.txt").write_text("#version: 0.2\n")


# Models --------------------------------------------------------------------------------------------


def save(family: str, head: str, tokens: Build = wordpiece, **settings: Any) -> Build:
    """What `save_pretrained` writes of a model with random weights, and a tokenizer."""

    def build(at: Path) -> None:
        saving = {key: settings.pop(key) for key in ("max_shard_size",) if key in settings}
        half = settings.pop("half", None)
        torch.manual_seed(0)
        model = getattr(hf, family + head)(getattr(hf, f"{family}Config")(**settings))
        (model.to(half) if half else model).save_pretrained(at, **saving)
        tokens(at)

    return build


def then(build: Build, *changes: Build) -> Build:
    def both(at: Path) -> None:
        build(at)
        for change in changes:
            change(at)

    return both


def bert(head: str = "ForSequenceClassification", tokens: Build = wordpiece, **settings: Any) -> Build:
    return save("Bert", head, tokens, **(SIZES | settings))


def configured(**settings: Any) -> Build:
    def change(at: Path) -> None:
        path = at / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Build:
    return lambda at: save_file(change(load_file(at / SINGLE)), at / SINGLE, metadata={"format": "pt"})


def without_prefix(at: Path) -> None:
    """As the GPT-2 of the first release: h.0.ln_1.weight, and the causal masks as buffers."""
    found = {name.removeprefix("transformer."): value for name, value in load_file(at / SINGLE).items()}
    save_file(found | {"h.0.attn.bias": torch.ones(1, 1, 40, 40).tril()}, at / SINGLE)


def only_pickled(at: Path) -> None:
    torch.save(load_file(at / SINGLE), at / "pytorch_model.bin")
    (at / SINGLE).unlink()


def only(name: str) -> Build:
    """Another format's file in the place of the tensors."""

    def change(at: Path) -> None:
        (at / SINGLE).unlink()
        (at / name).write_bytes(b"GGUF" + bytes(60))

    return change


def module(i: int, name: str, path: str) -> dict[str, Any]:
    return {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}


def modules(*names: str, **pooling: bool) -> Build:
    """sentence-transformers' files around a Transformer."""

    def change(at: Path) -> None:
        found = [module(i, name, f"{i}_{name}" if i else "") for i, name in enumerate(names)]
        (at / "modules.json").write_text(json.dumps(found))
        (at / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40, "do_lower_case": False}))
        (at / "1_Pooling").mkdir()
        settings = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False} | pooling
        (at / "1_Pooling" / "config.json").write_text(json.dumps(settings))

    return change


def adapter(at: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "bert-base-uncased", "r": 8}
    (at / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"base_model.model.lora_A.weight": torch.zeros(8, 32)}, at / "adapter_model.safetensors")


def quantized(method: str) -> Build:
    """GPTQ's and AWQ's tensors: packed integers, where weights were."""

    def change(at: Path) -> None:
        found = load_file(at / SINGLE)
        for name in [name for name in found if name.endswith("query.weight")]:
            module = name.removesuffix(".weight")
            found.pop(name)
            found |= {f"{module}.qweight": torch.zeros(4, 32, dtype=torch.int32), f"{module}.scales": torch.ones(1, 32)}
        save_file(found, at / SINGLE)
        configured(quantization_config={"quant_method": method, "bits": 4, "group_size": 32})(at)

    return change


def too_many_words(at: Path) -> None:
    BertWordPieceTokenizer({word: i for i, word in enumerate([*PIECES, "extra", "words"])}).save(
        str(at / "tokenizer.json")
    )


def nothing(at: Path) -> None:
    pass


def no_directory(at: Path) -> None:
    at.rmdir()
    at.write_bytes(b"GGUF")


def absent(at: Path) -> None:
    shutil.rmtree(at)


def in_a_subdirectory(at: Path) -> None:
    """As sentence-transformers wrote it before: the Transformer in a directory of its own."""
    (at / "0_Transformer").mkdir()
    bert("Model")(at / "0_Transformer")
    (at / "modules.json").write_text(json.dumps([module(0, "Transformer", "0_Transformer")]))


ONE_LABEL = {"num_labels": 1}
GPT2_WORDS = {"vocab_size": 1 + len(BYTES), "bos_token_id": 0, "eos_token_id": 0}
SMALL_LLAMA = SIZES | {"num_key_value_heads": 1, "vocab_size": 1 + len(BYTES)}
ROBERTA_SIZES = SIZES | {"vocab_size": len(ROBERTA) + len(BYTES), "type_vocab_size": 1, "max_position_embeddings": 42}
SMALL_T5: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 30}
DISTILLED: dict[str, Any] = {
    "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "vocab_size": len(PIECES), "max_position_embeddings": 40,
    "initializer_range": 0.2,
}  # fmt: skip

CASES = (
    Case("bert-base", "BertModel", bert("Model")),
    Case("bert-masked-lm", "BertForMaskedLM: its encoder", bert("ForMaskedLM")),
    Case("bert-classifier", "BertForSequenceClassification, 3 labels", bert(num_labels=3)),
    Case("bert-regression", "one output, problem_type regression",
         bert(num_labels=1, problem_type="regression")),
    Case("bert-multi-label", "problem_type multi_label_classification",
         bert(num_labels=3, problem_type="multi_label_classification")),
    Case("bert-tokens", "BertForTokenClassification", bert("ForTokenClassification", num_labels=3)),
    Case("bert-answers", "BertForQuestionAnswering", bert("ForQuestionAnswering")),
    Case("cross-encoder", "BertForSequenceClassification, 1 label", bert(num_labels=1)),
    Case("bert-head-dim-5", "heads of an odd width", bert(hidden_size=30, num_attention_heads=6)),
    Case("bert-old-names", "LayerNorm.gamma and beta", then(bert(), tensors(lambda found: {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in found.items()}))),
    Case("roberta-514", "RobertaForSequenceClassification, 514 rows of positions",
         save("Roberta", "ForSequenceClassification", roberta, **(ROBERTA_SIZES | {"max_position_embeddings": 514}))),
    Case("xlm-roberta", "XLMRobertaModel, tokenizer.json of unigrams",
         save("XLMRoberta", "Model", sentence_pieces, **(ROBERTA_SIZES | {"vocab_size": 5 + len(WORDS)}))),
    Case("distilbert", "DistilBertForSequenceClassification",
         save("DistilBert", "ForSequenceClassification", **DISTILLED)),
    Case("electra", "ElectraForSequenceClassification, embeddings of another width",
         save("Electra", "ForSequenceClassification", **(SIZES | {"embedding_size": 16}))),
    Case("mpnet", "MPNetModel", save("MPNet", "Model", roberta, **(ROBERTA_SIZES | {"max_position_embeddings": 74}))),
    Case("sentences-mean", "modules.json: mean",
         then(bert("Model"), modules("Transformer", "Pooling", pooling_mode_mean_tokens=True))),
    Case("sentences-cls", "modules.json: CLS, Normalize",
         then(bert("Model"), modules("Transformer", "Pooling", "Normalize", pooling_mode_cls_token=True))),
    Case("sentences-max", "modules.json: max",
         then(bert("Model"), modules("Transformer", "Pooling", pooling_mode_max_tokens=True))),
    Case("sentences-dense", "modules.json: a Dense behind the pooling",
         then(bert("Model"), modules("Transformer", "Pooling", "Dense", pooling_mode_mean_tokens=True)), 14, "Dense"),
    Case("sentences-subdirectory", "modules.json: 0_Transformer/", in_a_subdirectory, 13, "0_Transformer"),
    Case("gpt2", "GPT2LMHeadModel, tied head, vocab.json and merges.txt",
         save("GPT2", "LMHeadModel", gpt2_slow, **(SMALL_GPT2 | GPT2_WORDS))),
    Case("gpt2-no-prefix", "the same, tensors without \"transformer.\"",
         then(save("GPT2", "LMHeadModel", gpt2, **(SMALL_GPT2 | GPT2_WORDS)), without_prefix)),
    Case("gpt2-1024", "n_positions 1,024",
         save("GPT2", "LMHeadModel", gpt2, **(SMALL_GPT2 | GPT2_WORDS | {"n_positions": 1024}))),
    Case("no-class", "config.json without architectures", then(bert("Model"), configured(architectures=None)), 14,
         '"architectures"'),
    Case("bert-pretraining", "BertForPreTraining", bert("ForPreTraining"), 14, "import BertModel as M"),
    Case("wrong-head", "a classifier's config.json, an encoder's weights",
         then(bert("Model"), configured(architectures=["BertForSequenceClassification"])), 13, "classifier.weight"),
    Case("gpt2-no-head", "GPT2Model",
         save("GPT2", "Model", gpt2, **(SMALL_GPT2 | GPT2_WORDS)), 14, "GPT2LMHeadModel"),
    Case("bf16", "weights in bfloat16", bert(half=torch.bfloat16)),
    Case("fp16", "weights in float16", bert(half=torch.float16)),
    Case("shards", "safetensors in shards, with an index", bert(max_shard_size="20KB")),
    Case("slow-tokenizer", "vocab.txt alone", bert(tokens=vocabulary)),
    Case("no-tokenizer", "no file of a tokenizer", bert(tokens=nothing), 13, "AutoTokenizer"),
    Case("large-tokenizer", "a tokenizer with more ids than the table has rows", bert(tokens=too_many_words), 13,
         "resize_token_embeddings"),
    Case("pickled", "pytorch_model.bin alone", then(bert(), only_pickled), 13, "save_pretrained"),
    Case("gelu-new", "hidden_act gelu_new", bert(hidden_act="gelu_new"), 14, "gelu_new"),
    Case("relu", "hidden_act relu", bert(hidden_act="relu"), 14, "relu"),
    Case("swish", "hidden_act swish", bert(hidden_act="swish"), 14, "swish"),
    Case("relative-key", "position_embedding_type relative_key",
         then(bert(), configured(position_embedding_type="relative_key")), 14, "relative_key"),
    Case("albert", "AlbertModel", save("Albert", "Model", **(SIZES | {"embedding_size": 16})), 14, "AlbertModel"),
    Case("deberta", "DebertaV2Model", save("DebertaV2", "Model", **SIZES), 14, "DebertaV2Model"),
    Case("t5", "T5ForConditionalGeneration", save("T5", "ForConditionalGeneration", **SMALL_T5), 14, "T5For"),
    Case("llama", "LlamaForCausalLM", save("Llama", "ForCausalLM", gpt2, **SMALL_LLAMA), 14, "LlamaFor"),
    Case("qwen2", "Qwen2ForCausalLM", save("Qwen2", "ForCausalLM", gpt2, **SMALL_LLAMA), 14, "Qwen2For"),
    Case("gpt-neox", "GPTNeoXForCausalLM", save("GPTNeoX", "ForCausalLM", gpt2, **SIZES), 14, "GPTNeoXFor"),
    Case("adapter", "a LoRA adapter alone", adapter, 13, "merge_and_unload"),
    Case("gptq", "quantized by GPTQ", then(bert(), quantized("gptq")), 14, "gptq"),
    Case("awq", "quantized by AWQ", then(bert(), quantized("awq")), 14, "awq"),
    Case("gguf", "a GGUF file alone", then(bert(), only("model.gguf")), 13, "model.gguf"),
    Case("onnx", "an ONNX file alone", then(bert(), only("model.onnx")), 13, "model.onnx"),
    Case("empty", "an empty directory", nothing, 13, "config.json"),
    Case("a-file", "a file", no_directory, 13, "directory"),
    Case("absent", "nothing of that name", absent, 13, "no such directory"),
)  # fmt: skip


def made(case: Case, under: Path) -> Path:
    """The checkpoint, in a directory of its own."""
    at = under / case.name
    at.mkdir(parents=True)
    case.build(at)
    return at


def texts_file(under: Path) -> Path:
    path = under / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path
