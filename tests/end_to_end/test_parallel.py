"""tests/parallel at 2 to 4 ranks, under both controllers of Horovod; test_one_rank.py leaves other tests a core."""

import pytest
from ranks import suite


@pytest.mark.slow
@pytest.mark.timeout(1200)  # against hanging, on the slowest machine; four ranks take four minutes of two cores
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("controller", ["mpi", "gloo"])
def test_parallel(controller, ranks):
    suite(controller, ranks)
