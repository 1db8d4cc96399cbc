"""Small prepared folders, made once, and real data where it is at hand."""

from pathlib import Path

import pytest
from small_corpus import make, paragraphs, sentences

from hvd_llm.data import open_dataset

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder with 60 small text files."""
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(paragraphs(60)):
        (folder / f"{number:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def causal(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("causal")
    make(out, texts, shards=3, validation=0.1)
    return open_dataset(out)


@pytest.fixture(scope="session")
def masked(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("masked")
    make(out, texts, shards=3, validation=0.1, tokenizer="wordpiece", vocabulary=200)
    return open_dataset(out)


@pytest.fixture(scope="session")
def classify(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classify")
    rows = [f"{text}\t{'long' if len(text) > 60 else 'short'}" for text in sentences(700, 5)]
    (folder / "rows.tsv").write_text("\n".join(rows))
    make(folder / "out", folder / "rows.tsv", kind="classify", tokenizer="wordpiece", vocabulary=300, validation=0.1)
    return open_dataset(folder / "out")


@pytest.fixture(scope="session")
def shared():
    """The folder of real data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the real data (../shared/data) is not on this machine")
    return SHARED
