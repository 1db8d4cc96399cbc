"""Horovod as a `Comm`: named asynchronous operations on process sets, and what a host's ranks do without it."""

from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.process_sets import ProcessSet
from torch import Tensor

from hvd_llm.comm import host_memory
from hvd_llm.comm.base import WORLD, Comm, Group
from hvd_llm.comm.patience import Patience
from hvd_llm.comm.solo import Done
from hvd_llm.errors import UserError
from hvd_llm.launcher import Launch

# Ends Horovod's sleep between two looks for new operations, if it was built by our recipe.
_wake = getattr(hvd.mpi_ops._basics.MPI_LIB_CTYPES, "horovod_wake", None)
_MOST_ELEMENTS = 2**31 - 1  # Horovod keeps counts in a 32-bit int and would silently truncate


def wakes() -> bool:
    """Whether Horovod looks at once when something was handed to it."""
    return _wake is not None


def wake() -> None:
    """Something was handed to Horovod: let it look at once."""
    if _wake:
        _wake()


class HvdHandle:
    """A Horovod handle and what to do with its raw result."""

    def __init__(self, handle: int, finish: Callable[[Any], Any], meanwhile: Callable[[], None]):
        """`meanwhile` is called again and again while `wait` waits: others may need this rank to go on."""
        self._handle = handle
        self._finish = finish
        self._meanwhile = meanwhile

    def ready(self) -> bool:
        return hvd.poll(self._handle)

    def wait(self) -> Any:
        patience = Patience()  # Horovod's own wait spins; its background thread may need that core
        while not hvd.poll(self._handle):
            self._meanwhile()
            patience.pause()
        return self._finish(hvd.synchronize(self._handle))


class HvdComm(Comm):
    def __init__(self, launch: Launch, share_memory: bool, groups: bool):
        """Join the world the launcher made. Collective.

        Args:
            share_memory: if all ranks are on one host, they sum what `allocate` gave them without Horovod.
            groups: `register` will be called with groups other than the world.

        Raises:
            UserError: Horovod finds another world than the launcher's, as with the wrong MPI.
        """
        # "dynamic" lets process sets be added later; it costs a collective in every cycle, also of idle ones.
        hvd.init(process_sets="dynamic" if groups else None)
        if (hvd.rank(), hvd.size()) != (launch.rank, launch.size):
            raise UserError(
                f"{launch.by} started {launch.size} ranks but Horovod sees {hvd.size()}, as if built with another MPI: "
                "load the one you launch with and run: hvd-llm install-horovod --force",
                shared=True,
            )
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        self.controller = "mpi" if hvd.mpi_enabled() else "gloo"
        # Without NCCL, Horovod copies CUDA tensors to the host without waiting for them to be computed.
        self._stage = not hvd.nccl_built()
        self._sets: dict[tuple[int, ...], ProcessSet] = {}
        self._memory: host_memory.HostMemory | None = None  # gather_objects asks for it
        self._memory = host_memory.connect(self, share_memory)

    @property
    def shares_memory(self):
        return self._memory is not None

    def allocate(self, elements, dtype, device):
        if self._memory is None or device.type != "cpu":
            return super().allocate(elements, dtype, device)
        return self._memory.allocate(elements, dtype)

    def _handle(self, handle: int, finish: Callable[[Any], Any]) -> HvdHandle:
        wake()
        return HvdHandle(handle, finish, self._memory.progress if self._memory else lambda: None)

    def register(self, groups):
        for group in groups:
            ranks = self.ranks(group)
            if 1 < len(ranks) < self.size and ranks not in self._sets:
                self._sets[ranks] = hvd.add_process_set(list(ranks))

    def ranks(self, group):
        return group.ranks or tuple(range(self.size))

    def _set(self, group: Group) -> ProcessSet:
        ranks = self.ranks(group)
        if len(ranks) == self.size:
            return hvd.global_process_set
        assert ranks in self._sets, f"group {group.name!r} was not registered"
        return self._sets[ranks]

    def _carried(self, tensor: Tensor) -> Tensor:
        """The tensor as Horovod can move it: on the host if it must be, bfloat16 as int16 bits."""
        assert tensor.numel() <= _MOST_ELEMENTS, f"{tensor.numel()} elements in one operation"
        if tensor.is_cuda and self._stage:
            tensor = tensor.cpu()
        return tensor.contiguous().view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor.contiguous()

    def sum_async(self, name, tensor, group=WORLD):
        if len(self.ranks(group)) == 1:
            return Done(tensor)
        if self._memory and self._memory.ranks == self.ranks(group) and self._memory.holds(tensor):
            return self._memory.sum_async(tensor)
        assert tensor.numel() <= _MOST_ELEMENTS, f"{tensor.numel()} elements in one operation"
        work = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous()
        if work.is_cuda and self._stage:
            work = work.cpu()
        handle = hvd.allreduce_async_(work, name=name, op=hvd.Sum, process_set=self._set(group))
        return self._handle(handle, lambda result: tensor if result is tensor else tensor.copy_(result))

    def gather_async(self, name, tensor, group=WORLD, lengths=None):
        if len(self.ranks(group)) == 1:
            return Done([tensor])
        # One leading dimension per rank, so that scalars and any shape come back as they went.
        carried = self._carried(tensor) if lengths else self._carried(tensor).unsqueeze(0)
        handle = hvd.allgather_async(carried, name=name, process_set=self._set(group))

        def finish(result):
            result = result.view(tensor.dtype).to(tensor.device)
            return list(result.split(list(lengths)) if lengths else result.unbind(0))

        return self._handle(handle, finish)

    def all_to_all_async(self, name, tensors, group=WORLD):
        count = len(self.ranks(group))
        assert len(tensors) == count, f"{len(tensors)} tensors for a group of {count}"
        if count == 1:
            return Done(list(tensors))
        like = tensors[0]
        splits = torch.tensor([tensor.numel() for tensor in tensors], dtype=torch.int32)
        handle = hvd.alltoall_async(
            self._carried(torch.cat(list(tensors))), splits, name=name, process_set=self._set(group)
        )

        def finish(result):
            received, lengths = result
            return list(received.view(like.dtype).to(like.device).split(lengths.tolist()))

        return self._handle(handle, finish)

    def broadcast(self, tensors, root=0):
        carried = {name: self._carried(tensor.detach()) for name, tensor in tensors.items()}
        handles = [hvd.broadcast_async_(tensor, root, name=f"broadcast.{name}") for name, tensor in carried.items()]
        wake()
        for handle in handles:
            hvd.synchronize(handle)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(carried[name].view(tensor.dtype))

    def start_timeline(self, path):
        hvd.start_timeline(str(path))

    def close(self):
        if self._memory:
            self._memory.close()
        hvd.shutdown()
