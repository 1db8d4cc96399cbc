"""Checkpoints: everything that decides the next step, written so that a crash never leaves half of one.

A checkpoint is a folder `checkpoints/step-00000100` of safetensors and JSON. It is written under another
name, synced, and renamed when it is whole; its `state.json` holds the SHA-256 of every other file.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hvd_llm.comm import Comm
from hvd_llm.errors import UserError
from hvd_llm.reduce.memory import Named, take_over

SCHEMA = "hvd_llm.checkpoint/1"
_PREFIX = "step-"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds.

    Attributes:
        progress: step, counters, bucket order, loss scale, best score: plain values. There is no random
            state and no data position in it: both are pure functions of the seed and the step.
        model: parameter or buffer name → tensor; tied weights once.
        optimizer: "slot/parameter name" → tensor.
        own: parameter → slot → tensor: what is this rank's alone.
    """

    progress: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    own: Named


def folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{_PREFIX}{step:08d}"


def steps(run: Path) -> list[int]:
    """Steps of a run's checkpoints, oldest first. A folder of this name is whole."""
    names = [path.name.removeprefix(_PREFIX) for path in (run / "checkpoints").glob(f"{_PREFIX}*")]
    return sorted(int(name) for name in names if name.isdigit())


def save(run: Path, snapshot: Snapshot, assets: Callable[[Path], None], comm: Comm) -> int:
    """Write one checkpoint and return its size in bytes (0 on other ranks than 0). Collective.

    Rank 0 writes what all share, then every rank what is its own. No rank goes on before the
    checkpoint is whole: the time it takes lies between steps on every rank, and so does its failure.

    Args:
        assets: writes what the model needs to be rebuilt (its configuration, the tokenizer) into a folder.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are untouched.
    """
    final = folder(run, snapshot.progress["step"])
    draft = final.with_name(f".writing-{final.name}")
    size = 0
    try:
        with comm.together("write the checkpoint"), _disk_trouble(final):
            if comm.rank == 0:
                _write_shared(draft, snapshot, assets)
        with comm.together("write every rank's own"), _disk_trouble(final):
            if snapshot.own:
                _write_own(_of_rank(draft, comm.rank), snapshot.own)
        with comm.together("seal the checkpoint"), _disk_trouble(final):
            if comm.rank == 0:
                unseen = [rank for rank in range(comm.size) if snapshot.own and not _of_rank(draft, rank).exists()]
                if unseen:
                    raise UserError(f"{final.parent} lacks what ranks {unseen} wrote: it must be one folder for all")
                size = _seal(draft, final, snapshot.progress)
    except UserError:
        if comm.rank == 0:  # and not before all ranks have said what is wrong
            shutil.rmtree(draft, ignore_errors=True)
        raise
    return size


def _write_shared(draft: Path, snapshot: Snapshot, assets: Callable[[Path], None]) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(snapshot.model, draft / "model.safetensors", {"format": "pt"})
    save_file(snapshot.optimizer, draft / "optimizer.safetensors")
    assets(draft)


def _write_own(path: Path, own: Named) -> None:
    flat = {f"{name}/{slot}": value for name, slots in own.items() for slot, value in slots.items()}
    save_file({key: value.contiguous() for key, value in flat.items()}, path)


def _seal(draft: Path, final: Path, progress: dict[str, Any]) -> int:
    """Make a finished draft durable, then give it its name: the one moment when it becomes a checkpoint."""
    files = [path for path in sorted(draft.rglob("*")) if path.is_file()]
    hashes = {str(path.relative_to(draft)): _sha256(path) for path in files}
    state = draft / "state.json"
    record = {"schema": SCHEMA, "progress": progress, "progress_sha256": _digest(progress), "sha256": hashes}
    state.write_text(json.dumps(record, indent=1))
    for path in files:
        path.chmod(state.stat().st_mode)  # safetensors makes files that only their owner may read
    folders = [path for path in draft.rglob("*") if path.is_dir()]
    for path in [*files, state, *folders, draft]:
        _sync(path)
    grave = _bury(final) if final.exists() else None  # the same step again, after a resume
    draft.rename(final)
    _sync(final.parent)
    if grave:
        shutil.rmtree(grave, ignore_errors=True)
    return sum(path.stat().st_size for path in [*(final / name for name in hashes), final / "state.json"])


