"""`hvd-llm compressors`: what `reduce.compressor` can be here."""

import argparse

from hvd_llm.compress import registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"A package adds its own through the entry-point group {registry.GROUP!r}."


def run(args: argparse.Namespace) -> None:
    for name in registry.names():
        first_line = (registry.find(name).__doc__ or "").strip().partition("\n")[0]
        print(f"{name:16} {first_line}")
