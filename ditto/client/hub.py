"""A checkpoint by its name on the Hugging Face hub: fetched into that library's cache, no more of it than is read.

What is small comes first: a model that is not supported is refused before its weights are fetched. The name goes to the
hub, and with it whatever the library sends (its version, a token if the user has logged in); nothing else does.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ditto.errors import BadCheckpoint, PeerAbsent, StorageError, UnsupportedArchitecture, UsageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,199}")
SETTINGS = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "modules.json",
    "special_tokens_map.json", "sentence_*_config.json", "config_sentence_transformers.json", "*_Pooling/config.json",
    "adapter_config.json", "ditto.json", "model.safetensors.index.json",
]  # fmt: skip
WEIGHTS = ["model.safetensors", "model-*-of-*.safetensors"]  # no pickle, no other format, no second precision


def on_hub(where: Path) -> bool:
    """Is this a name on the hub, OWNER/NAME? What is here goes first."""
    return bool(NAME.fullmatch(str(where))) and not os.path.lexists(where)


def fetch(name: str, revision: str | None, quiet: bool, say: Callable[[str], None]) -> Path:
    """The checkpoint's directory. Says which commit it is: that is what `revision` pins.

    Raises PeerAbsent where the hub does not answer and the cache has it not, BadCheckpoint for what is not there or has
    no safetensors, UnsupportedArchitecture, StorageError, UsageError for what is no revision.
    """
    if revision is not None and not REVISION.fullmatch(revision):
        raise UsageError(f"{revision[:100]!r} is no revision: a commit, branch or tag")
    from ditto.models.checkpoint import supported
    from ditto.models.tensors import INDEX, SINGLE

    say(f"no directory {name} here: asking the hub")
    with _of_the_hub(name):
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        if quiet:
            disable_progress_bars()
        first = Path(snapshot_download(name, revision=revision, allow_patterns=SETTINGS))
    commit = first.name  # the cache's layout: snapshots/COMMIT
    say(f"{name}: commit {commit}" + ("" if revision == commit else f" (--revision {commit} takes it again)"))
    try:
        supported(first)
    except (BadCheckpoint, UnsupportedArchitecture) as error:
        raise type(error)(str(error).replace(str(first), name)) from None  # commands in it take the name, too
    with _of_the_hub(name):
        directory = Path(snapshot_download(name, revision=commit, allow_patterns=[*SETTINGS, *WEIGHTS]))
    if not (directory / SINGLE).exists() and not (directory / INDEX).exists():
        raise BadCheckpoint(
            f"{name}: no {SINGLE} in commit {commit[:12]}. If it has a pytorch_model.bin, that is pickled, which can "
            "run any code: where you trust it, load it with transformers and save_pretrained(DIR), its tokenizer too; "
            "import DIR"
        )
    return directory


@contextlib.contextmanager
def _of_the_hub(name: str) -> Iterator[None]:
    """What the library raises, and its transport, of which each version has another."""
    try:
        import huggingface_hub.errors as known
    except ImportError:
        raise UsageError(f"{name}: no such directory; names on the hub need `pip install huggingface_hub`") from None
    try:
        yield
    except known.GatedRepoError:
        raise BadCheckpoint(f"{name}: gated: accept its terms on the hub, then `hf auth login` here") from None
    except known.RepositoryNotFoundError:
        raise BadCheckpoint(
            f"{name}: neither a directory here nor a model on the hub (or a private one: `hf auth login`)"
        ) from None
    except known.RevisionNotFoundError:
        raise BadCheckpoint(f"{name}: no such commit, branch or tag on the hub") from None
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None and not isinstance(error, ConnectionError):
            raise StorageError(f"{str(error.filename)[:400]}: {error.strerror or error}") from None
        said = str(error).splitlines()[0][:200] if str(error) else ""
        raise PeerAbsent(
            f"{name}: no such directory here, and the hub cannot be asked ({type(error).__name__}: {said}). Where it "
            f"can be: hf download {name} --local-dir DIR; bring DIR here and import that",
            "the hub",
        ) from None
