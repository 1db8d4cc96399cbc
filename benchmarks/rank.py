"""One rank of one contender: warm up, then time a block of steps whenever the driver gives the word.

The words are files in a folder: `go-K` starts block K on all ranks, `done-K-R` holds rank R's seconds per step.
"""

import argparse
import os
import time
from pathlib import Path

from benchmarks.contenders import CHANGES, CONTENDERS, ENVIRONMENT, settle
from hvd_llm import config as configuration
from hvd_llm.comm import connect
from hvd_llm.train_command import overrides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("config")
    parser.add_argument("--words", type=Path, required=True)
    parser.add_argument("--blocks", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    args, changes = parser.parse_known_args()
    config = configuration.load(args.config, overrides(changes) | CHANGES.get(args.contender, {}))
    settle(config)
    os.environ |= ENVIRONMENT.get(args.contender, {})
    comm = connect(config.reduce)
    step = CONTENDERS[args.contender](config, comm)
    for block in range(args.blocks + 1):  # block 0 warms up
        word = args.words / f"go-{block}"
        while not word.exists():
            time.sleep(0.005)
        began = time.perf_counter()
        for _ in range(args.steps):
            step()
        seconds = (time.perf_counter() - began) / args.steps
        draft = args.words / f".done-{block}-{comm.rank}"
        draft.write_text(repr(seconds))
        draft.rename(args.words / f"done-{block}-{comm.rank}")


if __name__ == "__main__":
    main()