def retain(run: Path, keep: int, always: set[int]) -> None:
    """Delete all but the newest `keep` checkpoints and those of the steps in `always`."""
    for step in steps(run)[:-keep]:
        if step not in always:
            shutil.rmtree(_bury(folder(run, step)), ignore_errors=True)
    for prefix in (".writing-", ".deleting-"):
        for leftover in (run / "checkpoints").glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _bury(doomed: Path) -> Path:
    """Rename what is to be deleted, and return its new name: never leave half a checkpoint under its own."""
    grave = doomed.with_name(f".deleting-{doomed.name}")
    shutil.rmtree(grave, ignore_errors=True)  # of a run that was killed before it had deleted all
    return doomed.rename(grave)


def set_aside(run: Path, after: int) -> None:
    """Rename the (damaged) checkpoints newer than step `after`: nobody should count on them, or lose them."""
    for step in steps(run):
        if step > after:
            damaged = folder(run, step)
            shutil.rmtree(damaged.with_name(f".damaged-{damaged.name}"), ignore_errors=True)
            damaged.rename(damaged.with_name(f".damaged-{damaged.name}"))


def verify(path: Path) -> dict[str, Any]:
    """Return the `progress` of a checkpoint folder after comparing every file with its hash.

    Raises:
        UserError: a file is missing, altered or not ours.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        if state["schema"] != SCHEMA:
            raise UserError(f"checkpoint {path} has schema {state['schema']!r}; this version reads {SCHEMA!r}")
        for name, expected in state["sha256"].items():
            if ".." in Path(name).parts or Path(name).is_absolute() or _sha256(path / name) != expected:
                raise UserError(f"checkpoint {path} is damaged: {name} does not match its SHA-256")
        if _digest(state["progress"]) != state["progress_sha256"]:
            raise UserError(f"checkpoint {path} is damaged: its progress does not match its SHA-256")
        if folder(path.parents[1], state["progress"]["step"]).name != path.name:
            raise UserError(f"checkpoint {path} is damaged: it says it is of step {state['progress']['step']}")
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} is incomplete: {Path(error.filename).name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {path} is damaged: its state.json cannot be read ({error})") from None
    return state["progress"]


def load(path: Path, rank: int, size: int, same: Collection[str] = ()) -> Snapshot:
    """Read and verify the checkpoint in `path` as `rank` of `size` needs it, however many ranks wrote it.

    Args:
        same: slots of the compressors' state that are equal on all ranks.

    Raises:
        UserError: as `verify`.
    """
    progress = verify(path)
    writers = len(list(path.glob("rank-*.safetensors")))
    try:
        return Snapshot(
            progress=progress,
            model=load_file(path / "model.safetensors"),
            optimizer=load_file(path / "optimizer.safetensors"),
            own=take_over(lambda writer: _named(_of_rank(path, writer)), writers, rank, size, same),
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"checkpoint {path} is damaged: {error}") from None


def _of_rank(path: Path, rank: int) -> Path:
    return path / f"rank-{rank:05d}.safetensors"


def _named(path: Path) -> Named:
    """Read what one rank's compressors keep."""
    found: Named = {}
    for key, value in load_file(path).items():
        name, slot = key.rsplit("/", 1)
        found.setdefault(name, {})[slot] = value
    return found


def newest_whole(run: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies, or None if the run has none at all.

    Raises:
        UserError: there are checkpoints, and every one is damaged.
    """
    trouble = None
    for step in reversed(steps(run)):
        path = folder(run, step)
        try:
            verify(path)
            return path
        except UserError as error:
            trouble = trouble or error
            warn(f"{error}; trying the one before it")
    if trouble:
        raise UserError(f"{trouble}, and no older one is whole")
    return None


def find(run: Path, step: str | int = "latest") -> Path:
    """The folder of a run's checkpoint: "latest", "best" or a step.

    Raises:
        UserError: not a run, or no such checkpoint.
    """
    if not (run / "run.json").is_file():
        raise UserError(f"{run} is not a run folder: it has no run.json")
    have = steps(run)
    if not have:
        raise UserError(f"{run} has no checkpoint yet")
    if step == "latest":
        return folder(run, have[-1])
    if step == "best":
        best = verify(folder(run, have[-1]))["best_step"]
        return folder(run, best if best in have else have[-1])
    if not str(step).isdigit() or int(step) not in have:
        raise UserError(f"{run} has no checkpoint {step!r}; there are latest, best, {', '.join(map(str, have))}")
    return folder(run, int(step))


@contextmanager
def _disk_trouble(final: Path):
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the checkpoint {final}: {error}") from None


def _digest(progress: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
