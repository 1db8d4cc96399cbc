"""`hvd-llm compressors`: what `reduce.compressor` can be here."""

import argparse

from hvd_llm.compress import registry
from hvd_llm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"""\
Options are given with the name: --reduce.compressor "topk(keep=32)"
A package adds its own through the entry-point group {registry.GROUP!r}."""


def run(args: argparse.Namespace) -> None:
    for name in registry.names():
        try:
            found = registry.find(name)
        except UserError as error:
            print(f"{name:40} cannot be used: {error}")
            continue
        options = ", ".join(f"{option}={value}" for option, value in found.defaults.items())
        print(f"{name + (f'({options})' if options else ''):40} {found.summary}")
    print(f"{'auto(among=…, hierarchical=False)':40} what a probe finds fastest for each bucket, of: {registry.AMONG}")
