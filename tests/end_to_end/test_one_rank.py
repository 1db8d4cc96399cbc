"""tests/parallel on the one rank of a world that a launcher made, under both controllers of Horovod."""

import pytest
from ranks import suite


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("controller", ["mpi", "gloo"])
def test_one_rank(controller):
    suite(controller, 1)
