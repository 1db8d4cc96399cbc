"""Duplicates, exact and near."""

import itertools
import random

import numpy as np
from small_corpus import make, paragraphs

from hvd_llm.data import dedup

UNIQUE = [" ".join(random.Random(seed).choices([f"word{n}" for n in range(3000)], k=300)) for seed in range(60)]


def near(texts):
    joined = [text.encode() for text in texts]
    starts = np.cumsum([0] + [len(text) for text in joined])
    return np.flatnonzero(dedup.near_duplicates(dedup.signatures(b"".join(joined), starts))).tolist()


def jaccard(one, other):
    """By definition, from sets of five words in a row."""
    sets = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one.split(), other.split())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def changed(text, count):
    words = text.split()
    for place in random.Random(count).sample(range(len(words)), count):
        words[place] = "changed"
    return " ".join(words)


def test_exact_duplicates_keep_the_first():
    digests = np.frombuffer(b"".join(dedup.digest(text) for text in (b"a", b"b", b"a", b"c", b"a")), np.uint64)
    assert dedup.exact_duplicates(digests.reshape(-1, 2)).tolist() == [False, False, True, False, True]


def test_near_duplicates_are_found_and_others_kept():
    almost = changed(UNIQUE[7], 4)
    assert jaccard(UNIQUE[7], almost) > 0.85
    assert near([*UNIQUE, almost]) == [60]
    assert near([almost, *UNIQUE]) == [8]
    half = changed(UNIQUE[7], 25)
    assert 0.3 < jaccard(UNIQUE[7], half) < 0.7
    assert near([*UNIQUE, half]) == []


def test_case_and_punctuation_do_not_matter():
    assert near(["One two, three four five six. Seven!", "unrelated " * 9, "one TWO three -- four five six seven"]) == [
        2
    ]


def test_short_documents_are_not_all_alike():
    assert near(["a", "b", "...", "!!", "a b", "a", "b a"]) == [5]


def test_signatures_estimate_similarity():
    texts = [UNIQUE[0], changed(UNIQUE[0], 5), changed(UNIQUE[0], 15), UNIQUE[1]]
    joined = [text.encode() for text in texts]
    signatures = dedup.signatures(b"".join(joined), np.cumsum([0] + [len(text) for text in joined]))
    for one, other in itertools.combinations(range(4), 2):
        estimate = (signatures[:, one] == signatures[:, other]).mean()
        assert abs(estimate - jaccard(texts[one], texts[other])) < 0.15  # over 3 standard errors


def test_signatures_depend_on_the_document_alone():
    """Not on its neighbours in the part: a shingle never reaches over the end of a document."""
    joined = [text.encode() for text in ("x y", *UNIQUE[:5], "ends mid", "word")]
    together = dedup.signatures(b"".join(joined), np.cumsum([0] + [len(text) for text in joined]))
    for number, text in enumerate(joined):
        assert np.array_equal(together[:, number], dedup.signatures(text, np.array([0, len(text)]))[:, 0])


def test_prepare_drops_and_counts_them(tmp_path):
    texts = [*UNIQUE, UNIQUE[3], changed(UNIQUE[4], 3), "   \n"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number:03d}.txt").write_text(text)
    index = make(tmp_path / "out", tmp_path / "*.txt", near_duplicates=True)
    assert index.removed == {"empty": 1, "exact duplicates": 1, "near duplicates": 1}
    assert sum(shard.documents for shards in index.splits.values() for shard in shards) == 60


def test_what_is_evaluated_on_is_kept_and_not_trained_on(tmp_path):
    for folder, numbers in {"train": range(40), "dev": [3, 3, 41]}.items():
        (tmp_path / folder).mkdir()
        for place, number in enumerate(numbers):
            (tmp_path / folder / f"{place}.txt").write_text(UNIQUE[number])
    (tmp_path / "train" / "x.txt").write_text(changed(UNIQUE[41], 3))
    index = make(tmp_path / "out", tmp_path / "train", [tmp_path / "dev"], near_duplicates=True)
    assert index.removed == {"exact duplicates": 1, "near duplicates": 1}
    assert sum(shard.documents for shard in index.splits["validation"]) == 3
    assert sum(shard.documents for shard in index.splits["train"]) == 39


def test_validation_is_never_empty(tmp_path):
    for number, text in enumerate(paragraphs(2)):
        (tmp_path / f"{number}.txt").write_text(text)
    index = make(tmp_path / "out", tmp_path / "*.txt", validation=1e-6)
    assert [[shard.documents for shard in index.splits[name]] for name in ("train", "validation")] == [[1], [1]]
