"""The ways of training that are compared: the same model, batches, loss, clipping and optimizer in each.

A contender is a function of (config, comm) that returns `step()`: one optimizer step on this rank.
"""

import argparse
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import horovod.torch as hvd
import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from hvd_llm import device, mesh, models, optimizer, routing
from hvd_llm.comm import Comm
from hvd_llm.comm.mute import Mute
from hvd_llm.config import Config
from hvd_llm.data import open_dataset, targets
from hvd_llm.state import State
from hvd_llm.trace import NoTrace, Trace
from hvd_llm.train import Trainer, batches

Step = Callable[[], None]


def trace_path(folder: str | Path, rank: int) -> Path:
    """Where a contender that is traced has the trace of one of its ranks."""
    return Path(folder) / f"rank-{rank:05d}.trace"


def ours(config: Config, comm: Comm) -> Step:
    """hvd_llm, the loop that `hvd-llm train` runs, traced"""
    return _trainer(config, comm, Trace(trace_path(config.run.dir, comm.rank), comm.rank, comm.size))


def over_horovod(config: Config, comm: Comm) -> Step:
    """the same with share_memory off: every gradient goes through Horovod, as between hosts"""
    return ours(config, comm)


def untraced(config: Config, comm: Comm) -> Step:
    """the same without its trace: what tracing costs"""
    return _trainer(config, comm, NoTrace())


def floor(config: Config, comm: Comm) -> Step:
    """no communication: every rank trains its share alone, beside the others"""
    step = _without_exchange(config, comm)
    comm.close()  # Horovod's background thread costs something even when it has nothing to do
    return step


def floor_in_step(config: Config, comm: Comm) -> Step:
    """no gradients are exchanged, but each step waits for the slowest rank: synchronous training for free"""
    step, nothing = _without_exchange(config, comm), torch.zeros(1)

    def together():
        step()
        comm.sum("nothing", nothing)

    return together


def _without_exchange(config: Config, comm: Comm) -> Step:
    whole = replace(config, reduce=replace(config.reduce, rows=False))  # to find rows is work, for what is sent
    return _trainer(whole, Mute(comm.rank, comm.size), NoTrace())


def stock_horovod(config: Config, comm: Comm, compression=hvd.Compression.none) -> Step:
    """hvd.DistributedOptimizer, as Horovod's documentation has it"""
    loss, update, inputs = _plain(config, comm)
    parameters = dict(loss.named_parameters())
    hvd.broadcast_parameters(loss.state_dict(), root_rank=0)
    update = hvd.DistributedOptimizer(update, named_parameters=parameters.items(), compression=compression)

    def step():
        update.zero_grad()
        loss(inputs()).backward()
        update.synchronize()
        nn.utils.clip_grad_norm_(parameters.values(), config.optimizer.clip_norm)
        with update.skip_synchronize():
            update.step()

    return step


def stock_horovod_fp16(config: Config, comm: Comm) -> Step:
    """the same with Compression.fp16"""
    return stock_horovod(config, comm, hvd.Compression.fp16)


def ddp(config: Config, comm: Comm, hook: Callable | None = None, state=None, **options) -> Step:
    """torch DistributedDataParallel over Gloo, as it comes"""
    distributed.init_process_group("gloo", store=_store(comm), rank=comm.rank, world_size=comm.size)
    comm.close()  # Horovod's background thread must not cost DDP anything
    loss, update, inputs = _plain(config, comm)
    replica = DistributedDataParallel(loss, **options)
    if hook:
        replica.register_comm_hook(state, hook)

    def step():
        update.zero_grad()
        replica(inputs()).backward()
        nn.utils.clip_grad_norm_(loss.parameters(), config.optimizer.clip_norm)
        update.step()

    return step


def ddp_lean(config: Config, comm: Comm, hook: Callable | None = None, state=None) -> Step:
    """torch DistributedDataParallel with gradient_as_bucket_view and static_graph"""
    return ddp(config, comm, hook, state, gradient_as_bucket_view=True, static_graph=True)


def ddp_malloc(config: Config, comm: Comm) -> Step:
    """ddp_lean with hvd_llm's allocator setting: what is left is the gradient path"""
    device.keep_freed_memory()
    return ddp_lean(config, comm)


def ddp_fp16(config: Config, comm: Comm) -> Step:
    """ddp_lean with torch's fp16_compress_hook"""
    return ddp_lean(config, comm, default_hooks.fp16_compress_hook)


def ddp_bf16(config: Config, comm: Comm) -> Step:
    """ddp_lean with torch's bf16_compress_hook"""
    return ddp_lean(config, comm, default_hooks.bf16_compress_hook)


