"""Ranks of one host sum tensors in memory they share, instead of sending them to each other.

Every rank keeps its tensor where the others of its host can read and write it. To sum, each says "mine is
written" to the others over a socket; whoever has heard that of all adds up its own slice of everybody's tensors
and writes the sum into each: reduce-scatter and allgather in one pass over the memory, the same bits for all.
Then it says "my slice is there". A socket and not a flag in the shared memory, because a socket orders memory on
every processor, can be waited for without spinning, and breaks when its rank dies.
"""

import mmap
import os
import secrets
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_llm.comm.base import Comm
from hvd_llm.errors import UserError

_MEMORY, _WRITTEN, _ADDED = range(3)
_NEWS = struct.Struct("<iI")  # one of the three above, number of the tensor
_FILE_SPACE = socket.CMSG_SPACE(struct.calcsize("i"))
_PIECE = 2**15  # elements a thread adds at a time: they stay in its core's cache between the addition and the copy
_WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
_PATIENCE_S = 10


class HostMemory:
    """This rank's end of the memory that the ranks of its host share.

    Attributes:
        ranks: the world ranks of this host, ascending.
    """

    def __init__(self, ranks: Sequence[int], rank: int, peers: dict[int, socket.socket]):
        self.ranks = tuple(ranks)
        self._place = self.ranks.index(rank)
        self._peers = peers
        self._poll = select.poll()
        for peer in peers.values():
            self._poll.register(peer, select.POLLIN)
        self._who = {peer.fileno(): rank for rank, peer in peers.items()}
        self._tensors: list[list[Tensor]] = []  # number → by place on this host
        self._number: dict[tuple[int, torch.dtype, int], int] = {}
        self._files: dict[tuple[int, int], int] = {}  # rank, number → its descriptor, until it is mapped
        self._heard: Counter[tuple[int, int, int]] = Counter()  # what, number, rank → how often
        self._gone: set[int] = set()
        self._active: list[_Sum] = []

    def allocate(self, elements: int, dtype: torch.dtype) -> Tensor:
        """Zeros, (elements,), that `sum_async` can sum. Collective among the ranks of this host.

        Raises:
            UserError: the system does not give that much.
        """
        number, size = len(self._tensors), max(1, elements) * dtype.itemsize
        try:
            own = os.memfd_create("hvd_llm")  # has no name to clean up: it goes with the last rank that has it open
            os.ftruncate(own, size)
        except OSError as error:
            sentence = (
                f"{size:,} bytes of shared memory are refused ({error.strerror}): set reduce.share_memory to false"
            )
            raise UserError(sentence) from None
        for peer in self._peers.values():
            socket.send_fds(peer, [_NEWS.pack(_MEMORY, number)], [own])
        while not self._take(_MEMORY, number):
            self.progress(wait=True)
        files = [self._files.pop((rank, number), own) for rank in self.ranks]
        tensors = [torch.frombuffer(mmap.mmap(file, size), dtype=dtype)[:elements] for file in files]
        for file in files:
            os.close(file)
        mine = tensors[self._place]
        self._number[_key(mine)] = number
        self._tensors.append(tensors)
        return mine

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` is one that `allocate` returned, or a reshaped view of all of it."""
        return _key(tensor) in self._number and tensor.is_contiguous()

    def sum_async(self, tensor: Tensor) -> "_Sum":
        """Sum a tensor that this holds over the ranks of this host, in place; 16-bit floats in float32."""
        task = _Sum(self, tensor, self._number[_key(tensor)])
        self._active.append(task)
        self._tell(_WRITTEN, task.number)
        return task

    def progress(self, wait: bool = False) -> None:
        """Take in what peers said, and do this rank's share of every sum that they have made possible.

        Of every sum and not of one: the order in which ranks wait for theirs may differ.
        """
        self._listen(wait)
        for task in list(self._active):
            if not task.added and self._take(_WRITTEN, task.number):
                self._add(self._tensors[task.number])
                task.added = True
                self._tell(_ADDED, task.number)
            if task.added and self._take(_ADDED, task.number):
                task.over = True
                self._active.remove(task)

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()

    def _add(self, tensors: list[Tensor]) -> None:
        """Replace this rank's slice of all the tensors by its sum."""
        count, elements = len(tensors), tensors[0].numel()
        begin, end = elements * self._place // count, elements * (self._place + 1) // count
        piece = _PIECE * torch.get_num_threads()
        for first in range(begin, end, piece):
            target, *others = (tensor[first : min(first + piece, end)] for tensor in tensors)
            total = target.to(_WIDE.get(target.dtype, target.dtype))
            for other in others:
                total.add_(other)
            for destination in (target, *others):
                if destination is not total:
                    destination.copy_(total)

    def _take(self, what: int, number: int) -> bool:
        """Whether all peers said this; it is forgotten then, for the next time."""
        silent = [rank for rank in self._peers if not self._heard[what, number, rank]]
        if self._gone.intersection(silent):
            raise _gone(min(self._gone.intersection(silent)))
        if not silent:
            self._heard.subtract((what, number, rank) for rank in self._peers)
        return not silent

    def _tell(self, what: int, number: int) -> None:
        for rank, peer in self._peers.items():
            try:
                peer.send(_NEWS.pack(what, number))
            except OSError:
                raise _gone(rank) from None

    def _listen(self, wait: bool) -> None:
        for descriptor, _ in self._poll.poll(None if wait else 0):
            rank = self._who[descriptor]
            try:
                # Not recv_fds: Python 3.11's forgets its flags, and would wait.
                news, extra, _, _ = self._peers[rank].recvmsg(_NEWS.size, _FILE_SPACE, socket.MSG_DONTWAIT)
            except OSError:
                news = b""
            if not news:  # it may have ended well, having said all that was needed of it
                self._gone.add(rank)
                self._poll.unregister(descriptor)
                continue
            what, number = _NEWS.unpack(news)
            self._heard[what, number, rank] += 1
            for _, _, file in extra:
                self._files[rank, number] = int.from_bytes(file, sys.byteorder)


class _Sum:
    """The handle of one sum."""

    def __init__(self, memory: HostMemory, tensor: Tensor, number: int):
        self.tensor, self.number = tensor, number
        self.added = self.over = False
        self._memory = memory

    def ready(self) -> bool:
        if not self.over:
            self._memory.progress()
        return self.over

    def wait(self) -> Tensor:
        while not self.over:
            self._memory.progress(wait=True)
        return self.tensor


def connect(comm: Comm) -> HostMemory | None:
    """Find the other ranks of this host, or None if there are none, or any host does not allow it. Collective."""
    if not hasattr(os, "memfd_create"):
        return None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    address = f"hvd_llm.{secrets.token_hex(16)}"
    listener.bind(f"\0{address}")  # abstract: leaves no file behind
    listener.listen(comm.size)
    homes = comm.gather_objects("host memory", [socket.gethostname(), address])
    here = {rank: address for rank, (host, address) in enumerate(homes) if host == homes[comm.rank][0]}
    peers: dict[int, socket.socket] = {}
    with listener:
        try:
            _meet(comm.rank, here, listener, peers)
            met = True
        except OSError:  # the same host name in another network or user namespace
            met = False
    if not all(comm.gather_objects("host memory works", met)):
        for peer in peers.values():
            peer.close()
        return None
    return HostMemory(sorted(here), comm.rank, peers) if peers else None


def _meet(rank: int, here: dict[int, str], listener: socket.socket, peers: dict[int, socket.socket]) -> None:
    """Fill in a socket to every other rank of this host: each calls those before it, those after it call."""
    listener.settimeout(_PATIENCE_S)
    for other in sorted(here):
        if other < rank:
            peers[other] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            peers[other].connect(f"\0{here[other]}")
            peers[other].send(_NEWS.pack(0, rank))
    while len(peers) < len(here) - 1:
        caller, _ = listener.accept()
        _, user, _ = struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.getuid():
            caller.close()
            continue
        caller.settimeout(_PATIENCE_S)
        _, other = _NEWS.unpack(caller.recv(_NEWS.size))
        caller.settimeout(None)
        peers[other] = caller


def _key(tensor: Tensor) -> tuple[int, torch.dtype, int]:
    return tensor.data_ptr(), tensor.dtype, tensor.numel()


def _gone(rank: int) -> UserError:
    time.sleep(2)  # that rank speaks first, and the launcher may end this one before
    return UserError(f"rank {rank}, on this host, has gone; continue from the last checkpoint with --resume auto")
