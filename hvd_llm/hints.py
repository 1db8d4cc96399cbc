"""What a run will do otherwise than its user may think, said before its first step."""

from collections.abc import Iterator

from hvd_llm import cores
from hvd_llm.comm import Comm
from hvd_llm.compress import registry
from hvd_llm.config import Config, Sync


def hints(
    config: Config, steps: int, comm: Comm, device: str, threads: int, sharing: int, training: int, validation: int
) -> Iterator[str]:
    """A sentence for each.

    Args:
        steps: of the whole training.
        device: kind of it, such as "cpu".
        threads: CPU threads of this rank.
        sharing: ranks that may use this rank's cores.
        training, validation: sequences of these splits.
    """
    if config.train.global_batch > training:
        yield f"train.global_batch is {config.train.global_batch}, but there are {training} sequences: a step takes all"
    scored = config.evaluate.batches * config.train.global_batch
    if 0 < scored < validation:
        yield f"scores while training are of {scored} of {validation} validation sequences (evaluate.batches, 0: all)"
    if config.reduce.share_memory and device == "cpu" and 1 < comm.size == comm.local_size and not comm.shares_memory:
        yield f"these ranks cannot share memory, and sum gradients through {comm.controller}"
    if config.trace.horovod_timeline and (comm.size == 1 or comm.shares_memory):
        why = "one rank does not use it" if comm.size == 1 else "these ranks sum gradients in memory they share"
        yield f"Horovod's timeline will have no gradients: {why}"
    compressor = config.reduce.compressor
    if "onebit" in compressor and config.optimizer.name == "adamw" and config.sync.every == 1:
        yield "onebit says little of gradients' sizes, by which adamw steps: optimizer.name zero_one_adam can bear that"
    if config.reduce.automatic and "hierarchical" not in compressor and 1 < comm.local_size < comm.size:
        yield "hosts have several ranks: auto(hierarchical=true) may also sum within hosts first"
    for_speed = not config.reduce.automatic and compressor != "none" and registry.find(compressor).sums
    if for_speed and comm.shares_memory and config.sync.every == 1:
        yield f"these ranks could sum gradients in memory they share, which is faster than {compressor}"
    all_of = f"of {steps} steps"
    if config.reduce.warmup_steps >= steps and compressor != "none":
        yield f"nothing will go through {compressor}: reduce.warmup_steps is {config.reduce.warmup_steps}, {all_of}"
    if config.sync.after >= steps and config.sync.every > 1:
        yield f"ranks will stay together: sync.after is {config.sync.after}, {all_of}"
    if 1 < steps - config.sync.after < config.sync.every:
        yield f"ranks will meet once, at the end: sync.every is {config.sync.every}, and these are all steps"
    if config.sync.every == 1 and config.sync != Sync():
        yield "the settings of sync do nothing while sync.every is 1: ranks exchange gradients in every step"
    usable = cores.usable()
    if threads * sharing > usable:
        yield (
            f"{sharing} rank{'s' if sharing > 1 else ''} with {threads} thread{'s' if threads > 1 else ''} each share "
            f"{usable} core{'s' if usable > 1 else ''} and wait for each other: "
            f"{'set run.threads to 0, or ' if threads > 1 else ''}start fewer ranks"
        )
