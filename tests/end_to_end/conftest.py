"""What the end-to-end tests share: a small prepared folder and a tiny configuration."""

import shutil

import pytest
from small_corpus import causal

TINY = """\
[data]
path = "{data}"
sequence_length = 16
[model]
layers = 2
hidden = 32
heads = 2
dropout = 0.1
[train]
steps = 40
global_batch = 8
micro_batch = 2
log_every = 1
[checkpoint]
every = 7
[evaluate]
every = 10
batches = 2
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return causal(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def config(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY.format(data=data))
    return path


@pytest.fixture
def folder(tmp_path):
    """An empty folder that is removed afterwards: checkpoints are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)
