"""Adasum against its definition, and against Horovod's own."""

import pytest
import torch

from hvd_llm.comm import WORLD
from hvd_llm.comm.solo import Solo
from hvd_llm.compress import registry
from hvd_llm.compress.adasum import adasum
from hvd_llm.compress.base import At
from hvd_llm.errors import UserError
from hvd_llm.reduce import lockstep, policy
from hvd_llm.reduce.buckets import allocate
from hvd_llm.reduce.exchange import Exchange

SHAPE = (3, 5, 7)  # does not divide among ranks


def gradient(rank: int) -> torch.Tensor:
    """What ranks have in common and what they have not."""
    common, own = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (99, rank))
    return common + own


def reduced(gradients):
    results = lockstep.reduce(adasum, [part.clone() for part in gradients], [{} for _ in gradients])
    assert all(torch.equal(result, results[0]) for result in results)
    return results[0]


def of_two(a, b):
    common = a.ravel() @ b.ravel()
    return (1 - common / 2 / a.norm() ** 2) * a + (1 - common / 2 / b.norm() ** 2) * b


def of_all(gradients):
    """As defined, for one parameter."""
    if len(gradients) == 1:
        return gradients[0]
    middle = len(gradients) // 2
    return of_two(of_all(gradients[:middle]), of_all(gradients[middle:]))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 64])
def test_every_parameter_is_combined_as_defined(size):
    gradients = [gradient(rank) for rank in range(size)]
    expected = [size * of_all([part[index].double() for part in gradients]) for index in range(SHAPE[0])]
    torch.testing.assert_close(reduced(gradients), torch.stack(expected).float())


@pytest.mark.parametrize("size", [2, 8])
def test_of_equal_gradients_it_is_the_sum(size):
    torch.testing.assert_close(reduced([gradient(0)] * size), size * gradient(0))


@pytest.mark.parametrize("size", [2, 4])
def test_of_gradients_at_right_angles_it_is_that_many_sums(size):
    gradients = [torch.zeros(1, 2, 4) for _ in range(size)]
    for rank, part in enumerate(gradients):
        part.view(-1)[rank] = rank + 1
    torch.testing.assert_close(reduced(gradients), size * sum(gradients))


def test_zeros_and_tiny_gradients():
    """Squares of the tiny ones are not numbers in float32."""
    zero = torch.zeros(SHAPE)
    torch.testing.assert_close(reduced([zero, gradient(1)]), 2 * gradient(1))
    assert torch.equal(reduced([zero, zero]), zero)
    tiny = 1e-25
    torch.testing.assert_close(reduced([gradient(0) * tiny] * 2), 2 * tiny * gradient(0), rtol=1e-5, atol=0)


def test_hosts_that_add_up_first_are_combined_like_ranks():
    parts = [gradient(rank) for rank in range(8)]
    found = registry.find("hierarchical(across=adasum)")
    result, *_ = lockstep.reduce(found, [part.clone() for part in parts], [{} for _ in parts], node_size=2)
    torch.testing.assert_close(result, reduced([parts[rank] + parts[rank + 1] for rank in range(0, 8, 2)]))


@pytest.mark.parametrize("size", [3, 6, 7])
def test_other_numbers_of_ranks_are_refused(size):
    with pytest.raises(UserError, match=rf"2, 4, 8, … ranks .*, not {size}"):
        reduced([gradient(rank) for rank in range(size)])


def test_vectors_are_combined_each_by_itself():
    parameters = {"matrix": torch.nn.Parameter(torch.zeros(4, 3))}
    parameters |= {name: torch.nn.Parameter(torch.zeros(4)) for name in ("bias", "norm")}
    (bucket,) = allocate(parameters, policy.plan(parameters, list(parameters), 1e6, adasum), Solo().allocate)
    assert [tuple(segment.tensor.shape) for segment in bucket.segments] == [(1, 4, 3), (2, 4, 1)]
    assert [list(segment.views) for segment in bucket.segments] == [["matrix"], ["bias", "norm"]]


def test_it_is_horovods_own(comm):
    if comm.size == 1 or comm.size & (comm.size - 1):
        pytest.skip("needs 2 or 4 ranks")
    if comm.controller != "mpi":
        pytest.skip("Horovod has Adasum of CPU tensors on MPI alone")
    import horovod.torch as hvd

    mine = gradient(comm.rank)
    theirs = [hvd.allreduce(part.clone(), op=hvd.Adasum, name=f"adasum.{i}") for i, part in enumerate(mine)]
    generator = adasum(mine.clone(), {}, At("w", comm.rank, comm.size))
    (ours,) = Exchange("adasum", [generator], comm, {"world": WORLD}).finish()
    torch.testing.assert_close(ours / comm.size, torch.stack(theirs))
