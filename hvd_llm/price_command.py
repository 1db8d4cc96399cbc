"""`hvd-llm price`: what compressors would send and compute in a step, for any number of ranks, found out on one."""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hvd_llm import config as configuration
from hvd_llm.config import Config
from hvd_llm.errors import UserError
from hvd_llm.imports import lasting
from hvd_llm.train_command import overrides

if TYPE_CHECKING:
    from hvd_llm.comm import Comm
    from hvd_llm.reduce.pricing import Price
    from hvd_llm.train import Trainer

SCHEMA = "hvd_llm.prices/1"
_COMPRESSORS = ("none", "bf16", "int8", "int4", "powersgd")
_MOST_RANKS = 256  # an analysis can go on from there
_PASSES = 3  # of which the shortest counts


@dataclass(frozen=True)
class Row:
    """A line of prices.csv: a bucket's exchange, by one rank of `ranks` on as many hosts, each of which takes one
    micro-batch a step.

    Attributes:
        compressor, bucket_mb: as `reduce.` has them; a bucket that it does not suit goes through another one.
        ready_s: from the start of a forward and backward pass to the bucket's last gradient.
        pass_s: of the whole pass.
        kernel_s: of computing, in all rounds.
        sum_bytes, gather_bytes, all_to_all_bytes: that the rank sends, in so many operations.
    """

    ranks: int
    compressor: str
    bucket_mb: float
    bucket: int
    gradient_bytes: int
    ready_s: float
    pass_s: float
    kernel_s: float
    sums: int
    sum_bytes: float
    gathers: int
    gather_bytes: float
    all_to_alls: int
    all_to_all_bytes: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hvd-llm price CONFIG [--ranks N …] [--compressors NAME …] [--buckets MIB …] [--section.key value …]"
    parser.add_argument("config", help="as of hvd-llm train, whose settings can be given, too")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[2, 4, 8, 16, 32], help="how many (default: 2 4 8 16 32)"
    )
    parser.add_argument(
        "--compressors",
        nargs="+",
        default=list(_COMPRESSORS),
        metavar="NAME",
        help=f"as reduce.compressor names them (default: {' '.join(_COMPRESSORS)})",
    )
    parser.add_argument(
        "--buckets",
        type=float,
        nargs="+",
        metavar="MIB",
        help="sizes, as reduce.bucket_mb (default: the configuration's)",
    )
    parser.add_argument("--out", default="", help="new folder (default: runs/prices-TIME)")
    parser.set_defaults(overrides=[])
    parser.epilog = """\
examples:
  hvd-llm price gpt-tiny
  hvd-llm price gpt-tiny --ranks 2 4 8 16 --compressors none 'powersgd(rank=8)' --buckets 1 4 16 --out runs/prices

It runs on one process, without a launcher: each rank is taken to have a host of its own, and to take one micro-batch a
step. `python -m analysis simulate` puts prices, a trace and a network together."""


def settings(args: argparse.Namespace) -> Config:
    """The configuration, checked with every compressor that is asked about.

    Raises:
        UserError: one of them cannot be.
    """
    config = configuration.load(args.config, overrides(args.overrides))
    sizes = args.buckets or [config.reduce.bucket_mb]
    for ranks in args.ranks:
        if not 2 <= ranks <= _MOST_RANKS:
            raise UserError(f"--ranks has {ranks}; it must be from 2 to {_MOST_RANKS}")
    for name, size in itertools.product(args.compressors, sizes):
        configuration.load(
            args.config, overrides(args.overrides) | {"reduce.compressor": name, "reduce.bucket_mb": str(size)}
        )
    return config


