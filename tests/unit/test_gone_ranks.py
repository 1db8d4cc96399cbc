"""Memory shared with a rank that is gone."""

import os
import socket

import pytest
import torch

from hvd_llm.comm import host_memory
from hvd_llm.errors import UserError


@pytest.fixture
def memory_and_peer():
    """Rank 3's end, and the socket of rank 7, which has given its part of one tensor."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    file = os.memfd_create("its")
    os.ftruncate(file, 16)
    socket.send_fds(its, [host_memory._NEWS.pack(host_memory._MEMORY, 0)], [file])
    os.close(file)
    with mine, its:
        yield host_memory.HostMemory([3, 7], 3, {7: mine}), its


@pytest.mark.parametrize("when", ["before sending", "while waiting"])
def test_a_rank_that_died_is_named(memory_and_peer, monkeypatch, when):
    monkeypatch.setattr(host_memory.time, "sleep", lambda seconds: None)
    memory, peer = memory_and_peer
    tensor = memory.allocate(4, torch.float32)
    if when == "before sending":
        peer.close()
    with pytest.raises(UserError, match="rank 7, on this host, has gone"):
        handle = memory.sum_async(tensor)
        peer.close()
        handle.wait()


def test_only_a_whole_allocation_is_held(memory_and_peer):
    memory, _ = memory_and_peer
    tensor = memory.allocate(4, torch.float32)
    assert memory.holds(tensor)
    assert memory.holds(tensor.view(2, 2))
    assert not memory.holds(tensor[:2])
    assert not memory.holds(tensor.view(2, 2).T)
    assert not memory.holds(tensor.clone())
