"""The ways of training that are compared: the same model, batches, loss, clipping and optimizer in each.

A contender is a function of (config, comm) that returns `step()`: one optimizer step on this rank.
"""

from collections.abc import Callable

import horovod.torch as hvd
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hvd_llm import device, mesh, models, optimizer
from hvd_llm.comm import Comm
from hvd_llm.comm.solo import Solo
from hvd_llm.compress import registry
from hvd_llm.config import Config
from hvd_llm.data import open_dataset, targets
from hvd_llm.state import State
from hvd_llm.trace import NoTrace
from hvd_llm.train import Trainer, batches

Step = Callable[[], None]


class Apart(Solo):
    """Takes a rank's share of the data and talks to nobody."""

    def __init__(self, comm: Comm):
        self.rank, self.size = comm.rank, comm.size

    def broadcast_object(self, name, value):
        return value


def floor(config: Config, comm: Comm) -> Step:
    """no communication: every rank trains its share alone, beside the others"""
    return ours(config, Apart(comm))


def ours(config: Config, comm: Comm) -> Step:
    """hvd_llm, the loop that `hvd-llm train` runs"""
    device.keep_freed_memory()
    dataset = open_dataset(config.data.path)
    model = _model(config, dataset)
    training = batches(config, dataset, "train")
    ranks = mesh.build(comm.rank, ["here"] * comm.size)
    compressor = registry.find(config.reduce.compressor)
    steps = 10**6
    trainer = Trainer(config, comm, State(config, model), ranks, training, training, compressor, steps, NoTrace())
    return trainer.step


def stock_horovod(config: Config, comm: Comm) -> Step:
    """hvd.DistributedOptimizer, as Horovod's documentation has it"""
    loss, update, inputs = _plain(config, comm)
    parameters = dict(loss.named_parameters())
    hvd.broadcast_parameters(loss.state_dict(), root_rank=0)
    update = hvd.DistributedOptimizer(update, named_parameters=parameters.items())

    def step():
        update.zero_grad()
        loss(inputs()).backward()
        update.synchronize()
        nn.utils.clip_grad_norm_(parameters.values(), config.optimizer.clip_norm)
        with update.skip_synchronize():
            update.step()

    return step


def ddp(config: Config, comm: Comm, **options) -> Step:
    """torch DistributedDataParallel over Gloo, as it comes"""
    address = comm.broadcast_object("store", _free_port() if comm.rank == 0 else None)
    store = distributed.TCPStore("127.0.0.1", address, comm.size, comm.rank == 0)
    distributed.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)
    comm.close()  # Horovod's background thread must not cost DDP anything
    loss, update, inputs = _plain(config, comm)
    replica = DistributedDataParallel(loss, **options)

    def step():
        update.zero_grad()
        replica(inputs()).backward()
        nn.utils.clip_grad_norm_(loss.parameters(), config.optimizer.clip_norm)
        update.step()

    return step


def ddp_lean(config: Config, comm: Comm) -> Step:
    """torch DistributedDataParallel with gradient_as_bucket_view and static_graph"""
    return ddp(config, comm, gradient_as_bucket_view=True, static_graph=True)


def ddp_malloc(config: Config, comm: Comm) -> Step:
    """ddp_lean with hvd_llm's allocator setting: what is left is the gradient path"""
    device.keep_freed_memory()
    return ddp_lean(config, comm)


CONTENDERS = {function.__name__: function for function in (ours, ddp, ddp_lean, ddp_malloc, stock_horovod, floor)}


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


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settle(config: Config) -> None:
    """What every contender's process does first."""
    torch.set_num_threads(config.run.threads or 1)
    torch.manual_seed(config.run.seed)
