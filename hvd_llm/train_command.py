"""`hvd-llm train CONFIG [--section.key value …]`."""

import argparse
import errno
import re

from hvd_llm import config as configuration
from hvd_llm.errors import UserError, first_line
from hvd_llm.imports import lasting
from hvd_llm.start import start

_DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}

# What torch's allocators say: of the host's memory, of a GPU's.
_OUT_OF_MEMORY = re.compile("not enough memory|can't allocate memory|out of memory")

# What people type most, without its section.
_SHORT = {"--resume": "run.resume", "--out": "run.dir", "--seed": "run.seed", "--data": "data.path"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hvd-llm train CONFIG [--resume auto] [--section.key value …]"
    parser.add_argument("config", help=f"a TOML file, or one of: {', '.join(configuration.shipped())}")
    parser.set_defaults(overrides=[])
    parser.epilog = f"""\
examples:
  hvd-llm train gpt-tiny
  horovodrun -np 2 hvd-llm train gpt-tiny --train.steps 200 --out runs/first
  horovodrun -np 2 hvd-llm train gpt-tiny --out runs/first --resume auto

short: {", ".join(f"{short} for --{name}" for short, name in _SHORT.items())}

settings, their defaults and meaning (a TOML file has one table for each section):
{configuration.help_text()}"""


def overrides(words: list[str]) -> dict[str, str]:
    """Read `--section.key value` and `--section.key=value` pairs.

    Raises:
        UserError: a word that is neither, or a setting without a value.
    """
    found, rest = {}, list(words)
    while rest:
        given = rest.pop(0)
        word, equals, value = given.partition("=")
        key = _SHORT.get(word, word.removeprefix("--"))
        if not word.startswith("--") or "." not in key:
            like = configuration.named(key)
            meant = f"; did you mean {' or '.join(f'--{name}' for name in like)}?" if like else ""
            raise UserError(f"{given!r} is not a setting; settings look like --section.key value{meant}")
        if not equals:
            if not rest:
                raise UserError(f"{word} needs a value")
            value = rest.pop(0)
        found[key] = value
    return found


def run(args: argparse.Namespace) -> None:
    config, comm = start(lambda: configuration.load(args.config, overrides(args.overrides)))
    # Imported once the settings are known to be good: this is where PyTorch and transformers come in.
    with lasting():
        from hvd_llm.train import train

    try:
        folder = train(config, args.config, comm)
    except OSError as error:
        if error.errno in _DISK_TROUBLE:
            raise UserError(f"the run cannot be written: {error}") from None
        raise
    except (MemoryError, RuntimeError) as error:
        if _OUT_OF_MEMORY.search(str(error)) or isinstance(error, MemoryError):
            raise UserError(
                f"out of memory with train.micro_batch = {config.train.micro_batch}, data.sequence_length = "
                f"{config.data.sequence_length}: take a smaller micro_batch (the global one stays), "
                f"train.activation_checkpointing or a smaller model ({first_line(error)})"
            ) from None
        raise
    if comm.rank == 0:
        print(f"The run is in {folder}.")
    comm.close()
