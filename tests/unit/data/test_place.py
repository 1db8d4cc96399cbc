"""Documents to splits and shards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_llm.data import place
from hvd_llm.errors import UserError


def digests_of(count):
    return np.random.default_rng(count).integers(0, 2**63, (count, 2)).astype(np.uint64)


@settings(deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(1, 12))
def test_shards_are_balanced_and_complete(lengths, shards):
    lengths = np.array(lengths)
    divided = place.balance(digests_of(len(lengths)), lengths, shards)
    assert sorted(np.concatenate(divided).tolist()) == list(range(len(lengths)))
    assert len(divided) == min(shards, len(lengths))
    held = [lengths[shard].sum() for shard in divided]
    assert max(held) - min(held) <= lengths.max()


def test_inside_a_shard_hash_order_rules():
    digests = digests_of(100)
    for shard in place.balance(digests, np.arange(100), 3):
        assert (np.diff(digests[shard][:, 0].astype(float)) >= 0).all()


@settings(deadline=None)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=200), st.floats(0.001, 0.999))
def test_validation_has_its_share(sizes, share):
    sizes = np.array(sizes)
    chosen = place.draw_validation(digests_of(len(sizes)), sizes, share)
    assert 0 < chosen.sum() < len(sizes)
    assert abs(sizes[chosen].sum() - share * sizes.sum()) <= sizes.max() + 1


def test_one_document_cannot_be_divided():
    with pytest.raises(UserError, match="two or more"):
        place.draw_validation(digests_of(1), np.array([5]), 0.5)
