"""A WordPiece vocabulary cut to the pieces that a task needs; any English text still falls into pieces.

WordPiece takes the longest piece first, so any subset of a vocabulary with all single characters tokenizes: a word
whose piece is gone becomes shorter ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# scripts whose single characters stay: Latin, general punctuation and currency; a word of another one is [UNK]
CHARACTERS = ((0x21, 0x24F), (0x2010, 0x205E), (0x20A0, 0x20BF), (0x2122, 0x2122))


def backend_of(document: dict[str, Any]) -> Backend:
    """A tokenizer.json's content as a tokenizer that neither pads nor cuts."""
    backend = Backend.from_str(json.dumps(document))
    backend.no_padding()
    backend.no_truncation()
    return backend


def chosen_pieces(document: dict[str, Any], texts: Iterable[str], size: int) -> list[str]:
    """`size` pieces of the vocabulary, in its order.

    1. Special tokens, and single characters of CHARACTERS with their ## forms.
    2. In turns: what the texts are tokenized to, most frequent first, and the vocabulary's own order, which in BERT's
       is by frequency in Wikipedia and books.
    """
    vocabulary: dict[str, int] = document["model"]["vocab"]
    seen = Counter(piece for row in backend_of(document).encode_batch(list(texts)) for piece in row.tokens)
    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    kept = dict.fromkeys(piece for piece in by_id if piece in SPECIAL or _is_character(piece))  # 1
    by_texts = sorted(seen, key=lambda piece: (-seen[piece], vocabulary[piece]))
    general = [piece for piece in by_id if not piece.startswith("[unused") and piece.isascii()]
    kept |= dict.fromkeys(piece for pair in zip_longest(by_texts, general) for piece in pair if piece)  # 2
    chosen = set(list(kept)[:size])
    return [piece for piece in by_id if piece in chosen]


def _is_character(piece: str) -> bool:
    bare = piece.removeprefix("##")
    return len(bare) == 1 and any(first <= ord(bare) <= last for first, last in CHARACTERS)


def cut(document: dict[str, Any], pieces: list[str]) -> dict[str, Any]:
    """The tokenizer.json of these pieces alone, numbered from 0 in their order, without padding or truncation."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    document = json.loads(json.dumps(document)) | {"padding": None, "truncation": None}
    document["model"]["vocab"] = ids
    document["added_tokens"] = [token | {"id": ids[token["content"]]} for token in document["added_tokens"]]
    for name, token in document["post_processor"]["special_tokens"].items():
        token["ids"] = [ids[name]]
    return document


def fit(document: dict[str, Any], texts: Iterable[str]) -> dict[str, float]:
    """How texts fall into pieces: words, pieces a word, the fraction of words that are [UNK] or split."""
    backend = backend_of(document)
    words = pieces = unknown = split = 0
    for row in backend.encode_batch(list(texts), add_special_tokens=False):
        by_word = Counter(row.word_ids)
        words += len(by_word)
        pieces += len(row.ids)
        unknown += row.tokens.count("[UNK]")
        split += sum(count > 1 for count in by_word.values())
    return {"words": words, "pieces a word": pieces / words, "unknown": unknown / words, "split": split / words}


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
