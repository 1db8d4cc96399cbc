"""One rank of one contender: a block of steps whenever the driver gives the word.

The words are files in a folder: `go-K` holds how many steps block K has, those to warm up and those to time; no
steps at all end the job. `done-K-R` holds rank R's seconds per timed step.
"""

import argparse
import itertools
import os
import time
from pathlib import Path

from hvd_llm.imports import lasting

with lasting():
    from benchmarks import contenders
    from hvd_llm import config as configuration
    from hvd_llm.comm import connect
    from hvd_llm.compress import registry
    from hvd_llm.train_command import overrides


# A rank that is stopped while others have their turns must not look dead: Gloo gives it half a minute.
PATIENT = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "86400", "HOROVOD_STALL_CHECK_DISABLE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", type=contenders.find)
    parser.add_argument("config")
    parser.add_argument("--words", type=Path, required=True)
    args, changes = parser.parse_known_args()
    settings = {"run.dir": str(args.words), **overrides(changes), **args.contender.changes}
    config = configuration.load(args.config, settings)
    contenders.settle(config)
    os.environ |= args.contender.environment | PATIENT
    comm = connect(config, groups=any(one.groups for one in registry.candidates(config.reduce.compressor)))
    step = args.contender.prepare(config, comm)
    for block in itertools.count():
        word = args.words / f"go-{block}"
        while not word.exists():
            time.sleep(0.005)
        warm_up, steps = map(int, word.read_text().split())
        if not steps:
            break
        for _ in range(warm_up):
            step()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = (time.perf_counter() - began) / steps
        draft = args.words / f".done-{block}-{comm.rank}"
        draft.write_text(repr(seconds))
        draft.rename(args.words / f"done-{block}-{comm.rank}")


if __name__ == "__main__":
    main()
