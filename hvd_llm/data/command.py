"""`hvd-llm prepare`: the command line."""

import argparse
import errno
import os
import shutil
import time
from pathlib import Path

from hvd_llm.errors import UserError

_DESCRIPTION = """\
Turn text into token shards that `hvd-llm train` reads, with a tokenizer that is trained here or given.

A SOURCE is one of
  embedded          the Python standard library that is installed here: real text, no download
  FILE, 'GLOB*'     by its ending: .jsonl .ndjson .json (one object per line) .csv .tsv .tab .parquet; anything
                    else is plain text, one document per file (a long one is cut between paragraphs); for
                    --kind tag: CoNLL columns
  FOLDER            all files below it, or a folder saved by `datasets` (save_to_disk)
  s3://… hdfs://…   whatever fsspec knows, if the package for it is installed; memory:// and file:// always are
"""

_EXAMPLES = """\
examples:
  hvd-llm prepare embedded --out data/embedded
      a byte-level BPE of 4,096 tokens for GPT and LLaMA
  hvd-llm prepare embedded --tokenizer wordpiece --out data/embedded-bert
      the same text for masked language models
  hvd-llm prepare embedded --kind classify --tokenizer wordpiece --out data/labelled
      a task with labels: docstring, comment or code?
  hvd-llm prepare 'books/*.txt' --vocabulary 16000 --out data/books
  hvd-llm prepare train.tsv --validation-source dev.tsv --test-source test.tsv --kind classify \\
      --tokenizer wordpiece --lowercase --out data/sentiment
  hvd-llm prepare reviews.jsonl --kind classify --text-field body --label-field stars --out data/reviews
  hvd-llm prepare eng.train --validation-source eng.testa --kind tag --tokenizer models/bert --out data/entities
  hvd-llm prepare --verify data/embedded
      hash every file again

Stopped or killed, the same command continues where it was; what comes out is the same, bit for bit, as
without the interruption and with any number of workers.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hvd-llm prepare`."""
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", nargs="*", metavar="SOURCE", help="what to read (see above)")
    parser.add_argument("--out", metavar="DIR", help="folder to write; it is complete when it has an index.json")
    parser.add_argument("--force", action="store_true", help="replace what an earlier prepare wrote there")
    parser.add_argument("--verify", metavar="DIR", help="only check a prepared folder against its hashes")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one per core)")
    _content(parser.add_argument_group("what is in it"))
    _splits(parser.add_argument_group("splits"))
    _tokens(parser.add_argument_group("text and tokens"))


def _content(group) -> None:
    group.add_argument(
        "--kind",
        choices=("text", "classify", "tag"),
        default="text",
        help="text for language models, a label per document, or a label per word (default: text)",
    )
    group.add_argument(
        "--text-column",
        "--text-field",
        default="",
        metavar="NAME",
        help="field with the text, a name or a number from 1 (default: text; tag: tokens)",
    )
    group.add_argument(
        "--label-column",
        "--label-field",
        default="",
        metavar="NAME",
        help="field with the label (default: label; tag: tags, or the last column)",
    )
    group.add_argument(
        "--header",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether CSV and TSV start with names; auto: if the first row has the names above (default)",
    )
    group.add_argument(
        "--undecodable",
        choices=("error", "skip"),
        default="error",
        help="files that are not UTF-8: stop, or leave out and count (default: error)",
    )


def _splits(group) -> None:
    group.add_argument(
        "--validation",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="share of the text to validate on, chosen by hash (default: 0.02)",
    )
    group.add_argument(
        "--validation-source",
        action="append",
        default=[],
        metavar="SOURCE",
        help="validate on this instead; kept whole, and training documents equal to one of it are dropped",
    )
    group.add_argument("--test-source", action="append", default=[], metavar="SOURCE", help="the same for a test split")
    group.add_argument(
        "--shards", type=int, default=8, metavar="N", help="files to spread the training split over (default: 8)"
    )


