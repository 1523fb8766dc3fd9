"""The client's own models: $DITTO_HOME/models/NAME, with what an inference needs on the client's side."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ditto import files
from ditto.client.local_cluster import home
from ditto.errors import BadCheckpoint, UnknownModel
from ditto.names import check_name

if TYPE_CHECKING:
    from torch import Tensor

    from ditto.models import Description
    from ditto.models.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json",
    "config.json",
)  # fmt: skip


DESCRIPTION = "description.json"


@dataclass(frozen=True)
class StoredModel:
    """description.json (public), weights.safetensors (fixed-point integers, the owner's secret), tokenizer files."""

    dir: Path

    @property
    def description(self) -> "Description":
        """Raises BadDescription, or VersionMismatch for what another version of ditto imported."""
        from ditto.models.description import parse

        return parse((self.dir / DESCRIPTION).read_text(encoding="utf-8"))

    @property
    def checkpoint(self) -> Path:
        """Where the floating-point checkpoint was; needed for --check and for public embeddings only."""
        path = Path(json.loads((self.dir / "origin.json").read_text())["checkpoint"])
        if not path.is_dir():
            raise BadCheckpoint(f"{path}: the checkpoint this model was imported from is gone; import it again")
        return path

    def weights(self) -> "dict[str, Tensor]":
        from safetensors.torch import load_file

        return load_file(self.dir / "weights.safetensors")

    def tokenizer(self) -> "Tokenizer":
        from ditto.models.tokenizer import Tokenizer

        return Tokenizer.load(self.dir / "tokenizer")


def models_dir() -> Path:
    return home() / "models"


def save(description: "Description", weights: "dict[str, Tensor]", checkpoint: Path) -> StoredModel:
    """Write a model down, in the place of one of the same name."""
    from ditto.models.export import save_tensors

    target = models_dir() / check_name(description.name)
    with files.replacing_directory(target) as fresh:
        (fresh / DESCRIPTION).write_text(description.text(), encoding="utf-8")
        (fresh / "origin.json").write_text(json.dumps({"checkpoint": str(checkpoint.resolve())}))
        (fresh / "weights.safetensors").touch(files.PRIVATE)
        save_tensors(fresh / "weights.safetensors", weights)
        (fresh / "tokenizer").mkdir()
        for name in TOKENIZER_FILES:
            if (checkpoint / name).exists():
                shutil.copyfile(checkpoint / name, fresh / "tokenizer" / name)
    return StoredModel(target)


def load(name: str) -> StoredModel:
    model = StoredModel(models_dir() / check_name(name))
    if not (model.dir / DESCRIPTION).exists():
        known = ", ".join(m.dir.name for m in stored()) or "none"
        raise UnknownModel(f"no model named {name!r} here; import it with `ditto model import` (known: {known})")
    return model


def stored() -> list[StoredModel]:
    return [StoredModel(path.parent) for path in sorted(models_dir().glob(f"[!.]*/{DESCRIPTION}"))]
