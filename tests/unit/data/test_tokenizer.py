"""Tokenizers: the same each time, and loadable by transformers without a network."""

import subprocess
import sys

import pytest
from small_corpus import make, sentences

from hvd_llm.data import open_dataset, tokenizer
from hvd_llm.errors import UserError

TEXTS = [*sentences(300), "Grüße naïve Ελλάδα 東京 ##odd"]
TRAIN = """
import hashlib, random
from hvd_llm.data import tokenizer
words = "aa ab ba bb abc cab Übung naïve x1 x2 x3".split()
texts = [" ".join(random.Random(n).choices(words, k=9)) for n in range(200)]
print(hashlib.sha256(tokenizer.train({kind!r}, texts, 300, False).to_str().encode()).hexdigest())
"""


@pytest.mark.parametrize("kind", tokenizer.TRAINED)
def test_training_gives_the_same_in_every_process(kind):
    """Hash maps of the trainers are seeded anew in each process."""
    command = [sys.executable, "-c", TRAIN.format(kind=kind)]
    found = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(4)}
    assert len(found) == 1


def test_bpe_gives_back_every_text(causal):
    loaded = causal.tokenizer()
    for text in [*TEXTS[-2:], "  indented\n\ttab \x00"]:
        assert loaded.decode(loaded(text).input_ids) == text
    assert loaded.vocab_size <= causal.vocabulary == 512
    assert loaded.eos_token_id == loaded.bos_token_id == causal.special["end"] == 0
    assert loaded.pad_token_id == causal.special["pad"] == 1


def test_wordpiece_is_bert_like(masked):
    loaded = masked.tokenizer()
    tokens = loaded.convert_ids_to_tokens(loaded("the cat").input_ids)
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert loaded.decode(loaded("walked quickly").input_ids, skip_special_tokens=True) == "walked quickly"
    assert loaded.mask_token_id == masked.special["mask"]
    assert sorted(masked.special[role] for role in ("pad", "unk", "cls", "sep", "mask")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", tokenizer.TRAINED)
def test_lowercase(kind):
    trained = tokenizer.train(kind, TEXTS, 400, lowercase=True)
    assert trained.encode("The CAT").ids == trained.encode("the cat").ids


@pytest.mark.parametrize("kind", tokenizer.TRAINED)
def test_names_of_special_tokens_in_a_text_are_text(kind, tmp_path):
    """Nobody can end a document, or mask a word, by writing so."""
    (tmp_path / "a.jsonl").write_text('{"text": "a <|endoftext|> b [MASK] [SEP]"}\n{"text": "b"}\n')
    make(tmp_path / "out", tmp_path / "a.jsonl", tokenizer=kind)
    dataset = open_dataset(tmp_path / "out")
    for name in ("train", "validation"):
        tokens = dataset.split(name).document(0)
        ordinary = set(dataset.index.tokenizer.special_ids) - {dataset.special.get("unk")}
        assert not ordinary & set(tokens[:-1].tolist())


def test_a_given_tokenizer_is_taken_as_it_is(causal, masked, texts, tmp_path):
    for given in (causal, masked):
        index = make(tmp_path / given.folder.name, texts, tokenizer=str(given.folder / "tokenizer"))
        assert index.tokenizer.vocabulary == given.vocabulary
        assert index.tokenizer.special == given.special
        mine, theirs = (path / "tokenizer" / "tokenizer.json" for path in (tmp_path / given.folder.name, given.folder))
        assert mine.read_bytes() == theirs.read_bytes()


def test_choices_that_cannot_be(tmp_path, texts):
    for settings, message in [
        ({"tokenizer": "unigram"}, "bpe, wordpiece, or a folder"),
        ({"vocabulary": 100}, "258 or more"),
        ({"tokenizer": str(tmp_path), "lowercase": True}, "cannot be loaded|--lowercase"),
    ]:
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(UserError, match=message):
            make(tmp_path / "out", texts, **settings)
    with pytest.raises(UserError, match="cannot be loaded"):
        make(tmp_path / "out", texts, tokenizer=str(tmp_path))
