"""The command table of `hvd-llm`."""

import argparse
import importlib
import os
import signal
import sys
import time
from contextlib import suppress

from hvd_llm.errors import UserError, mistake, nearest
from hvd_llm.imports import lasting
from hvd_llm.launcher import Launch

# command: (module that has add_arguments and run, what it does)
COMMANDS = {
    "prepare": ("hvd_llm.data.command", "turn text into token shards"),
    "train": ("hvd_llm.train_command", "train a model on this process, or on all a launcher started"),
    "evaluate": ("hvd_llm.evaluate_command", "score a checkpoint"),
    "generate": ("hvd_llm.generate", "write text with a checkpoint"),
    "export": ("hvd_llm.export", "write a folder that transformers loads"),
    "bench": ("hvd_llm.bench", "time what ranks exchange: latency and bandwidth of every operation"),
    "price": ("hvd_llm.price_command", "say what compressors would send and compute, for any number of ranks"),
    "compressors": ("hvd_llm.compress.command", "list how gradients can be sent"),
    "doctor": ("hvd_llm.doctor", "say what is built, what works, and how to mend the rest"),
    "install-horovod": ("hvd_llm.horovod_build.install", "build Horovod for the installed PyTorch"),
}


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence."""

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """The whole command line; modules of other commands are not imported."""
    lines = "\n".join(f"  {name:16} {what}" for name, (_, what) in COMMANDS.items())
    return Parser(
        prog="hvd-llm",
        description="Train language models with Horovod.",
        epilog=f"commands:\n{lines}\n\n`hvd-llm COMMAND --help` explains each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="hvd-llm COMMAND …",
    )


def dispatch(argv: list[str]) -> None:
    """Run one command.

    Raises:
        UserError: no such command, or a mistake in what it was given.
    """
    if not argv or argv[0] in ("-h", "--help"):
        parser().print_help()
        return
    name, *rest = argv
    if name == "--version":
        from importlib.metadata import version

        print(f"hvd-llm {version('hvd_llm')}")
        return
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}{nearest(name, COMMANDS)}")
    path, what = COMMANDS[name]
    with lasting():
        module = importlib.import_module(path)
    command = Parser(
        prog=f"hvd-llm {name}",
        description=f"{what[0].upper()}{what[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command)
    arguments, unknown = command.parse_known_args(rest)
    if unknown and not hasattr(arguments, "overrides"):
        raise UserError(f"hvd-llm {name} does not know {unknown[0]!r} (see hvd-llm {name} --help)")
    arguments.overrides = unknown
    module.run(arguments)


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2, on rank 0 or on the rank that has it."""
    rank = Launch.from_environment().rank
    try:
        dispatch(sys.argv[1:])
    except KeyboardInterrupt:
        _leave(128 + signal.SIGINT)
    except BrokenPipeError:
        os._exit(128 + signal.SIGPIPE)
    except Exception as error:
        if not (known := mistake(error)):
            raise
        if rank == 0 or not known.shared:
            print(f"hvd-llm: {f'rank {rank}: ' if rank else ''}{known}", file=sys.stderr, flush=True)
        else:
            with suppress(KeyboardInterrupt):
                time.sleep(5)  # launchers end the job with its first process: rank 0 is to speak before
        _leave(2)


def _leave(code: int) -> None:
    """Exit at once: Horovod's exit handler would wait for ranks that may never come."""
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
