"""Expectations are functions of rank and size, so that they hold at any N."""

import statistics
import time

import pytest
import torch

from hvd_llm import mesh
from hvd_llm.comm import Group
from hvd_llm.comm.clock import clock_offset
from hvd_llm.errors import UserError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_sum(comm, dtype):
    tensor = torch.arange(7).to(dtype) + comm.rank
    result = comm.sum(f"sum.{dtype}", tensor)
    assert result is tensor
    assert tensor.tolist() == [comm.size * i + sum(range(comm.size)) for i in range(7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sum_of_what_is_not_contiguous(comm, dtype):
    """A compressor may yield a transposed gradient."""
    tensor = (torch.arange(6).view(2, 3).to(dtype) + comm.rank).mT
    assert comm.sum(f"turned.{dtype}", tensor) is tensor
    assert tensor.mT.flatten().tolist() == [comm.size * i + sum(range(comm.size)) for i in range(6)]


def test_bfloat16_sum_is_rounded_once(comm):
    # 1 + 2^-8 is no bfloat16; the sum over many ranks of 2^-8 must not vanish in each addition.
    tensor = torch.tensor([1.0 if comm.rank == 0 else 2**-8], dtype=torch.bfloat16)
    exact = torch.tensor(1 + (comm.size - 1) * 2**-8, dtype=torch.float32).to(torch.bfloat16)
    assert comm.sum("bf16.once", tensor)[0] == exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_gather(comm, dtype, shape):
    parts = comm.gather_async(f"gather.{dtype}.{shape}", torch.full(shape, comm.rank).to(dtype)).wait()
    assert [part.dtype for part in parts] == [dtype] * comm.size
    assert [part.shape for part in parts] == [torch.Size(shape)] * comm.size
    assert [part.flatten().tolist() for part in parts] == [
        torch.full(shape, r).flatten().tolist() for r in range(comm.size)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_all_to_all_with_unequal_lengths(comm, dtype):
    # rank s sends r elements of value 10 s + r to rank r
    sent = [torch.full((r,), 10 * comm.rank + r).to(dtype) for r in range(comm.size)]
    received = comm.all_to_all_async(f"all_to_all.{dtype}", sent).wait()
    assert [part.tolist() for part in received] == [[10 * s + comm.rank] * comm.rank for s in range(comm.size)]


@pytest.mark.parametrize("longest", [0, 900, 5000])
def test_gather_objects(comm, longest):
    """Of unequal length, in one operation or two."""
    values = [{"rank": r, "text": "é" * (longest * r // comm.size)} for r in range(comm.size)]
    assert comm.gather_objects("objects", values[comm.rank]) == values


def test_horovod_looks_when_there_is_something_to_do(comm):
    """Not only every 250 ms; nor if ranks hand over late, or in other orders."""
    names = ["a", "b", "c", "d"]
    took = []
    for _ in range(10):
        time.sleep(0.002 * comm.rank)
        start = time.monotonic()
        mine = names[comm.rank :] + names[: comm.rank]
        handles = {name: comm.sum_async(f"look.{name}", torch.ones(1)) for name in mine}
        assert [handles[name].wait().item() for name in names] == [comm.size] * 4
        took.append(time.monotonic() - start)
    assert statistics.median(took) < 0.1, "most rounds waited for a look"


def test_broadcast(comm):
    tensors = {
        "weights": torch.full((3, 2), float(comm.rank)),
        "halves": torch.full((3,), comm.rank + 0.5, dtype=torch.bfloat16),
        "count": torch.tensor(comm.rank),
    }
    comm.broadcast(tensors, root=comm.size - 1)
    last = comm.size - 1
    assert tensors["weights"].tolist() == [[last] * 2] * 3
    assert tensors["halves"].tolist() == [last + 0.5] * 3
    assert tensors["count"].item() == last


def test_objects(comm):
    assert comm.gather_objects("objects", {"rank": comm.rank}) == [{"rank": r} for r in range(comm.size)]
    assert comm.broadcast_object("object", f"from {comm.rank}") == "from 0"


def test_ranks_may_issue_in_different_orders(comm):
    names = ["a", "b", "c"]
    order = names[comm.rank % 3 :] + names[: comm.rank % 3]
    handles = {name: comm.sum_async(f"order.{name}", torch.full((1000,), float(names.index(name)))) for name in order}
    for name in reversed(order):
        assert handles[name].wait()[0] == comm.size * names.index(name)


def test_one_ranks_mistake_is_everyones(comm):
    culprit = comm.size - 1
    with pytest.raises(UserError, match="no such file") as caught, comm.together("test"):
        if comm.rank == culprit:
            raise UserError("no such file")
    assert caught.value.shared
    assert str(caught.value).startswith(f"rank {culprit}: ") == (culprit > 0)
    with comm.together("test"):
        pass  # and the world is still usable


def test_groups(comm):
    # two ranks on every host, the last host perhaps half empty
    ranks = mesh.build(comm.rank, [f"host{r // 2}" for r in range(comm.size)])
    comm.register(ranks.groups)
    for group in (ranks.world, ranks.node, ranks.across, ranks.dp):
        total = comm.sum(f"group.{group.name}", torch.tensor([float(comm.rank)]), group)
        assert total.item() == sum(group.ranks)
        parts = comm.gather_async(f"group.gather.{group.name}", torch.tensor(comm.rank), group).wait()
        assert tuple(map(int, parts)) == group.ranks


def test_a_group_must_be_registered(comm):
    if comm.size < 3:
        pytest.skip("needs three ranks: smaller groups are the world or one rank")
    with pytest.raises(AssertionError, match="not registered"):
        comm.sum("unregistered", torch.zeros(1), Group("odd", (1, 2)))


def test_clock_offset_is_within_its_bound(comm, monkeypatch):
    if comm.size > 1:
        assert clock_offset(comm) == (0, 0)  # known where memory is shared
        monkeypatch.setattr(comm, "_memory", None)
    offset, uncertainty = clock_offset(comm)
    if comm.rank == 0:
        assert (offset, uncertainty) == (0, 0)
    else:  # one machine, one clock: the true offset is 0
        assert abs(offset) <= uncertainty < 1e9
