"""The same tests at any number of ranks: `pytest tests/parallel` or `horovodrun -np 3 pytest tests/parallel`."""

import atexit
import gc
import resource
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from small_corpus import make, paragraphs, sentences

from hvd_llm.comm import connect
from hvd_llm.config import Config, Reduce
from hvd_llm.launcher import Launch


def pytest_configure(config):
    """Ranks must not clean up each other's folders, and every trainer of a test keeps its dataset's files open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if Launch.from_environment().by and not config.option.basetemp:
        config.option.basetemp = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, config.option.basetemp, ignore_errors=True)


@pytest.fixture(scope="session")
def comm():
    torch.set_num_threads(1)
    comm = connect(Config(reduce=Reduce(cycle_ms=250)), groups=True)  # whoever waits for a look is seen to
    yield comm
    comm.close()


@pytest.fixture(autouse=True, scope="module")
def tidied(comm, request):
    """Trainers are cycles: their files are closed when these are collected. Horovod tends idle sets, too."""
    yield
    gc.collect()
    registered = getattr(comm, "_sets", {})
    if registered:
        import horovod.torch as hvd  # one process needs none

    while registered and not request.session.testsfailed:  # after a failure the other ranks may not come
        hvd.remove_process_set(registered.popitem()[1])


@pytest.fixture
def few_worlds(comm):
    """For tests that compare a run with another of as many ranks: one process, 2 on Gloo, 3 and 4 on MPI are enough.

    Tests that compare ranks with one process, or with simulated ranks, are for all worlds.
    """
    if (comm.size, comm.controller) not in ((1, "none"), (2, "gloo"), (3, "mpi"), (4, "mpi")):
        pytest.skip("runs of as many ranks are compared by one process, by 2 ranks on Gloo, by 3 and 4 on MPI")


@pytest.fixture(scope="session")
def folders(comm, tmp_path_factory):
    """What rank 0 prepares for all, on this host."""
    folder = tmp_path_factory.mktemp("data")
    if comm.rank == 0:
        _prepare(folder)
    return Path(comm.broadcast_object("folders", str(folder)))


def _prepare(folder):
    (folder / "text.txt").write_text("\n\n".join(paragraphs(20)))
    rows = [f"{text}\t{'long' if len(text) > 60 else 'short'}" for text in sentences(300, 5)]
    (folder / "rows.tsv").write_text("\n".join(rows))
    made = {"causal": ("text", "bpe"), "masked": ("text", "wordpiece"), "classify": ("classify", "wordpiece")}
    for task, (kind, tokenizer) in made.items():
        source = folder / ("rows.tsv" if kind == "classify" else "text.txt")
        make(folder / task, source, kind=kind, tokenizer=tokenizer, vocabulary=300, validation=0.1)
