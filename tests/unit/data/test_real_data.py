"""Real texts, where they are at hand."""

import numpy as np
from small_corpus import make

from hvd_llm.data import Batches, open_dataset


def test_one_book(shared, tmp_path):
    made = make(tmp_path / "out", shared / "tinyshakespeare.txt", vocabulary=1024)
    train, validation = ([shard.tokens for shard in made.splits[name]] for name in ("train", "validation"))
    assert len(train) == 8
    assert max(train) / min(train) < 1.02
    assert 0.01 < sum(validation) / sum(train + validation) < 0.05
    batches = Batches(open_dataset(tmp_path / "out"), sequence_length=128)
    assert batches.samples > 2000


def test_sentiment(shared, tmp_path):
    folder = shared / "sst2"
    make(
        tmp_path / "out",
        folder / "train.tsv",
        [folder / "dev.tsv"],
        [folder / "test.tsv"],
        kind="classify",
        tokenizer="wordpiece",
        vocabulary=2000,
        lowercase=True,
    )
    dataset = open_dataset(tmp_path / "out")
    assert dataset.labels == ["0", "1"]
    assert [dataset.split(name).documents for name in ("validation", "test")] == [872, 1821]
    assert 6900 <= dataset.split("train").documents <= 6920
    truth = [int(line[-1]) for line in (folder / "dev.tsv").read_text().splitlines()]
    assert dataset.split("validation").document_labels.tolist() == truth


def test_encyclopedia(shared, tmp_path):
    folder = shared / "wikitext2"
    make(
        tmp_path / "out", folder / "valid.txt", test_source=[folder / "test.txt"], vocabulary=1024, near_duplicates=True
    )
    test = open_dataset(tmp_path / "out").split("test")
    lengths = np.diff(test.starts)
    assert 60 < test.documents < 160
    assert lengths.max() < 8000
