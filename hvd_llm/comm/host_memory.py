"""Ranks of one host sum tensors in memory they share, instead of sending them to each other.

Every rank keeps its tensor where the others of its host can read and write it. To sum, each says "mine is
written" to the others over a socket; whoever has heard that of all adds up its own slice of everybody's tensors
and writes the sum into each: reduce-scatter and allgather in one pass over the memory, the same bits for all.
Then it says "my slice is there". A socket and not a flag in the shared memory, because a socket orders memory on
every processor, can be waited for without spinning, and breaks when its rank dies. Sums are matched by the tensor
they are of, which is why all ranks allocate in the same order.
"""

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
from hvd_llm.errors import UserError, first_line

_MEMORY, _WRITTEN, _ADDED = range(3)
_NEWS = struct.Struct("<iI")  # one of the three above, number of the tensor
_FILE_SPACE = socket.CMSG_SPACE(struct.calcsize("i"))
_PIECE = 2**15  # elements a thread adds at a time: they stay in its core's cache between the addition and the copy
_WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
_PATIENCE_S = 10
_SILENCE_S = 60
_POLL_S = 50e-6


class HostMemory:
    """This rank's end of the memory that the ranks of its host share.

    Attributes:
        ranks: the world ranks of this host, ascending.
    """

    def __init__(self, ranks: Sequence[int], rank: int, peers: dict[int, socket.socket]):
        self.ranks = tuple(ranks)
        self._rank, self._place = rank, self.ranks.index(rank)
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
        self._overheard = False  # news came in while we were telling ours

    def allocate(self, elements: int, dtype: torch.dtype) -> Tensor:
        """Zeros, (elements,), that `sum_async` can sum. Collective; lives as long as the process.

        Raises:
            UserError: the system refuses the memory, or a rank is gone.
        """
        number, size = len(self._tensors), max(1, elements) * dtype.itemsize
        try:
            own = os.memfd_create("hvd_llm")  # has no name to clean up: it goes with the last rank that maps it
            os.ftruncate(own, size)
            self._tell(_MEMORY, number, own)
            self._advance()
            while not self._take(_MEMORY, number):
                self.progress(wait=True)
            files = [own if rank == self._rank else self._files.pop((rank, number)) for rank in self.ranks]
            assert all(os.fstat(file).st_size == size for file in files), "ranks allocate different tensors"
            # Not mmap.mmap, which keeps a descriptor open for every tensor of every rank.
            paths = [f"/proc/self/fd/{file}" for file in files]
            tensors = [torch.from_file(path, shared=True, size=max(1, elements), dtype=dtype) for path in paths]
        except (OSError, RuntimeError, KeyError) as error:  # KeyError: a descriptor that did not arrive
            why = f"{size:,} bytes of shared memory are refused ({first_line(error)})"
            raise UserError(f"{why}; set reduce.share_memory to false") from None
        for file in files:
            os.close(file)
        tensors = [tensor[:elements] for tensor in tensors]
        self._number[_key(tensors[self._place])] = number
        self._tensors.append(tensors)
        return tensors[self._place]

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` is one that `allocate` returned, or a reshaped view of all of it."""
        return _key(tensor) in self._number and tensor.is_contiguous()

    def sum_async(self, tensor: Tensor) -> "_Sum":
        """Sum a tensor that this holds over the ranks of this host, in place; 16-bit floats in float32."""
        task = _Sum(self, tensor, self._number[_key(tensor)])
        assert all(task.number != other.number for other in self._active), "this tensor's sum is under way already"
        self._active.append(task)
        self._tell(_WRITTEN, task.number)
        self._advance()  # the others may have said all there is to hear
        return task

    def progress(self, wait: bool = False) -> None:
        """Take in what peers said, and do this rank's share of every sum that they have made possible.

        Of every sum and not of one: the order in which ranks wait for theirs may differ.
        """
        if self._listen(wait):
            self._advance()

    def _advance(self) -> None:
        """Do what the news so far allow, also those that come in meanwhile: nobody would wake us for them again."""
        self._overheard = True
        while self._overheard:
            self._overheard = False
            for task in list(self._active):
                self._advance_one(task)

    def _advance_one(self, task: "_Sum") -> None:
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

    def _tell(self, what: int, number: int, file: int | None = None) -> None:
        """Tell all peers, and pass them a descriptor. A peer that does not read must not keep us from reading."""
        extra = [] if file is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file))]
        for rank, peer in self._peers.items():
            while True:
                try:
                    peer.sendmsg([_NEWS.pack(what, number)], extra, socket.MSG_DONTWAIT)
                    break
                except BlockingIOError:
                    if self._listen(wait=False):
                        self._overheard = True
                    else:
                        time.sleep(_POLL_S)
                except OSError:
                    raise _gone(rank) from None

    def _listen(self, wait: bool) -> bool:
        """Take in what peers said; returns whether there was anything."""
        if wait and len(self._gone) == len(self._peers):
            raise _gone(min(self._gone))
        events = self._poll.poll(1000 * _SILENCE_S if wait else 0)
        if wait and not events:
            print(
                f"hvd-llm: rank {self._rank} has heard nothing from {self._silent()} for {_SILENCE_S} s",
                file=sys.stderr,
            )
        for descriptor, _ in events:
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
        return bool(events)

    def _silent(self) -> str:
        """Whom the sums under way wait for."""
        waits = {(_ADDED if task.added else _WRITTEN, task.number) for task in self._active}
        ranks = {rank for rank in self._peers for news in waits if not self._heard[*news, rank]}
        return f"ranks {sorted(ranks or self._peers)}"


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


def connect(comm: Comm, wanted: bool) -> HostMemory | None:
    """Share memory if all ranks are on one host, want to and can; None otherwise, on all. Collective.

    Every rank calls this, whatever it wants: they may not have read the same settings.
    """
    listener = _listener(comm.size) if wanted else None
    address = listener.getsockname()[1:].decode() if listener else ""
    homes = comm.gather_objects("host memory", [socket.gethostname(), address])
    met, memory = False, None
    peers: dict[int, socket.socket] = {}
    if listener:
        with listener:
            if len({host for host, _ in homes}) == 1 and all(address for _, address in homes):
                try:
                    _meet(comm.rank, [address for _, address in homes], listener, peers)
                    memory = HostMemory(range(comm.size), comm.rank, peers)
                    memory.allocate(1, torch.uint8)
                    met = True
                except (OSError, struct.error, UserError):  # another network namespace, a sandbox: do without
                    met = False
    if not met:
        for peer in peers.values():
            peer.close()  # those who wait for this rank stop
    if all(comm.gather_objects("host memory works", met)):
        return memory
    if met:
        memory.close()
    return None


def _listener(backlog: int) -> socket.socket | None:
    """A socket that other ranks of this host can find by its name, if the system has such."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:
        return None
    try:
        listener.bind(f"\0hvd_llm.{secrets.token_hex(16)}")  # abstract: leaves no file behind
        listener.listen(backlog)
    except OSError:
        listener.close()
        return None
    return listener


def _meet(rank: int, addresses: list[str], listener: socket.socket, peers: dict[int, socket.socket]) -> None:
    """Fill in a socket to every other rank: each calls those before it, those after it call."""
    listener.settimeout(_PATIENCE_S)
    for other in range(rank):
        peers[other] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peers[other].connect(f"\0{addresses[other]}")
        peers[other].send(_NEWS.pack(0, rank))
    while len(peers) < len(addresses) - 1:
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
    return UserError(f"rank {rank}, on this host, has gone; its own message says why")
