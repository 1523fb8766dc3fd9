"""A checkpoint's tokenizer files, as Hugging Face writes them, to a tokenizer of the library `tokenizers`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.implementations.byte_level_bpe import ByteLevelBPETokenizer
from tokenizers.models import WordPiece

from ditto.errors import BadCheckpoint

END_OF_TEXT = "<|endoftext|>"
BYTE_PAIRS = ("vocab.json", "merges.txt")
SENTENCE_PIECES = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
FIRST, LAST = "<s>", "</s>"  # around a text of Roberta and MPNet
SWITCHES = ("add_prefix_space", "do_lower_case", "strip_accents", "tokenize_chinese_chars")
SETTINGS = {"tokenizer_config.json": SWITCHES, "config.json": ("model_type",)}  # what is read of these files
PUBLISHED = frozenset({"tokenizer.json", "vocab.txt", *BYTE_PAIRS, *SETTINGS})


# What others get ---------------------------------------------------------------------------------


def published(directory: Path) -> dict[str, bytes]:
    """The files by which others make the same tokens, by name; none where there is no tokenizer.

    No more than that: of settings, only what is read, since the rest may name paths and people. A GPT-2's vocab.json
    and merges.txt come along, by which `ditto evaluate` cuts a text. Raises BadCheckpoint.
    """
    whole = directory / "tokenizer.json"
    names = [name for name in ("tokenizer.json", *BYTE_PAIRS) if (directory / name).is_file()]
    if not whole.is_file() and (directory / "vocab.txt").is_file():
        names = ["vocab.txt"]
    with _readable(directory):
        found = {name: (directory / name).read_bytes() for name in names}
    for name, fields in {} if whole.is_file() or not found else SETTINGS.items():
        settings = _settings(directory / name)
        kept = {field: settings[field] for field in fields if field in settings}
        if kept:
            found[name] = json.dumps(kept, sort_keys=True).encode()
    return dict(sorted(found.items()))


def files_digest(sha256: Mapping[str, str]) -> str:
    """One SHA-256, in hexadecimal digits, of files whose own are given by name; nothing for no files."""
    return hashlib.sha256(json.dumps(sorted(sha256.items())).encode()).hexdigest() if sha256 else ""


def digest_of_files(files: Mapping[str, bytes]) -> str:
    return files_digest({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})


@contextlib.contextmanager
def _readable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadCheckpoint(f"{directory}: cannot be read: {error.strerror or error}") from None


# A tokenizer -------------------------------------------------------------------------------------


def read_backend(directory: Path) -> Backend:
    """The tokenizer of a directory, with its own post-processing for texts and for pairs.

    tokenizer.json as it is; else vocab.txt (WordPiece of BERT, Electra, DistilBERT, MPNet) or vocab.json with
    merges.txt (byte-level BPE of GPT-2, Roberta), with the options of tokenizer_config.json. Raises BadCheckpoint when
    none of these is there, or naming the one that cannot be read.
    """
    if (directory / "tokenizer.json").exists():
        backend: Backend = _read(Backend.from_file, directory / "tokenizer.json")
        return backend
    if (directory / "vocab.txt").exists():
        return _word_pieces(directory)
    if all((directory / name).exists() for name in BYTE_PAIRS):
        return _byte_pairs(directory)
    for name in SENTENCE_PIECES:
        if (directory / name).exists():
            raise BadCheckpoint(f"{directory}: {name} alone is not read; {_conversion(directory)}")
    raise BadCheckpoint(
        f"{directory}: neither tokenizer.json, vocab.txt, nor vocab.json with merges.txt; copy them from where "
        f"the model was trained from, or: AutoTokenizer.from_pretrained(…).save_pretrained({str(directory)!r})"
    )


def byte_pairs(directory: Path, add_prefix_space: bool = False) -> ByteLevelBPETokenizer:
    """GPT-2's byte-level BPE, without special tokens. Raises BadCheckpoint naming the file that is missing or wrong."""
    vocabulary, merges = (directory / name for name in BYTE_PAIRS)
    for path in (vocabulary, merges):
        if not path.is_file():
            raise BadCheckpoint(f"{path}: no such file; GPT-2's tokenizer is {' and '.join(BYTE_PAIRS)}")
    with of_the_library(f"{directory}: {' and '.join(BYTE_PAIRS)} are not a byte-level BPE"):
        return ByteLevelBPETokenizer(str(vocabulary), str(merges), add_prefix_space=add_prefix_space)


