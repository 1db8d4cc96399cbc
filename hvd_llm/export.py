"""`hvd-llm export`: a folder that `AutoModel` and `AutoTokenizer` of plain transformers load."""

import argparse
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hvd_llm.errors import UserError
from hvd_llm.folders import make_empty
from hvd_llm.runfolder import load_model


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write config.json, safetensors and the tokenizer's files into a new or empty folder.

    Raises:
        UserError: the folder holds something already, or cannot be written.
    """
    make_empty(folder)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for path in folder.glob("*.safetensors"):
            path.chmod((folder / "config.json").stat().st_mode)  # safetensors lets only the owner read
    except OSError as error:
        raise UserError(f"--out is {str(folder)!r}, which cannot be written: {error}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the model and its tokenizer")
    parser.add_argument("--step", default="latest", help="latest, best or a step's number (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    model, tokenizer, _ = load_model(args.run, args.step)
    export(model, tokenizer, args.out)
    print(f"{type(model).__name__} is in {args.out}")
