"""What the end-to-end tests share: a small prepared folder, a tiny configuration, and commands run for real."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_corpus import make, paragraphs

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PYTHONWARNINGS": "default",  # other people's deprecations must not end a command
}

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


def run(*words, timeout: float = 120, **options) -> subprocess.CompletedProcess:
    """Run a command of this environment and return what it printed."""
    return subprocess.run(
        [str(word) for word in words], env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, **options
    )


def launcher(ranks: int, controller: str = "mpi") -> list[str]:
    """The words before a command that start it on `ranks` ranks; none for a world of one."""
    return [] if ranks == 1 else ["horovodrun", f"--{controller}", "-np", str(ranks)]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text("\n\n".join(paragraphs(40)))
    make(folder / "causal", folder / "text.txt", vocabulary=300, validation=0.1)
    return folder / "causal"


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
