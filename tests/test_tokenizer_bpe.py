"""Byte-level BPE: GPT-2's ids and texts, prompts with their padding, text token by token."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path

import pytest
import torch
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

from ditto.client.store import TOKENIZER_FILES
from ditto.errors import BadCheckpoint, EmptyText, TextTooLong, UsageError
from ditto.models.tokenizer import Tokenizer

DATA = Path(os.environ.get("DITTO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
GPT2 = DATA / "tokenizers" / "gpt2"
TEXTS = [
    "Hello world",
    " leading and  double   spaces\tand tabs ",
    "line\n\n\nbreaks\r\n  and indentation:\n\tif x == 1_000:",
    "I'll say they've won't isn't I'D SHE'LL 's",
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈 and 🙂!",
    "Größe, naïve café, São Paulo — “quotes” … €5",
    "日本語のテキスト。中文，한국어",
    "Привет, мир! Γειά σου Κόσμε नमस्ते दुनिया مرحبا שלום",
    "3.14159265 1234567890 x²₃ ½",
    "a<|endoftext|>b <|endoftext|>\n<|endoftext",
    "\u00a0\u2003\u200b\ufeff\ufffd\x00\x7f",
    "e\u0301 combining, \U0001d573\U0001d58e math",
    "\n",
    "   ",
]


def alphabet() -> list[str]:
    """The characters of the 256 bytes, in the order of the bytes, as the GPT-2 release defines them."""
    own = [n for n in range(256) if 33 <= n <= 126 or 161 <= n <= 172 or 174 <= n <= 255]
    spare = iter(range(256, 512))
    return [chr(n) if n in own else chr(next(spare)) for n in range(256)]


@pytest.fixture
def tiny(tmp_path: Path) -> Tokenizer:
    """256 bytes, five merges and the end of text, which has id 256 + 5."""
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "hell"), (alphabet()[0xF0], alphabet()[0x9F])]
    pieces = [*alphabet(), *("".join(pair) for pair in merges), "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return Tokenizer.load(tmp_path)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    if not (GPT2 / "vocab.json").exists():
        assert not os.environ.get("CI"), f"GPT-2's vocabulary must be there in CI: {GPT2}"
        pytest.skip(f"no vocab.json under {GPT2} (set DITTO_TEST_DATA)")
    return Tokenizer.load(GPT2)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    row: list[int] = tokenizer.encode_prompts([text], 4096, bucket=False).ids[0].tolist()
    return row


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in tokens), stream.finish()]


def test_merges_and_bytes(tiny: Tokenizer) -> None:
    assert ids(tiny, "hell hello") == [258, 259, ord("o")]
    assert ids(tiny, "hé<|endoftext|>🙂") == [ord("h"), 0xC3, 0xA9, 261, 260, 0x99, 0x82]
    assert tiny.end_of_text == 261
    assert [tiny.decode(ids(tiny, text)) for text in TEXTS] == TEXTS


def test_prompts_are_padded_to_buckets(tiny: Tokenizer) -> None:
    prompts = tiny.encode_prompts(["hell", "abc"], 100)
    assert prompts.shape == (2, 16) and prompts.lengths == [1, 3] and prompts.ids.dtype == torch.int64
    assert prompts.ids.tolist() == [[258] + [261] * 15, [97, 98, 99] + [261] * 13]
    assert tiny.encode_prompts(["hell", "abc"], 100, bucket=False).ids.tolist() == [[258, 261, 261], [97, 98, 99]]
    assert tiny.encode_prompts([" "], 3).lengths == [1]
    with pytest.raises(TextTooLong, match="21 tokens"):
        tiny.encode_prompts(["a", "a" * 21], 20)
    for empty in ([], [""], ["a", ""]):
        with pytest.raises(EmptyText):
            tiny.encode_prompts(empty, 20)


@pytest.mark.parametrize("limit", [7, 16, 20, 512, 514, 600, 1024, 1500, 40_000])
def test_a_length_shows_as_its_bucket_only(tiny: Tokenizer, limit: int) -> None:
    """Powers of two up to the model's limit, then the limit itself, for texts and for prompts."""
    seen = set()
    for length in sorted({*range(1, min(limit, 40) + 1), *(n for n in range(1, limit, 97)), limit // 2 + 1, limit}):
        below = [2**k for k in range(4, 16) if length <= 2**k <= limit]
        width = min(below) if below else limit
        assert tiny.encode(["a" * length], limit).shape == (1, width)
        assert tiny.encode_prompts(["a" * length], limit).shape == (1, width)
        seen.add(width)
    assert len(seen) == sum(2**k < limit for k in range(4, 16)) + 1
    for encode in (tiny.encode, tiny.encode_prompts):
        with pytest.raises(TextTooLong):
            encode(["a" * (limit + 1)], limit)


def test_streaming_emits_whole_characters(tiny: Tokenizer) -> None:
    assert streamed(tiny, ids(tiny, "hé🙂!")) == ["h", "", "é", "", "", "🙂", "!", ""]
    assert streamed(tiny, [0xE2, 0x82]) == ["", "", "\ufffd"]
    assert streamed(tiny, [0xE2, ord("x"), 261]) == ["", "\ufffdx", "<|endoftext|>", ""]
    for text in TEXTS:
        assert "".join(streamed(tiny, ids(tiny, text))) == text


def test_streaming_equals_decoding_of_any_tokens(tiny: Tokenizer) -> None:
    """Broken UTF-8, too, as a model may well produce it."""
    choice = random.Random(1)
    high = [*range(0x7E, 0x100), 260, 261]
    for length in range(1, 200):
        tokens = choice.choices(high, k=length)
        assert "".join(streamed(tiny, tokens)) == tiny.decode(tokens)


def test_streaming_an_empty_or_ended_text(tiny: Tokenizer) -> None:
    assert tiny.stream().finish() == ""
    assert streamed(tiny, [10**6, ord("x"), 10**6]) == ["", "x", "", ""], "no such token: no text"
    replacement = list("\ufffd".encode())  # the character itself, not what stands for broken bytes
    assert "".join(streamed(tiny, [*replacement, *replacement])) == "\ufffd\ufffd"


def test_size_counts_added_tokens_and_gaps(tiny: Tokenizer, tmp_path: Path) -> None:
    assert tiny.size == 262
    (tmp_path / "gap").mkdir()
    (tmp_path / "gap" / "vocab.json").write_text(json.dumps({"a": 0, "b": 9}))
    (tmp_path / "gap" / "merges.txt").write_text("#version: 0.2\n")
    assert Tokenizer.load(tmp_path / "gap").size == 10


def test_without_an_end_of_text(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(alphabet())}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.end_of_text is None
    assert tokenizer.encode_prompts(["ab"], 4).ids.tolist() == [[97, 98, 98, 98]]


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    assert {"vocab.json", "merges.txt"} <= set(TOKENIZER_FILES)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(BadCheckpoint, match="neither"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(BadCheckpoint, match=r"vocab\.json"):
        Tokenizer.load(tmp_path)


def test_only_byte_level_vocabularies_stream() -> None:
    words = BertWordPieceTokenizer({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3})
    with pytest.raises(UsageError, match="byte-level"):
        Tokenizer(words._tokenizer).stream()


def test_gpt2_known_ids(gpt2: Tokenizer) -> None:
    assert gpt2.end_of_text == 50256
    assert ids(gpt2, "Hello world") == [15496, 995]


def test_gpt2_equals_transformers(gpt2: Tokenizer) -> None:
    from transformers import GPT2TokenizerFast

    theirs = GPT2TokenizerFast(str(GPT2 / "vocab.json"), str(GPT2 / "merges.txt"))
    for text in TEXTS:
        want = theirs(text).input_ids
        assert ids(gpt2, text) == want
        assert gpt2.decode(want) == theirs.decode(want, clean_up_tokenization_spaces=False) == text
        assert "".join(streamed(gpt2, want)) == text


def test_gpt2_equals_the_published_algorithm(gpt2: Tokenizer) -> None:
    """The encoder of the GPT-2 release: its pattern, then the merges of the lowest rank first."""
    import regex

    pattern = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    vocabulary = json.loads((GPT2 / "vocab.json").read_text())
    lines = (GPT2 / "merges.txt").read_text().split("\n")[1:-1]
    ranks = {tuple(line.split()): i for i, line in enumerate(lines)}
    characters = alphabet()

    def encode(text: str) -> list[int]:
        out = []
        for word in pattern.findall(text):
            pieces = [characters[byte] for byte in word.encode()]
            while len(pieces) > 1:
                rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(pieces)))
                if rank == len(ranks):
                    break
                pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
            out += [vocabulary[piece] for piece in pieces]
        return out

    for text in TEXTS:
        if "<|endoftext|>" not in text:
            assert ids(gpt2, text) == encode(text)
