"""Folders that were damaged: always a sentence, never a traceback."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd_llm.data import Batches, open_dataset
from hvd_llm.errors import UserError


@pytest.fixture
def copy(causal, tmp_path):
    return shutil.copytree(causal.folder, tmp_path / "copy")


def test_an_intact_copy_is_fine(copy, causal):
    dataset = open_dataset(copy)
    dataset.verify()
    assert dataset.fingerprint == causal.fingerprint


@pytest.mark.parametrize("ending", ["tokens", "offsets"])
def test_missing_and_truncated_shards(copy, ending):
    path = copy / f"train-00001.{ending}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"train-00001\.{ending} has \d+ bytes where its index says"):
        open_dataset(copy)
    path.unlink()
    with pytest.raises(UserError, match=rf"train-00001\.{ending} is missing"):
        open_dataset(copy)


@pytest.mark.parametrize("name", ["train-00002.tokens", "validation-00000.offsets", "tokenizer/tokenizer.json"])
def test_altered_files_are_found_by_their_hash(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match="has changed since it was prepared"):
        open_dataset(copy).verify()


def test_altered_shards_of_the_right_size_do_not_crash_training(copy):
    path = copy / "train-00000.tokens"
    path.write_bytes(b"\xff" * path.stat().st_size)
    batches = Batches(open_dataset(copy), sequence_length=32, shuffle=False)
    with pytest.raises(UserError, match=r"'train' of .* is damaged"):
        batches.at(0)


def test_altered_offsets_and_labels(classify, tmp_path):
    for ending in ("offsets", "labels"):
        copy = shutil.copytree(classify.folder, tmp_path / ending)
        path = copy / f"train-00000.{ending}"
        path.write_bytes(np.random.default_rng(1).bytes(path.stat().st_size))
        with pytest.raises(UserError, match="damaged"):
            Batches(open_dataset(copy), task="classify").at(0)


@pytest.mark.parametrize("content", ["", "{}", "[]", "\xff", '{"schema": "hvd_llm.data/9"}', "null", "[" * 5000])
def test_a_bad_index(copy, content):
    (copy / "index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        open_dataset(copy)


def test_an_index_that_points_elsewhere(copy):
    index = json.loads((copy / "index.json").read_text())
    index["splits"]["train"][0]["name"] = "../../train-00000"
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="damaged"):
        open_dataset(copy)


def test_an_index_that_was_edited(copy):
    index = json.loads((copy / "index.json").read_text())
    index["tokenizer"]["vocabulary"] += 1
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="does not match its fingerprint"):
        open_dataset(copy)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_any_changed_byte_of_the_index(copy, causal, place, byte):
    content = bytearray((causal.folder / "index.json").read_bytes())
    content[int(place * len(content))] = byte
    (copy / "index.json").write_bytes(content)
    with contextlib.suppress(UserError):
        assert open_dataset(copy).fingerprint == causal.fingerprint  # white space, or what is not content


def test_not_a_prepared_folder(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="run `hvd-llm prepare … --out"):
            open_dataset(path)


def test_a_damaged_tokenizer(copy):
    (copy / "tokenizer" / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(UserError, match="cannot be loaded as a tokenizer"):
        open_dataset(copy).tokenizer()
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(UserError, match="cannot be loaded as a tokenizer"):
        open_dataset(copy).tokenizer()
    with pytest.raises(UserError, match="cannot read"):
        open_dataset(copy).verify()
