"""The same tests at any number of ranks: `pytest tests/parallel` or `horovodrun -np 3 pytest tests/parallel`."""

import pytest
import torch

from hvd_llm.comm import connect


@pytest.fixture(scope="session")
def comm():
    torch.set_num_threads(1)
    comm = connect(cycle_ms=1, groups=True)
    yield comm
    comm.close()
