"""The client's own models: $DITTO_HOME/models/NAME, with what an inference needs on the client's side."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditto import files
from ditto.client.home import home
from ditto.errors import BadCheckpoint, DamagedFile, UnknownModel
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

        path = self.dir / DESCRIPTION
        try:
            return parse(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(path, error) from None

    @property
    def checkpoint(self) -> Path:
        """Where the floating-point checkpoint was; needed for --check and for public embeddings only."""
        path = Path(self._origin()["checkpoint"])
        if not os.path.isdir(path):  # a Path raises for a name that is too long
            name = str(path)[:400]
            raise BadCheckpoint(f"{name}: the checkpoint this model was imported from is gone; import it again")
        return path

    def _origin(self) -> dict[str, str]:
        path = self.dir / "origin.json"
        try:
            found: Any = files.read_json(path)
            if not isinstance(found["checkpoint"], str):
                raise ValueError("no checkpoint named")
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise self._damaged(path, error) from None
        return dict(found)

    @property
    def digest(self) -> str:
        """Of everything that its answers under MPC follow from: the description and the encoded weights."""
        weights = self._origin().get("weights") or _digest(self.dir / "weights.safetensors")
        return hashlib.sha256(f"{self.description.text()}{weights}".encode()).hexdigest()

    @property
    def version(self) -> str:
        """SHA-256 of the description: by it servers and clients tell that they mean the same model."""
        return hashlib.sha256(self.description.text().encode()).hexdigest()

    def weights(self) -> "dict[str, Tensor]":
        """Raises DamagedFile."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.dir / "weights.safetensors"
        try:
            expected = self._origin().get("weights")  # earlier versions wrote none
            if expected is not None and expected != _digest(path):
                raise ValueError("not what was imported")
            return load_file(path)
        except (OSError, SafetensorError, ValueError) as error:
            raise self._damaged(path, error) from None

    def _damaged(self, path: Path, error: Exception) -> DamagedFile:
        return DamagedFile(f"{path}: cannot be read ({type(error).__name__}: {error}); import the model again")

    @property
    def files(self) -> Path:
        """Where its tokenizer lies."""
        return self.dir / "tokenizer"

    def tokenizer(self) -> "Tokenizer":
        from ditto.models.tokenizer import Tokenizer

        return Tokenizer.load(self.files)

    def published(self) -> dict[str, bytes]:
        """What others need to ask it besides the description. Raises DamagedFile for other files than were imported;
        none of a model that an earlier version imported."""
        from ditto.models.tokenizer_files import digest_of_files, published

        expected = self.description.tokenizer
        found = published(self.files) if expected else {}
        if digest_of_files(found) != expected:
            raise self._damaged(self.files, ValueError("not what was imported"))
        return found


def _digest(path: Path) -> str:
    """SHA-256 of a file: a flipped bit of a weight would answer wrongly, and nothing would say so."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def models_dir() -> Path:
    return home() / "models"


def save(
    description: "Description", weights: "dict[str, Tensor]", checkpoint: Path, models: Path | None = None
) -> StoredModel:
    """Write a model down, in the place of one of the same name; in another directory than this user's, if given.
    Its description means the tokenizer's files, too. Raises BadCheckpoint for a tokenizer that is another model's."""
    from ditto.client.publication import with_files
    from ditto.models.export import save_tensors
    from ditto.models.tokenizer import Tokenizer
    from ditto.models.tokenizer_files import published

    public = published(checkpoint)
    if public:  # whoever asks it would be refused: here, before it is shared
        Tokenizer.load(checkpoint).check(description.dimensions.vocabulary)
    description = with_files(description, public)
    target = (models or models_dir()) / check_name(description.name)
    with files.replacing_directory(target) as fresh:
        (fresh / DESCRIPTION).write_text(description.text(), encoding="utf-8")
        (fresh / "weights.safetensors").touch(files.PRIVATE)
        save_tensors(fresh / "weights.safetensors", weights)
        origin = {"checkpoint": str(checkpoint.resolve()), "weights": _digest(fresh / "weights.safetensors")}
        (fresh / "origin.json").write_text(json.dumps(origin))
        (fresh / "tokenizer").mkdir()
        for name in TOKENIZER_FILES:
            if (checkpoint / name).exists():
                shutil.copyfile(checkpoint / name, fresh / "tokenizer" / name)
    return StoredModel(target)


def find(name: str, models: Path | None = None) -> StoredModel | None:
    """Raises UsageError for what is no name."""
    model = StoredModel((models or models_dir()) / check_name(name))
    return model if (model.dir / DESCRIPTION).exists() else None


def load(name: str, models: Path | None = None) -> StoredModel:
    """Raises UnknownModel."""
    model = find(name, models)
    if model is None:
        known = ", ".join(m.dir.name for m in stored()) or "none"
        raise UnknownModel(f"no model named {name!r} here; import it with `ditto model import` (known: {known})")
    return model


def stored() -> list[StoredModel]:
    return [StoredModel(path.parent) for path in sorted(models_dir().glob(f"[!.]*/{DESCRIPTION}"))]
