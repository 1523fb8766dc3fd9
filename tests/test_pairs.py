"""Texts and pairs of texts: as a user writes them, and as the tokenizers of encoders make token ids of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from typer.testing import CliRunner

from ditto.cli import app
from ditto.cli.run import encode_all
from ditto.cli.texts import pair_up, read_lines, split_pair
from ditto.errors import BadCheckpoint, EmptyText, TextTooLong, UsageError
from ditto.models.tokenizer import Text, Tokenizer

WORDS = "the a cat dog sat ##s run ##ning cafe café Cat Éa é . , ! ? < > / mask [ ] sep cls 中 文".split()
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MPNET = ["<s>", "<pad>", "</s>", "<unk>"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("Ġ", "d")]
TEXTS: list[Text] = [
    "the cat sat.",
    "The Cat runs, CAFÉ café! Éa?",
    " a dog  running ",
    "中文 dog 🙂",
    "the [SEP] cat </s> sat <s> a [CLS] dog<mask> [MASK]",
    "<S> [sep] <MASK> unknown words",
]
TEXTS += [(a, b) for a, b in itertools.pairwise(TEXTS) if isinstance(a, str) and isinstance(b, str)]


def words(directory: Path, names: list[str], last: tuple[str, ...] = ()) -> Path:
    (directory / "vocab.txt").write_text("\n".join([*names, *WORDS, *last]) + "\n", encoding="utf-8")
    return directory


def pieces(directory: Path) -> Path:
    """Roberta's files: special tokens, 256 bytes, some merges."""
    own = [n for n in range(256) if 33 <= n <= 126 or 161 <= n <= 172 or 174 <= n <= 255]
    alphabet = [chr(n) for n in own] + [chr(256 + i) for i in range(256 - len(own))]
    names = [*ROBERTA, *alphabet, *("".join(pair) for pair in MERGES), "<mask>"]
    (directory / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    return directory


def configure(directory: Path, options: dict[str, Any]) -> None:
    if options:
        (directory / "tokenizer_config.json").write_text(json.dumps(options))


def agree(ours: Tokenizer, theirs: Any) -> None:
    """The same ids and token types, text by text, less the padding."""
    for text in TEXTS:
        want = theirs(*(text if isinstance(text, tuple) else (text,)), return_token_type_ids=True)
        batch, n = ours.encode([text], 512), len(want.input_ids)
        assert batch.ids[0, :n].tolist() == want.input_ids, text
        assert batch.types[0, :n].tolist() == want.token_type_ids, text
        assert batch.mask[0].tolist() == [1] * n + [0] * (batch.shape[1] - n)


CASES = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("kind", ["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"])
def test_bert_and_its_kin(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    configure(words(tmp_path, BERT), options)
    ours = Tokenizer.load(tmp_path)
    agree(ours, getattr(transformers, kind).from_pretrained(tmp_path))
    assert ours.size == len(BERT) + len(WORDS)
    (pair,) = ours.encode([("the cat", "a dog")], 512).types.tolist()
    assert pair == [0] * 4 + [1] * 12, "padding has the type of the last token"


@pytest.mark.parametrize("options", CASES)
def test_mpnet(tmp_path: Path, options: dict[str, Any]) -> None:
    """Its vocabulary holds BERT's, [CLS] and [SEP] included."""
    configure(words(tmp_path, [*MPNET, *BERT], ("<mask>",)), options)
    ours = Tokenizer.load(tmp_path)
    agree(ours, transformers.MPNetTokenizer.from_pretrained(tmp_path))
    (ids,) = ours.encode([("the", "a")], 512).ids.tolist()
    assert ids == [0, 9, 2, 2, 10] + [2] * 11


@pytest.mark.parametrize("options", [{}, {"add_prefix_space": True}, {"add_prefix_space": False}])
def test_roberta(tmp_path: Path, options: dict[str, Any]) -> None:
    configure(pieces(tmp_path), options)
    ours = Tokenizer.load(tmp_path)
    agree(ours, transformers.RobertaTokenizer.from_pretrained(tmp_path))
    batch = ours.encode([("cat", "dog")], 512)
    assert batch.ids[0, 0] == 0 and (batch.ids[0] == 2).sum() > 3 and not batch.types.any()
    assert ours.end_of_text is None


def test_a_gpt2_with_the_tokens_of_roberta_has_no_end(tmp_path: Path) -> None:
    (pieces(tmp_path) / "config.json").write_text('{"model_type": "gpt2"}')
    assert Tokenizer.load(tmp_path).encode_prompts(["cat"], 8, bucket=False).lengths == [1]
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    assert Tokenizer.load(tmp_path).encode_prompts(["cat"], 8, bucket=False).lengths == [3]


def saved(directory: Path, kind: str) -> tuple[Path, Any]:
    """A tokenizer.json as transformers writes it."""
    source = directory / "source"
    source.mkdir()
    if kind == "RobertaTokenizer":
        theirs = transformers.RobertaTokenizer.from_pretrained(pieces(source))
    elif kind == "XLMRobertaTokenizer":
        marks = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        texts = ["▁", "▁the", "▁cat", "cat", "▁a", "▁dog", "▁sat", ".", "s", "t", "a", "<mask>"]
        theirs = transformers.XLMRobertaTokenizer(vocab=marks + [(text, -1.0 - i) for i, text in enumerate(texts)])
    else:
        special = (BERT, ()) if kind == "BertTokenizer" else ([*MPNET, *BERT], ("<mask>",))
        theirs = getattr(transformers, kind).from_pretrained(words(source, *special))
    theirs.save_pretrained(directory)
    assert (directory / "tokenizer.json").exists()
    return directory, theirs


@pytest.mark.parametrize("kind", ["BertTokenizer", "MPNetTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer"])
def test_saved_tokenizers(tmp_path: Path, kind: str) -> None:
    directory, theirs = saved(tmp_path, kind)
    agree(Tokenizer.load(directory), theirs)
    assert Tokenizer.load(directory).size == len(theirs)


def test_added_tokens_count(tmp_path: Path) -> None:
    directory, theirs = saved(tmp_path, "BertTokenizer")
    before = Tokenizer.load(directory).size
    theirs.add_tokens(["newword", "[ENTITY]"])
    theirs.save_pretrained(directory)
    ours = Tokenizer.load(directory)
    assert ours.size == before + 2 and ours.encode(["newword"], 512).ids[0, 1] == before


def test_tokenizers_that_are_none(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(BadCheckpoint, match=match):
            Tokenizer.load(tmp_path)

    refused("neither tokenizer.json, vocab.txt")
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\n")
    refused(r"sentencepiece\.bpe\.model alone is not read.*AutoTokenizer")
    words(tmp_path, ["[PAD]", "[UNK]"])
    refused(r"vocab\.txt: neither \[CLS\] and \[SEP\] nor <s> and </s>")
    words(tmp_path, BERT)
    for wrong, match in (("{", r"tokenizer_config\.json"), ("[]", "an object"), ('{"do_lower_case": "no"}', "true or")):
        (tmp_path / "tokenizer_config.json").write_text(wrong)
        refused(match)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": null}')
    assert Tokenizer.load(tmp_path).size == len(BERT) + len(WORDS)
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(r"tokenizer\.json: ")


def test_texts_and_pairs_share_a_batch(tmp_path: Path) -> None:
    """Each row is what it is alone: padding of one kind does not come from the other."""
    ours = Tokenizer.load(words(tmp_path, BERT))
    mixed: list[Text] = ["the cat", ("the cat", "a dog sat"), ("the cat " * 10, "a")]
    batch = ours.encode(mixed, 512)
    assert batch.shape == (3, 32)
    for i, text in enumerate(mixed):
        alone = ours.encode([text], 512)
        n = int(alone.mask.sum())
        assert batch.ids[i, :n].tolist() == alone.ids[0, :n].tolist() and int(batch.mask[i].sum()) == n
        assert set(batch.ids[i, n:].tolist()) == {BERT.index("[SEP]")}
        assert set(batch.types[i, n - 1 :].tolist()) == {int(isinstance(text, tuple))}
    jobs = encode_all(ours, mixed * 3, 512)
    assert [job.shape for job in jobs] == [(8, 32), (1, 32)]


def test_empty_segments_and_long_pairs(tmp_path: Path) -> None:
    ours = Tokenizer.load(words(tmp_path, BERT))
    for empty in ([], [("", "a")], [("a", " \t")], ["a", ("a", "\n")]):
        with pytest.raises(EmptyText):
            ours.encode(empty, 512)
    assert ours.encode([("a " * 10, "the " * 7)], 20).shape == (1, 20)
    with pytest.raises(TextTooLong, match="21 tokens: this model takes at most 20"):
        ours.encode([("a " * 10, "the " * 8)], 20)
    bare = Tokenizer.load(words(tmp_path, BERT))._backend
    bare.post_processor = None
    with pytest.raises(EmptyText, match="without a token"):
        Tokenizer(bare).encode(["\u200b"], 512)


def test_lines() -> None:
    assert split_pair("a b") == "a b" and split_pair(" a\tb ") == (" a", "b ")
    content = "one\nfirst\tsecond\n  \nlast"
    assert read_lines(content, "F", skip_blank=True) == ["one", ("first", "second"), "last"]
    for wrong, error, match in (
        ("a\n\nb", EmptyText, "F, line 2 is empty"),
        ("a\nb\t", EmptyText, "F, line 2: the pair's second segment"),
        ("a\n\tb", EmptyText, "F, line 2: the pair's first segment"),
        ("a\tb\na\tb\tc", UsageError, "F, line 2: 2 tabs"),
    ):
        with pytest.raises(error, match=match):
            read_lines(wrong, "F")
    with pytest.raises(UsageError, match="line 3: 3 tabs") as refused:
        read_lines("\n\nprivate\t\t\t", "F", skip_blank=True)
    assert "private" not in str(refused.value)


def test_options_in_pairs() -> None:
    assert pair_up(["a", "b\tb"], []) == ["a", "b\tb"], "a tab makes a pair in files only"
    assert pair_up(["a", "b"], ["c", "d"]) == [("a", "c"), ("b", "d")]
    for texts, pairs in ((["a"], ["b", "c"]), (["a", "b"], ["c"]), ([], ["c"])):
        with pytest.raises(UsageError, match=f"{len(texts)} --text and {len(pairs)} --pair"):
            pair_up(texts, pairs)
    with pytest.raises(EmptyText, match="text 2 of 2: the pair's second segment"):
        pair_up(["a", "b"], ["c", ""])
    with pytest.raises(EmptyText, match="text 1 of 2 is empty"):
        pair_up(["", "b"], [])


def test_the_command_refuses_what_does_not_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITTO_HOME", str(tmp_path))
    tabs = tmp_path / "tabs.txt"
    tabs.write_text("a\tb\nc\nd\te\tf\n")

    def refused(*args: str, code: int) -> str:
        result = CliRunner().invoke(app, ["infer", "--model", "absent", *args])
        assert result.exit_code == code, result.output
        return result.stderr

    assert "2 --text and 1 --pair" in refused("--text", "a", "--text", "b", "--pair", "c", code=2)
    assert "tabs.txt, line 3: 2 tabs" in refused("--file", str(tabs), code=2).replace("\n", "")
    assert "second segment is empty" in refused("--text", "a", "--pair", " ", code=11)
    refused("--text", "a", "--pair", "b", code=12)