def ddp_powersgd(config: Config, comm: Comm) -> Step:
    """ddp_lean with torch's powerSGD_hook of rank 4 from the third step on"""
    state = PowerSGDState(process_group=None, matrix_approximation_rank=4, start_powerSGD_iter=2)
    return ddp_lean(config, comm, powerSGD_hook, state)


PLAIN = (ours, over_horovod, ddp, ddp_lean, ddp_malloc, stock_horovod, untraced, floor)
COMPRESSED = (stock_horovod_fp16, ddp_fp16, ddp_bf16, ddp_powersgd)
CONTENDERS = {function.__name__: function for function in (*PLAIN, floor_in_step, *COMPRESSED)}

# What a contender changes in the configuration.
CHANGES = {"over_horovod": {"reduce.share_memory": "false"}}

# Horovod's and Open MPI's own defaults, which hvd_llm would otherwise replace by what suits flat buckets.
STOCK = {
    "HOROVOD_CYCLE_TIME": "1",
    "HOROVOD_FUSION_THRESHOLD": str(128 * 2**20),
    "OMPI_MCA_mpi_yield_when_idle": "0",
    "OMPI_MCA_btl_tcp_flags": "send,put,inplace,need-ack,need-csum,hetero-rdma",
}
ENVIRONMENT = {"stock_horovod": STOCK, "stock_horovod_fp16": STOCK}


@dataclass(frozen=True)
class Contender:
    """A way of training, the settings it changes, and its environment."""

    prepare: Callable[[Config, Comm], Step]
    changes: dict[str, str]
    environment: dict[str, str]


def find(name: str) -> Contender:
    """A contender by its name, which settings may follow: `ours:topk(keep=32),reduce.bucket_mb=8`.

    A word that is no `section.key=value` is a compressor; its options may hold commas, but no options of their own.

    Raises:
        argparse.ArgumentTypeError: there is none.
    """
    base, _, words = name.partition(":")
    if base not in CONTENDERS:
        raise argparse.ArgumentTypeError(f"there is no contender {base!r}; there are {', '.join(CONTENDERS)}")
    words = re.findall(r"(?:\([^)]*\)|[^,])+", words)  # commas within parentheses are a compressor's own
    settings = [word if re.match(r"\w+\.\w+=", word) else f"reduce.compressor={word}" for word in words]
    changes = CHANGES.get(base, {}) | dict(word.split("=", 1) for word in settings)
    return Contender(CONTENDERS[base], changes, ENVIRONMENT.get(base, {}))


def known(name: str) -> str:
    """`name`, if it names a contender."""
    find(name)
    return name


class Loss(nn.Module):
    """A model whose forward is its mean loss: what DDP wants to wrap."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        loss, count = models.loss_sum(self.model, batch)
        return loss / count


def _model(config: Config, dataset) -> nn.Module:
    return models.build(config, dataset.vocabulary, dataset.labels, dataset.tokenizer())


def _trainer(config: Config, comm: Comm, trace: Trace) -> Step:
    device.keep_freed_memory()
    dataset = open_dataset(config.data.path)
    state = State(config, _model(config, dataset))
    ranks = mesh.build(comm.rank, comm.gather_objects("hosts", socket.gethostname()))
    training = batches(config, dataset, "train")
    among = routing.allowed(config)
    comm.register(ranks.named({group for compressor in among for group in compressor.groups}))
    trainer = Trainer(config, comm, state, ranks, training, training, among, config.train.steps, trace)

    def step():
        trainer.step()
        trace.flush()

    return step


def _plain(config: Config, comm: Comm):
    """The model, its optimizer and a source of batches, as a user of DDP or Horovod writes them."""
    dataset = open_dataset(config.data.path)
    loss = Loss(_model(config, dataset)).train()
    update = optimizer.build(config.optimizer, models.decay_groups(loss.model, config.optimizer.weight_decay))
    training = batches(config, dataset, "train")
    count = 0

    def inputs():
        nonlocal count
        (batch,) = training.micro_batches(count, comm.rank, comm.size, config.train.micro_batch)
        assert targets(batch)
        count += 1
        return batch

    return loss, update, inputs


def _store(comm: Comm) -> distributed.TCPStore:
    """Where torch's ranks find each other: on rank 0, at a port that is free there."""
    if comm.rank == 0:
        host = "127.0.0.1" if comm.local_size == comm.size else socket.gethostbyname(socket.gethostname())
        store = distributed.TCPStore(host, 0, comm.size, is_master=True, wait_for_workers=False)
        comm.broadcast_object("store", [host, store.port])
        return store
    host, port = comm.broadcast_object("store", None)
    return distributed.TCPStore(host, port, comm.size, is_master=False)


def settle(config: Config) -> None:
    """What every contender's process does first."""
    torch.set_num_threads(config.run.threads or 1)
    torch.manual_seed(config.run.seed)
