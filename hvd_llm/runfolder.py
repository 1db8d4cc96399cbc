"""The run folder: run.json says what was run, where, and on what. Schema: docs/run_folder.md."""

import fcntl
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hvd_llm import checkpoint, models, provenance
from hvd_llm import config as configuration
from hvd_llm.comm import Comm
from hvd_llm.data import Dataset
from hvd_llm.errors import UserError, first_line
from hvd_llm.folders import make_writable, write_record
from hvd_llm.state import State

SCHEMA = "hvd_llm.run/1"

# A resume may change how the run is carried out, not what it computes.
_MAY_CHANGE = {
    "run.dir",
    "run.resume",
    "run.device",
    "run.threads",
    "data.path",
    "train.steps",
    "train.epochs",
    "train.micro_batch",
    "train.activation_checkpointing",
    "train.compile",
    "train.log_every",
    "train.drift_check_every",
    "reduce.bucket_mb",
    "reduce.overlap",
    "reduce.rows",
    "reduce.cycle_ms",
    "reduce.share_memory",
    "model.pretrained",
}
_FREE_SECTIONS = {"checkpoint", "evaluate", "trace"}


def read(run: Path) -> dict[str, Any]:
    """Return a run's run.json.

    Raises:
        UserError: not a run folder, unreadable, or of another schema.
    """
    path = run / "run.json"
    try:
        record = json.loads(path.read_text())
        if record["schema"] != SCHEMA:
            raise UserError(f"{path} has schema {record['schema']!r}; this version reads {SCHEMA!r}")
        for key, kind in (("config", dict), ("model", dict), ("data", dict), ("launches", list)):
            if not isinstance(record[key], kind):
                raise TypeError(f"{key!r} is no {kind.__name__}")
        if not all(isinstance(section, dict) for section in record["config"].values()):
            raise TypeError("a section of 'config' is no dict")
        _ = record["data"]["fingerprint"] + "", record["model"]["flops_per_token"] + 0
    except FileNotFoundError:
        raise UserError(f"{run} is not a run folder: it has no run.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return record


@contextmanager
def claimed(run: Path, comm: Comm) -> Iterator[None]:
    """Keep other processes from training in `run` during the body. Collective.

    Raises:
        UserError: another process trains there.
    """
    lock = None
    with comm.together("claim the run folder"):
        if comm.rank == 0:
            lock = claim(run)
    with lock or nullcontext():
        yield


def claim(run: Path) -> TextIO | None:
    """A file whose lock is held until it is closed; None where the file system has no locks: nothing relies on it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = open(run / ".lock", "w")  # noqa: SIM115 - open as long as the run
    except OSError:
        return None  # opening the run will say why
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(f"run.dir {str(run)!r} is in use: another process is training there") from None
    except OSError:
        lock.close()
        return None
    return lock


def start(run: Path, config: configuration.Config, dataset: Dataset, model: nn.Module) -> Path | None:
    """Make a new run folder, or return the checkpoint to continue from. Rank 0's task.

    Raises:
        UserError: the folder holds a run that must not be touched, cannot be written, or differs.
    """
    if config.run.resume == "auto" and (run / "run.json").exists():
        _check_same(read(run), config, dataset.fingerprint)
        found = checkpoint.newest_whole(run, warn=lambda line: print(f"warning: {line}", file=sys.stderr))
        if found:
            checkpoint.set_aside(run, checkpoint.verify(found)["step"])
        return found
    _check_new(run)
    record = {
        "schema": SCHEMA,
        "kind": "train",
        "config": configuration.to_dict(config),
        "versions": provenance.versions(),
        "git": provenance.git(),
        "model": {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "flops_per_token": models.flops_per_token(model, config.data.sequence_length, _head_share(config)),
        },
        "data": {
            "fingerprint": dataset.fingerprint,
            "path": config.data.path,
            "kind": dataset.kind,
            "vocabulary": dataset.vocabulary,
        },
        "launches": [],
    }
    write_record(run, record)
    return None


def add_launch(run: Path, about: dict[str, Any], config: configuration.Config) -> int:
    """Append this start to run.json, with the settings in which it differs from the first; returns its number."""
    record = read(run)
    changed = dict(_differences(record, config))
    record["launches"].append(about | {"changed": {key: now for key, (_, now) in changed.items()}})
    write_record(run, record)
    return len(record["launches"]) - 1


def note(run: Path, launch: int, facts: Mapping[str, Any]) -> None:
    """Add what turned out after a launch had begun to its entry in run.json."""
    record = read(run)
    record["launches"][launch] |= facts
    write_record(run, record)


def save(run: Path, state: State, dataset: Dataset, policy: configuration.Checkpoint, comm: Comm) -> int:
    """Write a checkpoint of `state`, delete those that `policy` no longer wants; returns bytes written."""

    def assets(draft: Path) -> None:
        models.save_assets(state.model, dataset.tokenizer(), draft)

    size = checkpoint.save(run, state.snapshot(), assets, comm)
    if comm.rank == 0:
        checkpoint.retain(run, policy.keep, {state.progress.best_step} if policy.best else set())
    return size


def load_model(
    run: Path, step: str | int = "latest"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, configuration.Config]:
    """Rebuild the model of a checkpoint, in evaluation mode, without the data it was trained on.

    Args:
        step: "latest", "best" or a number.

    Raises:
        UserError: not a run folder, no such checkpoint, or a damaged one.
    """
    record = read(run)
    path = checkpoint.find(run, step)
    checkpoint.verify(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path / "tokenizer", local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a broken file makes transformers or tokenizers raise
        raise UserError(f"cannot load the tokenizer in {path}: {first_line(error)}") from None
    return models.from_checkpoint(path), tokenizer, configuration.resolve(record["config"])


def _check_new(run: Path) -> None:
    """Raise UserError if `run` holds a run already or cannot be written."""
    if (run / "run.json").exists():
        raise UserError(f"run.dir {str(run)!r} already holds a run; add --resume auto or choose another --run.dir")
    if (run / "index.json").exists():
        raise UserError(f"run.dir {str(run)!r} holds prepared data; choose another --run.dir")
    try:
        make_writable(run)
    except OSError as error:
        raise UserError(f"run.dir {str(run)!r} cannot be written: {error.strerror}") from None


def _check_same(record: dict[str, Any], config: configuration.Config, fingerprint: str) -> None:
    """Refuse to resume a run as something else.

    Raises:
        UserError: names the first setting (or the data) that differs, with both values.
    """
    for key, (before, value) in _differences(record, config):
        if key not in _MAY_CHANGE and key.partition(".")[0] not in _FREE_SECTIONS:
            raise UserError(f"cannot resume with {key} = {value!r}: the run was started with {before!r}")
    if record["data"]["fingerprint"] != fingerprint:
        raise UserError(
            f"cannot resume on other data: data.path {config.data.path!r} has fingerprint {fingerprint[:12]}, "
            f"the run was started with {record['data']['fingerprint'][:12]}"
        )


def _differences(record: dict[str, Any], config: configuration.Config) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """("section.key", (value in run.json, value in `config`)) of the settings that differ."""
    for section, values in configuration.to_dict(config).items():
        for key, value in values.items():
            before = record["config"].get(section, {}).get(key, value)
            if before != value:
                yield f"{section}.{key}", (before, value)


def _head_share(config: configuration.Config) -> float:
    """Share of the positions at which the output layer is computed."""
    shares = {"masked": config.data.mask_rate, "classify": 1 / config.data.sequence_length}
    return shares.get(config.data.task, 1.0)
