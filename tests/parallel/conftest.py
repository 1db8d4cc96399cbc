"""The same tests at any number of ranks: `pytest tests/parallel` or `horovodrun -np 3 pytest tests/parallel`."""

import pytest
import torch

from hvd_llm.comm import connect
from hvd_llm.config import Reduce


@pytest.fixture(scope="session")
def comm():
    torch.set_num_threads(1)
    comm = connect(Reduce(cycle_ms=1), groups=True)
    yield comm
    comm.close()
