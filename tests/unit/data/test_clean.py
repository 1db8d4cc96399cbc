"""Cleaning text and cutting it into documents."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_llm.data.clean import WHITESPACE, clean, clean_words
from hvd_llm.data.documents import cut
from hvd_llm.data.place import balance


@pytest.mark.parametrize(
    ("dirty", "whitespace", "tidy"),
    [
        ("def f():\r\n\treturn 1  \r\n", "lines", "def f():\n\treturn 1"),
        ("    indented\n\n\n\n\n\nafter", "lines", "    indented\n\n\nafter"),
        ("one\n  two\u00a0three ", "collapse", "one two three"),
        ("one\n  two ", "keep", "one\n  two "),
        ("e\u0301", "lines", "\u00e9"),
        ("\ufeffa\x00b\x1b[0m\u200bc\x0c", "lines", "ab[0mc"),
        ("half \ud83d only", "lines", "half \ufffd only"),
    ],
)
def test_clean(dirty, whitespace, tidy):
    assert clean(dirty, whitespace) == tidy


@settings(deadline=None)
@given(st.text(), st.sampled_from(WHITESPACE))
def test_clean_is_idempotent_and_encodable(text, whitespace):
    once = clean(text, whitespace)
    once.encode()
    assert clean(once, whitespace) == once
    assert unicodedata.is_normalized("NFC", once)


def test_words_keep_their_number():
    assert clean_words("one\n\u200b\nthree four").split("\n") == ["one", "\ufffd", "three four"]


@settings(deadline=None)
@given(st.text(alphabet="ab \n", max_size=400), st.integers(8, 50))
def test_cutting_loses_nothing(text, longest):
    parts = list(cut(text, longest))
    assert "".join(parts) == text
    assert all(len(part) <= longest for part in parts)
    assert len(parts) <= 1 + len(text) // max(1, longest // 20)


def test_cuts_lie_between_paragraphs_where_possible():
    parts = list(cut("\n\n".join("word " * 8 for _ in range(500)), 2000))
    assert all(part.endswith("\n\n") for part in parts[:-1])


def test_pieces_divide_evenly():
    """A book whose pieces were all alike would leave some shards one piece short."""
    sizes = np.array([len(part) for part in cut("word " * 200_000)])
    held = [sizes[shard].sum() for shard in balance(np.random.default_rng(1).integers(0, 9, (len(sizes), 2)), sizes, 8)]
    assert max(held) / min(held) < 1.01
