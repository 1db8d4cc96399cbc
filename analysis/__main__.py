"""The command table of `python -m analysis`."""

import argparse
import sys

from analysis import compare, replay, report, simulate, watch
from analysis.errors import AnalysisError

# A command is a module with HELP, DESCRIPTION, EPILOG, add_arguments(parser) and run(arguments) → exit code.
COMMANDS = {"report": report, "watch": watch, "compare": compare, "simulate": simulate, "replay": replay}


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence."""

    def error(self, message: str):
        raise AnalysisError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="python -m analysis",
        description="What run folders say about speed: how well it scales, where the time goes, what changed.",
        epilog="`python -m analysis COMMAND --help` explains a command.",
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(one)
        one.set_defaults(run=module.run)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; a mistake of the user is one sentence on stderr and exit code 2."""
    try:
        arguments = parser().parse_args(argv)
        return arguments.run(arguments)
    except AnalysisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a path that is too long, or not for this user
        if error.filename is None:  # not a path's fault: ours
            raise
        print(f"error: cannot use {str(error.filename)!r}: {error.strerror}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
