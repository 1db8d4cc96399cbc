"""`hvd-llm evaluate RUN`: the measures of a checkpoint on a split."""

import argparse
from dataclasses import replace
from pathlib import Path

from hvd_llm import config as configuration
from hvd_llm.errors import UserError
from hvd_llm.imports import lasting
from hvd_llm.start import start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of `hvd-llm train`")
    parser.add_argument("--step", default="latest", help="checkpoint: latest, best or a step (default: %(default)s)")
    parser.add_argument("--split", default="validation", help="split of the prepared data (default: %(default)s)")
    parser.add_argument("--data", default="", help="another prepared folder (default: the run's own)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="where to compute (default: the run's own)")
    parser.epilog = """\
examples:
  hvd-llm evaluate runs/first
  horovodrun -np 2 hvd-llm evaluate runs/first --step best --split test"""


def _settings(record: dict) -> configuration.Config:
    """Those in a run's record, but for the compressor: no gradient is sent, and it need not be installed here."""
    config = configuration.resolve(record["config"])
    return replace(config, reduce=configuration.Reduce(share_memory=config.reduce.share_memory))


def run(args: argparse.Namespace) -> None:
    with lasting():
        import torch

        from hvd_llm import checkpoint, device, models, runfolder
        from hvd_llm.data import open_dataset
        from hvd_llm.evaluate import evaluate
        from hvd_llm.train import batches

    config, comm = start(lambda: _settings(runfolder.read(args.run)))

    with comm.together("read the checkpoint and the data"):
        path = checkpoint.find(args.run, args.step)
        model, tokenizer, _ = runfolder.load_model(args.run, int(path.name.removeprefix("step-")))
        device.use_threads(config.run.threads, comm.local_size)
        model.to(device.choose(args.device or config.run.device, comm.local_rank))
        config = replace(config, data=replace(config.data, path=args.data or config.data.path))
        dataset = open_dataset(config.data.path)
        labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
        if other := models.other_token(tokenizer, dataset.tokenizer()):
            raise UserError(f"{config.data.path} was prepared with another tokenizer than this run's data: {other}")
        if config.data.task in ("classify", "tag") and dataset.labels != labels:
            raise UserError(f"{config.data.path} has the labels {dataset.labels}, the model {labels}")
        split = batches(config, dataset, args.split)
    score, count = evaluate(model, split, config.data.task, comm, config.train.micro_batch)
    count = int(comm.sum("evaluate.count", torch.tensor(count)))
    if comm.rank == 0:
        print(f"{args.split}: all {split.samples:,} sequences, {count:,} targets; checkpoint {path.name}")
        print(f"loss {score.loss:.4f}", *(f"{name} {score.readable(name)}" for name in score.measures), sep="\n")
    comm.close()
