"""Masks: how many, of what kind, and that nobody's rank changes them."""

import numpy as np
import pytest
import torch

from hvd_llm.data import Batches
from hvd_llm.data.words import word_starts
from hvd_llm.errors import UserError


def masked_batches(dataset, **settings):
    return Batches(dataset, task="masked", **{"sequence_length": 64, "global_batch": 16, "seed": 3} | settings)


def epoch(batches, key):
    return torch.cat([batches.at(step)[key] for step in range(batches.steps_per_epoch)]).numpy()


def plain(dataset):
    """The same windows, nothing masked, in stored order: tokens and a batch maker."""
    split, length = dataset.split("train"), 62
    return split.stream(0, split.tokens // length * length).reshape(-1, length)


@pytest.mark.parametrize("whole_word", [False, True])
def test_masks_80_10_10(masked, whole_word):
    batches = masked_batches(masked, whole_word=whole_word, shuffle=False, mask_rate=0.2)
    inputs, labels = epoch(batches, "input_ids"), epoch(batches, "labels")
    tokens = plain(masked)
    chosen = labels != -100
    assert np.array_equal(labels[chosen], tokens[chosen[:, 1:-1]])
    assert np.array_equal(inputs[:, 1:-1][~chosen[:, 1:-1]], tokens[~chosen[:, 1:-1]])
    assert (inputs[:, 0] == masked.special["cls"]).all()
    assert (inputs[:, -1] == masked.special["sep"]).all()

    special = masked.index.tokenizer.special_ids
    assert not np.isin(labels[chosen], special).any()
    assert (chosen.sum(1) >= 1).all()
    ordinary = (~np.isin(tokens, special)).sum()
    assert abs(chosen.sum() / ordinary - 0.2) < 0.01
    count = chosen.sum()
    error = 4 * np.sqrt(0.25 / count)
    is_mask = inputs[chosen] == masked.special["mask"]
    changed = (inputs[chosen] != labels[chosen]) & ~is_mask
    assert abs(is_mask.mean() - 0.8) < error
    assert abs(changed.mean() - 0.1) < error
    assert not np.isin(inputs[chosen][changed], special).any()


def test_masks_do_not_depend_on_ranks_but_on_the_epoch(masked):
    batches = masked_batches(masked)
    for size in (2, 3, 7):
        for rank in range(size):
            for key in ("input_ids", "labels"):
                assert torch.equal(batches.at(5, rank, size)[key], batches.at(5)[key][rank::size])
    fixed = masked_batches(masked, shuffle=False)
    assert not torch.equal(fixed.at(0)["labels"], fixed.at(fixed.steps_per_epoch)["labels"])
    assert not torch.equal(fixed.at(0)["labels"], masked_batches(masked, shuffle=False, seed=4).at(0)["labels"])


def test_whole_words_are_chosen_whole(masked):
    batches = masked_batches(masked, whole_word=True, shuffle=False)
    labels, tokens = epoch(batches, "labels")[:, 1:-1], plain(masked)
    continues = np.char.startswith(np.array(masked.tokenizer().convert_ids_to_tokens(range(masked.vocabulary))), "##")
    assert continues[tokens].mean() > 0.2, "the vocabulary is too large for this test to mean something"
    joined = continues[tokens[:, 1:]]
    assert np.array_equal((labels != -100)[:, 1:][joined], (labels != -100)[:, :-1][joined])


def test_word_starts_of_byte_level_tokens(causal):
    tokens = np.array([causal.tokenizer()("walked quickly(seven) 12").input_ids])
    pieces = causal.tokenizer().convert_ids_to_tokens(tokens[0])
    words = []
    for piece, start in zip(pieces, word_starts(causal)(tokens)[0], strict=True):
        if start:
            words.append("")
        words[-1] += piece
    assert words == ["walked", "Ġquickly", "(", "seven", ")", "Ġ12"]


def test_sequences_must_hold_a_token(masked):
    with pytest.raises(UserError, match="3 or more"):
        masked_batches(masked, sequence_length=2)
