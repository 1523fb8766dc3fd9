"""The model that comes with ditto: its size, its words, and what it says of clear sentences."""

from __future__ import annotations

import pytest
import torch

from ditto.engine.plain import run_plain
from ditto.models import (
    Checkpoint,
    Plan,
    compile_stage,
    decode_outputs,
    encode_inputs,
    import_calibrated,
    load_checkpoint,
)
from ditto.models.shipped import sentiment_directory
from scripts.sentiment import vocabulary

POSITIVE = (
    "A wonderful film, warm and funny from the first minute to the last.",
    "I love this restaurant, the food was excellent.",
    "The actors are brilliant and the music is beautiful.",
    "An inspiring, moving and thoughtful story.",
)
NEGATIVE = (
    "A terrible film: boring, stupid and far too long.",
    "The worst hotel that I have ever stayed in.",
    "The plot is a mess and the jokes are not funny.",
    "I was disappointed, it is a complete waste of money.",
)


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load_checkpoint(sentiment_directory())


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in sentiment_directory().iterdir()) <= 12_000_000


def test_every_english_word_falls_into_pieces(shipped: Checkpoint) -> None:
    tokenizer = shipped.tokenizer()
    unknown = tokenizer.encode(["✈"], 16).ids[0, 1].item()
    text = "Zyzzyva, antidisestablishmentarianism: the café's 1,024 quizzical ex-jockeys’ “naïve” e-mail… £9.99 (50 %)!"
    ids = tokenizer.encode([text], shipped.dimensions.positions).ids
    assert unknown not in ids.flatten().tolist()
    assert tokenizer.size == shipped.dimensions.vocabulary, "no row of the table without a piece"


def test_a_cut_vocabulary_is_numbered_throughout() -> None:
    document = vocabulary.read(sentiment_directory() / "tokenizer.json")
    seen = ["a warm film", "a warm and quizzical film"] * 50
    pieces = vocabulary.chosen_pieces(document, seen, 700)
    assert len(pieces) == 700 and {*vocabulary.SPECIAL, "warm", "film", "##z", "q"} <= set(pieces)
    small = vocabulary.backend_of(vocabulary.cut(document, pieces))
    assert sorted(small.get_vocab().values()) == list(range(700))
    row = small.encode("A warm zebra")
    assert (row.tokens[:3], row.tokens[-1]) == (["[CLS]", "a", "warm"], "[SEP]")
    assert row.ids == [pieces.index(token) for token in row.tokens]
    assert small.decode(row.ids) == "a warm zebra"
    assert vocabulary.fit(vocabulary.cut(document, pieces), ["warm zebra"])["split"] == 0.5


def test_clear_sentences_on_the_servers_integers(shipped: Checkpoint) -> None:
    description, weights = import_calibrated(shipped, "sentiment")
    batch = shipped.tokenizer().encode([*POSITIVE, *NEGATIVE], description.dimensions.positions)
    program = compile_stage(description, Plan(*batch.shape))
    outputs = run_plain(program, encode_inputs(description, program, batch), weights)
    logits = torch.tensor(decode_outputs(description, program, outputs, batch))
    labels = [description.dimensions.labels[i] for i in logits.argmax(-1).tolist()]
    assert labels == ["positive"] * len(POSITIVE) + ["negative"] * len(NEGATIVE)
    # not derived: what the roundings of one forward make of logits that lie in the tens
    torch.testing.assert_close(logits, torch.tensor(shipped.reference(batch)), rtol=0, atol=0.25)
