"""A label per document, a label per word."""

import itertools

import numpy as np
import pytest
import torch
from small_corpus import make, sentences

from hvd_llm.data import Batches, open_dataset, targets
from hvd_llm.data.embedded import NAME
from hvd_llm.errors import UserError


def test_documents_are_framed_cut_and_padded(classify):
    batches = Batches(classify, task="classify", sequence_length=16, global_batch=8)
    split, special = classify.split("train"), classify.special
    for step in range(5):
        samples = batches.global_samples(step)
        batch = batches.at(step)
        assert batch["labels"].tolist() == split.document_labels[samples].tolist()
        for sample, tokens, mask in zip(samples, batch["input_ids"], batch["attention_mask"], strict=True):
            expected = [special["cls"], *split.document(sample)[:14], special["sep"]]
            assert tokens[: len(expected)].tolist() == expected
            assert (tokens[len(expected) :] == special["pad"]).all()
            assert mask.tolist() == [1] * len(expected) + [0] * (len(tokens) - len(expected))
    assert batches.at(0)["input_ids"].shape[1] <= 16


def test_the_labels_are_the_right_ones(classify):
    tokenizer, split = classify.tokenizer(), classify.split("validation")
    assert classify.labels == ["long", "short"]
    for number in range(split.documents):
        text = tokenizer.decode(split.document(number))
        if abs(len(text) - 60) > 12:  # decoding adds spaces
            assert classify.labels[split.document_labels[number]] == ("long" if len(text) > 60 else "short")


def test_batches_hold_similar_lengths(classify):
    grouped = Batches(classify, task="classify", sequence_length=128, global_batch=8)
    plain = Batches(classify, task="classify", sequence_length=128, global_batch=8, shuffle=False)

    def padding(batches):
        masks = [batches.at(step)["attention_mask"] for step in range(batches.steps_per_epoch)]
        return sum(int((1 - mask).sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding(grouped) < 0.4 * padding(plain)
    widths = [grouped.at(step)["input_ids"].shape[1] for step in range(40)]
    assert abs(np.corrcoef(range(40), widths)[0, 1]) < 0.5, "the order of batches must not follow the length"


def test_padding_is_per_micro_batch(classify):
    batches = Batches(classify, task="classify", sequence_length=128, global_batch=64, shuffle=False)
    parts = batches.micro_batches(0, micro_batch=4)
    assert len({part["input_ids"].shape[1] for part in parts}) > 1
    assert all(part["attention_mask"].sum(1).max() == part["input_ids"].shape[1] for part in parts)
    assert batches.at(0, rank=70, size=80)["labels"].shape == (0,)


@pytest.mark.parametrize("tokenizer", ["wordpiece", "bpe"])
def test_tags_go_to_the_first_token_of_a_word(tokenizer, tmp_path):
    rows = []
    for sentence in sentences(80, 9):
        rows += [f"{word} NN {'NUM' if word[0].isdigit() else 'B-' + word[0]}" for word in sentence.split()] + [""]
    (tmp_path / "tags.conll").write_text("-DOCSTART- X O\n\n" + "\n".join(rows))
    make(tmp_path / "out", tmp_path / "tags.conll", kind="tag", tokenizer=tokenizer, vocabulary=300, validation=0.2)
    dataset = open_dataset(tmp_path / "out")
    assert "NUM" in dataset.labels
    batches, decode = Batches(dataset, task="tag", sequence_length=64, global_batch=8), dataset.tokenizer().decode
    words = 0
    for step in range(batches.steps_per_epoch):
        batch = batches.at(step)
        assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
        assert (batch["labels"][:, 0] == -100).all()
        assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
        for tokens, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            first = [*(labels != -100).nonzero().flatten().tolist(), len(tokens)]
            for start, stop in itertools.pairwise(first):
                word, name = decode(tokens[start:stop]).strip(), dataset.labels[labels[start]]
                assert word[0].isdigit() if name == "NUM" else word[0] == name[2]
        words += targets(batch)
    train, validation = (dataset.split(name) for name in ("train", "validation"))
    in_validation = sum((validation.token_labels(n) != -100).sum() for n in range(validation.documents))
    assert words + in_validation == sum(len(sentence.split()) for sentence in sentences(80, 9))
    assert train.documents + validation.documents == 80


def test_labels_that_are_numbers_keep_their_order(tmp_path):
    (tmp_path / "a.csv").write_text("label,text\n" + "".join(f"{n % 12},text number {n}\n" for n in range(60)))
    index = make(tmp_path / "out", tmp_path / "a.csv", kind="classify", tokenizer="wordpiece")
    assert index.labels == [str(n) for n in range(12)]


def test_one_label_is_no_task(tmp_path):
    (tmp_path / "a.csv").write_text("label,text\nx,one\nx,two\n")
    with pytest.raises(UserError, match="1 different labels"):
        make(tmp_path / "out", tmp_path / "a.csv", kind="classify")
    with pytest.raises(UserError, match="CoNLL"):
        make(tmp_path / "out2", NAME, kind="tag")


def test_ranks_share_tags(tmp_path, classify):
    batches = Batches(classify, task="classify", sequence_length=64, global_batch=12)
    whole = batches.at(4)
    for rank in range(3):
        mine = batches.at(4, rank, 3)
        width = mine["input_ids"].shape[1]
        assert torch.equal(mine["input_ids"], whole["input_ids"][rank::3, :width])
        assert torch.equal(mine["labels"], whole["labels"][rank::3])