def _byte_pairs(directory: Path) -> Backend:
    """As GPT-2, or, where the vocabulary has <s> and </s> and the model is no GPT-2, as Roberta."""
    backend: Backend = byte_pairs(directory, _option(directory, "add_prefix_space", False))._tokenizer
    causal = _settings(directory / "config.json").get("model_type") == "gpt2"  # its prompts have no end
    if causal or backend.token_to_id(FIRST) is None or backend.token_to_id(LAST) is None:
        if backend.token_to_id(END_OF_TEXT) is not None:
            backend.add_special_tokens([END_OF_TEXT])  # one token also where it stands in a text
        return backend
    _add_known(backend, (FIRST, LAST, "<unk>", "<pad>", "<mask>"))
    _surround(backend)
    return backend


def _word_pieces(directory: Path) -> Backend:
    """As BERT ([CLS] A [SEP], B [SEP] with token types 0 and 1), or, where the vocabulary begins with <s>, as MPNet."""
    path = directory / "vocab.txt"
    vocabulary: dict[str, int] = _read(WordPiece.read_file, path)
    options: dict[str, Any] = {
        "lowercase": _option(directory, "do_lower_case", True),
        "strip_accents": _option(directory, "strip_accents", None),
        "handle_chinese_chars": _option(directory, "tokenize_chinese_chars", True),
    }
    # MPNet's vocabulary is BERT's, [CLS] and [SEP] included, behind special tokens of its own
    mpnet = {FIRST, LAST} <= set(vocabulary) and vocabulary[FIRST] < vocabulary.get("[CLS]", len(vocabulary))
    if not mpnet and not {"[CLS]", "[SEP]"} <= set(vocabulary):
        raise BadCheckpoint(f"{path}: neither [CLS] and [SEP] nor {FIRST} and {LAST} in this vocabulary")
    if mpnet:
        options |= {"cls_token": FIRST, "sep_token": LAST, "pad_token": "<pad>", "mask_token": "<mask>"}
    backend: Backend = BertWordPieceTokenizer(vocabulary, **options)._tokenizer
    if mpnet:
        _surround(backend)
    return backend


def _surround(backend: Backend) -> None:
    """<s> A </s>, and <s> A </s></s> B </s>: token types 0 throughout."""
    ids = backend.get_vocab()
    backend.post_processor = processors.RobertaProcessing((LAST, ids[LAST]), (FIRST, ids[FIRST]))


def _add_known(backend: Backend, names: tuple[str, ...]) -> None:
    """Special tokens are one token also where they stand in a text; as in transformers, those of the vocabulary."""
    known = [name for name in names if backend.token_to_id(name) is not None]
    backend.add_special_tokens([AddedToken(name, special=True) for name in known])


def _option(directory: Path, name: str, default: bool | None) -> Any:
    """A switch of tokenizer_config.json, if that is there. Raises BadCheckpoint for anything but a switch."""
    path = directory / "tokenizer_config.json"
    value = _settings(path).get(name)
    if value is not None and not isinstance(value, bool):
        raise BadCheckpoint(f"{path}: {name} is {value!r}; true or false expected")
    return default if value is None else value


def _settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    settings = _read(lambda text: json.loads(Path(text).read_text(encoding="utf-8")), path)
    if not isinstance(settings, dict):
        raise BadCheckpoint(f"{path}: an object expected")
    return settings


def _read(reader: Callable[[str], Any], path: Path) -> Any:
    with of_the_library(str(path)):
        return reader(str(path))


@contextlib.contextmanager
def of_the_library(what: str) -> Iterator[None]:
    """Raises BadCheckpoint for what the Rust library raises, which is nothing narrower than Exception, and for its
    panics, which are wider."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadCheckpoint(f"{what}: {error}") from error


def _conversion(directory: Path) -> str:
    where = str(directory)
    code = f"from transformers import AutoTokenizer as T; T.from_pretrained({where!r}).save_pretrained({where!r})"
    return f"this writes the tokenizer.json beside it (sentencepiece installed): python -c {shlex.quote(code)}"