def run(args: argparse.Namespace) -> None:
    config = settings(args)
    with lasting():
        from hvd_llm import device, folders, provenance
        from hvd_llm.comm.solo import Solo
        from hvd_llm.metrics import Display

    folder = Path(args.out or str(folders.default("prices", 1)))
    folders.make_empty(folder)
    where = device.choose(config.run.device, 0)
    threads = device.use_threads(config.run.threads, 1)
    device.keep_freed_memory()
    sizes = sorted(set(args.buckets or [config.reduce.bucket_mb]))
    cells = list(itertools.product(sorted(set(args.ranks)), dict.fromkeys(args.compressors), sizes))
    display, rows = Display(0, len(cells), "price"), []
    for number, (ranks, name, size) in enumerate(cells, 1):
        changes = {
            "reduce": replace(config.reduce, compressor=name, bucket_mb=size, share_memory=False),
            "train": replace(config.train, global_batch=config.train.micro_batch * ranks),
        }
        rows += priced(replace(config, **changes), ranks, where)
        display.show(number, f"{name}, {ranks} ranks, {size:g} MiB")
    display.close()
    machine = provenance.machine(where)
    record = {
        "schema": SCHEMA,
        "kind": "prices",
        "config": configuration.to_dict(config),
        "versions": provenance.versions(),
        "git": provenance.git(),
        "launches": [provenance.launch(0, [machine], Solo(), threads)],
    }
    try:
        with open(folder / "prices.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
        folders.write_record(folder, record)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from None
    print(table(rows))
    print(f"\nBy bucket, in {folder}/prices.csv.")


def priced(config: Config, ranks: int, where) -> Iterator[Row]:
    """A row for each bucket of a step.

    Raises:
        UserError: the compressor cannot be used among so many.
    """
    from hvd_llm.comm.mute import Mute
    from hvd_llm.reduce.buckets import readiness
    from hvd_llm.reduce.probe import steady

    trainer = _trainer(config, Mute(0, ranks), where)
    tensors = trainer.reducer.parameters
    trainer.rehearse()  # the first pass is slower than all others
    passes = [readiness(tensors, trainer.rehearse) for _ in range(_PASSES)]
    seconds = {name: min(each[name] for each in passes) for name in tensors}
    tokens = config.train.micro_batch * config.data.sequence_length
    for index, planned in enumerate(trainer.plan.buckets):
        price = steady(tensors, planned, ranks, node_size=1, tokens=tokens)
        yield Row(
            ranks,
            config.reduce.compressor,
            config.reduce.bucket_mb,
            index,
            sum(tensors[name].nbytes for name in planned.names),
            max(seconds[name] for name in planned.names),
            max(seconds.values()),
            price.kernel_s,
            *_sent(price, "sum", "bucket"),
            *_sent(price, "gather"),
            *_sent(price, "all_to_all"),
        )


def _sent(price: Price, *kinds: str) -> tuple[int, float]:
    """How many operations there are of some kinds, and what they send."""
    found = [operation.sent_bytes for operation in price.operations if operation.kind in kinds]
    return len(found), sum(found)


def _trainer(config: Config, comm: Comm, where) -> Trainer:
    """Rank 0 of as many as `comm` says, each on a host of its own, which never hears of the others."""
    from hvd_llm import mesh, models, routing
    from hvd_llm.data import open_dataset
    from hvd_llm.reduce.pricing import rehearse
    from hvd_llm.state import State
    from hvd_llm.trace import NoTrace
    from hvd_llm.train import Trainer, batches

    dataset = open_dataset(config.data.path)
    training, validation = (batches(config, dataset, split) for split in ("train", "validation"))
    model = models.build(config, dataset.vocabulary, dataset.labels, dataset.tokenizer()).to(where)
    among = routing.allowed(config)
    if len(among) > 1:
        raise UserError("--compressors has auto, which chooses among those that are priced: name these")
    rehearse(among[0], comm.size, 1)
    ranks = mesh.build(comm.rank, [f"host {rank}" for rank in range(comm.size)])
    return Trainer(config, comm, State(config, model), ranks, training, validation, among, 1, NoTrace())


def table(rows: Sequence[Row]) -> str:
    """Of a whole step: a line for each number of ranks, compressor and size of buckets."""
    text = [f"{'compressor':32}{'ranks':>6}{'bucket MiB':>12}{'buckets':>9}{'MB sent':>9}{'kernels ms':>12}"]
    for key, group in itertools.groupby(rows, lambda row: (row.compressor, row.ranks, row.bucket_mb)):
        of_step, (name, ranks, size) = list(group), key
        sent = sum(row.sum_bytes + row.gather_bytes + row.all_to_all_bytes for row in of_step)
        kernels = sum(row.kernel_s for row in of_step)
        text.append(f"{name:32}{ranks:6}{size:12g}{len(of_step):9}{sent / 1e6:9.2f}{kernels * 1e3:12.1f}")
    return "\n".join(text)
