"""Write a small BERT classifier with random weights, as Hugging Face would: `python checkpoint.py DIR`."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from ditto.models import architecture_of

ARCHITECTURE = "BertForSequenceClassification"
WORDS = "the a cat dog sat ran on under mat tree and quickly slowly red green two men play music .".split()
CONFIG = {
    "architectures": [ARCHITECTURE],
    "hidden_act": "gelu",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 5 + len(WORDS),
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "id2label": {"0": "bad", "1": "good"},
}
TEXTS = ("the cat sat on the mat .", "a dog ran", "two men play music under the green tree .")

where = Path(sys.argv[1])
where.mkdir(parents=True, exist_ok=True)
generator = torch.Generator().manual_seed(1)
architecture, tensors = architecture_of(ARCHITECTURE), {}
for name, shape in architecture.expected(architecture.dimensions(CONFIG)).items():
    tensor = 0.1 * torch.randn(shape, generator=generator)
    if "LayerNorm" in name:
        tensor = torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
    tensors[name if name.startswith("classifier") else f"bert.{name}"] = tensor
save_file(tensors, where / "model.safetensors")
(where / "config.json").write_text(json.dumps(CONFIG))
(where / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
(where / "texts.txt").write_text("\n".join(TEXTS) + "\n")
(where / "many.txt").write_text("two red men play music .\n" * 64)  # eight jobs
