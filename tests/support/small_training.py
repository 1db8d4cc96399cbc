"""A model of some thousand parameters in training, for tests that compare two of them."""

import torch
from worlds import mesh_of

from hvd_llm import checkpoint, config, models, routing
from hvd_llm.data import open_dataset, targets
from hvd_llm.state import State
from hvd_llm.trace import NoTrace
from hvd_llm.train import Trainer, batches

STEPS = 20
FAMILY = {"causal": "gpt2", "masked": "bert", "classify": "bert"}


class Seen(NoTrace):
    """Keeps what a trace would."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def add(self, kind, start_ns, end_ns, index=0, amount=0):
        self.seen.append((self.step, kind, start_ns, end_ns))

    def spans(self, step, *kinds):
        return [(start, end) for at, kind, start, end in self.seen if at == step and kind in kinds]


def settings(folders, task: str, **changes):
    tree = {
        "data": {"path": str(folders / task), "task": task, "sequence_length": 16},
        "model": {"family": FAMILY[task], "layers": 2, "hidden": 32, "heads": 2},
        "train": {"steps": STEPS, "global_batch": 6, "micro_batch": 1, "label_smoothing": 0.1},
        "optimizer": {"name": "sgd", "lr": 0.1, "clip_norm": 0.5},
        "reduce": {"bucket_mb": 0.01},
    }
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values
    return config.resolve(tree)


def trainer(comm, config, dtype=torch.float32, restore=None, trace=None):
    dataset = open_dataset(config.data.path)
    model = models.build(config, dataset.vocabulary, dataset.labels, dataset.tokenizer()).to(dtype)
    training, validation = (batches(config, dataset, split) for split in ("train", "validation"))
    among = routing.allowed(config)
    ranks = mesh_of(comm, {group for compressor in among for group in compressor.groups})
    state = State(config, model)
    if restore:
        state.restore(
            restore, comm.rank, comm.size, {compressor.kept(slot) for compressor in among for slot in compressor.same}
        )
    return Trainer(config, comm, state, ranks, training, validation, among, config.train.steps, trace or NoTrace())


def saved(rank, tmp_path_factory):
    """Save a checkpoint; return the run folder. Collective."""
    rank.remember()
    run = tmp_path_factory.mktemp("run")
    run = type(run)(rank.comm.broadcast_object("folder", str(run)))
    checkpoint.save(run, rank.state.snapshot(), lambda folder: None, rank.comm)
    return run


def resumed(rank, tmp_path_factory):
    """Save a checkpoint, and continue from it in a trainer of its own. Collective."""
    path = checkpoint.folder(saved(rank, tmp_path_factory), rank.state.progress.step)
    return trainer(rank.comm, rank.config, restore=path)


def backward(rank, step):
    """One rank's gradients of a step; returns the number of targets they are of."""
    rank._seed(step)
    rank.reducer.start(step)
    mine = rank.training.micro_batches(step, rank.comm.rank, rank.comm.size, rank.config.train.micro_batch)
    for batch in mine:
        (rank._loss(batch) * (1 / rank.nominal)).backward()
    rank.reducer.finish()
    return sum(map(targets, mine))
