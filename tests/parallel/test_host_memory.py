"""Sums in the memory that the ranks of a host share; all ranks of these tests are of one host."""

import os
import random
import time

import pytest
import torch

from hvd_llm.comm import host_memory

WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


@pytest.fixture
def memory(comm):
    if comm.size == 1:
        pytest.skip("one rank has nobody to share with")
    assert comm.shares_memory
    return comm


def zeros(comm, elements, dtype=torch.float32):
    return comm.allocate(elements, dtype, torch.device("cpu"))


def numbers(rank, elements, dtype, turn=0):
    return torch.randn(elements, generator=torch.Generator().manual_seed(100 * turn + rank)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("elements", [0, 1, 3, 100_003])
def test_the_sum_is_added_in_the_order_of_ranks_on_a_wide_enough_type(memory, dtype, elements):
    tensor = zeros(memory, elements, dtype)
    parts = [(10 * numbers(rank, elements, torch.float32)).to(dtype) for rank in range(memory.size)]
    tensor.copy_(parts[memory.rank])
    assert memory.sum("here", tensor) is tensor
    expected = parts[0].to(WIDE.get(dtype, dtype))
    for part in parts[1:]:
        expected = expected + part
    assert torch.equal(tensor, expected.to(dtype))


def test_any_order_of_sending_and_of_waiting(memory):
    """Ranks dawdle, send in an order of their own and wait in another, over and over with the same tensors."""
    tensors = {f"order.{size}": zeros(memory, size) for size in (1, 10, 1000, 40_000, 70_000)}
    chance = random.Random(memory.rank)
    for turn in range(50):
        for tensor in tensors.values():
            tensor.copy_(numbers(memory.rank, tensor.numel(), tensor.dtype, turn))
        handles = {}
        for name in chance.sample(list(tensors), len(tensors)):
            time.sleep(chance.choice([0, 0, 0.001]))
            handles[name] = memory.sum_async(name, tensors[name])
            for handle in handles.values():
                handle.ready()
        for name in chance.sample(list(tensors), len(tensors)):
            expected = sum(numbers(r, tensors[name].numel(), tensors[name].dtype, turn) for r in range(memory.size))
            torch.testing.assert_close(handles.pop(name).wait(), expected)


def test_a_rank_that_waits_for_horovod_still_does_its_share(memory):
    """Rank 0 waits for the network first, the others first for rank 0's share of the sum."""
    tensor = zeros(memory, 1000)
    tensor.fill_(1)
    for turn in range(5):
        near, far = memory.sum_async("near", tensor), None
        if memory.rank == 0:
            far = memory.sum_async(f"far.{turn}", torch.ones(3)).wait()
        near.wait()
        if memory.rank:
            far = memory.sum_async(f"far.{turn}", torch.ones(3)).wait()
        assert far.tolist() == [memory.size] * 3
        assert tensor.eq(memory.size ** (turn + 1)).all()


def test_what_was_not_allocated_goes_through_horovod(memory):
    tensor = zeros(memory, 10)
    tensor.fill_(1)
    assert memory.sum("slice", tensor[:5]).tolist() == [memory.size] * 5
    assert tensor.tolist() == [memory.size] * 5 + [1] * 5


def refused(*_):
    raise ConnectionRefusedError


@pytest.mark.parametrize("trouble", ["sockets", "memory", "unwilling"])
def test_all_do_without_when_one_cannot(memory, monkeypatch, trouble):
    """As when a rank is in another network namespace, in a sandbox, or read other settings."""
    monkeypatch.setattr(host_memory, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(host_memory.time, "sleep", lambda seconds: None)
    odd = memory.rank == memory.size - 1
    if odd and trouble == "sockets":
        monkeypatch.setattr(host_memory, "_meet", refused)
    if odd and trouble == "memory":
        monkeypatch.setattr(host_memory.os, "memfd_create", refused)
    assert host_memory.connect(memory, wanted=not (odd and trouble == "unwilling")) is None


def test_more_sums_than_a_socket_holds(memory):
    """All ranks send everything before anyone waits."""
    tensors = [zeros(memory, 2) for _ in range(600)]
    for tensor in tensors:
        tensor.fill_(1)
    for handle in [memory.sum_async(f"many.{number}", tensor) for number, tensor in enumerate(tensors)]:
        handle.wait()
    assert all(tensor.tolist() == [memory.size] * 2 for tensor in tensors)


def test_allocations_keep_no_descriptor_open(memory):
    before = len(os.listdir("/proc/self/fd"))
    kept = [zeros(memory, 100) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) < before + len(kept)