def _tokens(group) -> None:
    group.add_argument(
        "--tokenizer",
        default="bpe",
        metavar="bpe|wordpiece|FOLDER",
        help="train one (bpe for causal models, wordpiece for BERT) or take a model's own (default: bpe)",
    )
    group.add_argument(
        "--vocabulary", type=int, default=4096, metavar="N", help="tokens of a trained tokenizer (default: 4096)"
    )
    group.add_argument("--lowercase", action="store_true", help="the trained tokenizer ignores case")
    group.add_argument(
        "--whitespace",
        choices=("lines", "collapse", "keep"),
        default="lines",
        help="lines: keep indentation, strip line ends; collapse: single spaces (default: lines)",
    )
    group.add_argument(
        "--near-duplicates",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also drop documents that resemble another (MinHash, similarity 0.8; default: for --kind text only)",
    )


def run(args: argparse.Namespace) -> None:
    """Prepare or verify; prints what was done.

    Raises:
        UserError: a mistake in the arguments or in the sources.
    """
    if args.verify:
        return _verify(args.verify)
    if not args.out or "://" in args.out:
        raise UserError(f"--out {args.out or 'is missing; it'} must be a local folder to write to")
    from hvd_llm.data.plan import Settings, finished, make_plan

    began, out = time.monotonic(), Path(args.out)
    near = args.kind == "text" if args.near_duplicates is None else args.near_duplicates
    names = ("kind", "tokenizer", "vocabulary", "lowercase", "whitespace", "shards", "validation")
    columns = ("text_column", "label_column", "header", "undecodable")
    settings = Settings(near_duplicates=near, **{name: getattr(args, name) for name in names + columns})
    given = {"train": args.source, "validation": args.validation_source, "test": args.test_source}
    plan = make_plan({split: names for split, names in given.items() if names or split == "train"}, settings)
    damage = None
    replace = args.force and (out / "index.json").exists()
    if not replace and finished(plan, out) and not (damage := _damage(out)):
        shutil.rmtree(out / ".work", ignore_errors=True)  # left if it was killed at the very end
        print(f"{out} is already prepared from these sources with these settings; nothing to do")
        return None
    if damage:
        print(f"{damage}: doing so")
    from hvd_llm.data.prepare import prepare

    try:
        index = prepare(plan, out, _workers(args.workers))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR):
            raise
        raise UserError(f"cannot write to --out {out}: {error.strerror}") from None
    _report(out, index, time.monotonic() - began)
    return None


def _damage(folder: Path) -> str | None:
    """What is wrong with the files of a prepared folder at first sight: one is missing, or of another size."""
    from hvd_llm.data.shards import open_dataset

    try:
        open_dataset(folder)
    except UserError as error:
        return str(error)
    return None


def _workers(count: int) -> int:
    if count < 0:
        raise UserError(f"--workers is {count}; it must be 1 or more (0: one per core)")
    return count or len(os.sched_getaffinity(0))


def _verify(folder: str) -> None:
    from hvd_llm.data.shards import open_dataset

    dataset = open_dataset(folder)
    dataset.verify()
    print(f"{folder}: all files match their hashes; fingerprint {dataset.fingerprint}")


def _report(out: Path, index, seconds: float) -> None:
    for reason, count in index.removed.items():
        if count:
            print(f"left out: {count:,} {reason}")
    for split, shards in index.splits.items():
        tokens = [shard.tokens for shard in shards]
        spread = f", which differ by {100 * (max(tokens) / max(1, min(tokens)) - 1):.2f} %" if len(tokens) > 1 else ""
        documents = sum(shard.documents for shard in shards)
        print(f"{split}: {documents:,} documents, {sum(tokens):,} tokens in {len(tokens)} shards{spread}")
    labels = f", labels {', '.join(index.labels[:10])}{', …' if len(index.labels) > 10 else ''}" if index.labels else ""
    print(f"{out}: vocabulary {index.tokenizer.vocabulary:,}{labels}")
    print(f"fingerprint {index.fingerprint[:16]}, {seconds:.0f} s")
