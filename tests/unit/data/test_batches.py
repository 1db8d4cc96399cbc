"""Who gets which sample at which step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_llm.data import Batches, targets
from hvd_llm.errors import UserError

SIZES = (1, 2, 3, 4, 7)


def causal_batches(dataset, **changes):
    return Batches(dataset, **{"sequence_length": 32, "global_batch": 10, "seed": 3} | changes)


@pytest.mark.parametrize("name", ["causal", "masked", "classify"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_sample_comes_once_per_epoch(name, shuffle, request):
    batches = Batches(request.getfixturevalue(name), task=name, sequence_length=32, global_batch=10, shuffle=shuffle)
    for epoch in range(2):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        lists = [batches.global_samples(step) for step in steps]
        assert [len(samples) for samples in lists[:-1]] == [10] * (len(lists) - 1)
        assert sorted(np.concatenate(lists).tolist()) == list(range(batches.samples))


@settings(deadline=None, max_examples=30)
@given(step=st.integers(0, 10_000), size=st.sampled_from(SIZES))
def test_ranks_share_the_same_global_batch(causal, step, size):
    batches = causal_batches(causal)
    whole = batches.at(step)["input_ids"]
    for rank in range(size):
        assert torch.equal(batches.at(step, rank, size)["input_ids"], whole[rank::size])


def test_seeking_equals_iterating(causal):
    one, other = causal_batches(causal), causal_batches(causal)
    steps = 2 * one.steps_per_epoch + 3
    iterated = [one.at(step)["input_ids"] for step in range(steps)]
    for step in reversed(range(steps)):
        assert torch.equal(other.at(step)["input_ids"], iterated[step])


def test_order_depends_on_seed_and_epoch(causal):
    batches = causal_batches(causal)
    assert not np.array_equal(batches.global_samples(0), causal_batches(causal, seed=4).global_samples(0))
    assert not np.array_equal(batches.global_samples(0), batches.global_samples(batches.steps_per_epoch))
    assert np.array_equal(causal_batches(causal, shuffle=False).global_samples(1), np.arange(10, 20))


@pytest.mark.parametrize("size", SIZES)
def test_micro_batches_cut_the_share(causal, size):
    batches = causal_batches(causal)
    for step in (0, batches.steps_per_epoch - 1):
        for rank in range(size):
            share = batches.at(step, rank, size)["input_ids"]
            parts = batches.micro_batches(step, rank, size, micro_batch=2)
            assert all(1 <= len(part["input_ids"]) <= 2 for part in parts)
            assert torch.equal(torch.cat([part["input_ids"] for part in parts] or [share[:0]]), share)


def test_more_ranks_than_samples(causal):
    batches = causal_batches(causal, global_batch=2)
    assert batches.at(0, rank=5, size=7)["input_ids"].shape == (0, 32)
    assert batches.micro_batches(0, rank=5, size=7) == []


def test_causal_windows_are_the_stream(causal):
    """Windows lie end to end over documents and shards, and the end-of-text token ends each document."""
    split = causal.split("train")
    batches = causal_batches(causal, shuffle=False)
    first = batches.at(0)
    assert first["input_ids"].dtype == torch.int64
    assert torch.equal(first["input_ids"], first["labels"])
    windows = torch.cat([batches.at(step)["input_ids"] for step in range(batches.steps_per_epoch)]).flatten().numpy()
    documents = np.concatenate([split.document(number) for number in range(split.documents)])
    assert len(split.shards) == 3
    assert np.array_equal(windows, documents[: len(windows)])
    assert len(documents) - len(windows) < 32
    assert all(split.document(number)[-1] == causal.special["end"] for number in range(split.documents))
    assert (windows == causal.special["end"]).sum() <= split.documents


def test_targets_counts_what_the_loss_sees(causal, masked, classify):
    batch = causal_batches(causal).at(0)
    assert targets(batch) == 10 * 31  # the model shifts
    batch = Batches(masked, task="masked", sequence_length=32, global_batch=10).at(0)
    assert targets(batch) == int((batch["labels"] != -100).sum()) > 0
    assert targets(Batches(classify, task="classify", sequence_length=32, global_batch=10).at(0)) == 10


def test_wrong_task_or_too_little_text(causal, classify):
    with pytest.raises(UserError, match="--kind classify"):
        Batches(causal, task="classify")
    with pytest.raises(UserError, match="--kind text"):
        Batches(classify, task="causal")
    with pytest.raises(UserError, match="wordpiece"):
        Batches(causal, task="masked")
    with pytest.raises(UserError, match=r"data\.sequence_length = 100000"):
        Batches(causal, sequence_length=100_000)
    with pytest.raises(UserError, match="did you mean 'validation'"):
        Batches(causal, split="validatoin")
