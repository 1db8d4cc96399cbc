"""Run folders: run.json and where its traces and metrics are (docs/run_folder.md)."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import json_file
from analysis.errors import AnalysisError
from analysis.trace_file import TraceFile, open_trace

SCHEMA = "hvd_llm.run/1"
SHARED_MEMORY = "shared memory"


@dataclass(frozen=True)
class Launch:
    """One start of a run: what a step time belongs to (a resume may use other hosts or ranks)."""

    run: "Run"
    number: int
    facts: dict[str, Any]  # its entry under "launches"

    @property
    def name(self) -> str:
        return self.run.name if len(self.run.launches) == 1 else f"{self.run.name}/launch-{self.number}"

    @property
    def size(self) -> int:
        return self.facts["size"]

    @property
    def ranks_per_host(self) -> int:
        """Ranks on the fullest host."""
        return max(Counter(self.facts["hosts"]).values())

    @property
    def through(self) -> str:
        """What gradients go through: the controller, or memory that all ranks share."""
        return SHARED_MEMORY if self.facts.get("shares_memory") else self.facts["controller"]

    @property
    def folder(self) -> Path:
        """Of its traces."""
        return self.run.path / "trace" / f"launch-{self.number}"

    @property
    def horovod_timeline(self) -> Path:
        """Which is there if it was asked for."""
        return self.folder / "horovod_timeline.json"

    def traces(self, complete: bool = True) -> list[TraceFile]:
        """Its trace files by rank; an empty list when nothing was traced.

        Args:
            complete: whether all ranks must have one, as soon as one has.

        Raises:
            AnalysisError: a rank's file is missing, foreign, or of another launch's size.
        """
        traces = sorted((open_trace(path) for path in self.folder.glob("rank-*.trace")), key=lambda trace: trace.rank)
        for trace in traces:
            if trace.size != self.size:
                raise AnalysisError(f"{trace.path} is of {trace.size} ranks, but run.json says {self.size}")
        missing = sorted(set(range(self.size)) - {trace.rank for trace in traces})
        if traces and ((missing and complete) or len(traces) > self.size):
            raise AnalysisError(
                f"{self.folder} must hold one trace for each of {self.size} ranks; missing: {missing[:8]}"
            )
        return traces


@dataclass(frozen=True)
class Run:
    """A run folder whose run.json was checked."""

    path: Path
    about: dict[str, Any]  # run.json
    name: str  # the folder's name, with as many of its parents as tell it from the other runs

    @property
    def launches(self) -> list[Launch]:
        return [Launch(self, number, facts) for number, facts in enumerate(self.about["launches"])]

    @property
    def global_batch(self) -> int:
        """Sequences per optimizer step over all ranks."""
        return self.about["config"]["train"]["global_batch"]

    @property
    def apart(self) -> bool:
        """Whether ranks take most steps alone."""
        return self.about["config"].get("sync", {}).get("every", 1) > 1

    @property
    def compressor(self) -> str:
        """What gradients go through, as it was asked for."""
        return str(self.about["config"].get("reduce", {}).get("compressor", "none"))

    def metrics(self) -> pd.DataFrame:
        """Columns step, loss, validation_loss of metrics.csv, by step; after a resume the last value of a step counts.

        Raises:
            AnalysisError: missing, empty or malformed.
        """
        path = self.path / "metrics.csv"
        columns = ("step", "loss", "validation_loss")
        try:
            table = pd.read_csv(path, dtype=str)  # text → float64 below is exact, to the last bit
            table = table[[name for name in columns if name in table]].astype("float64")
        except OSError as error:
            raise AnalysisError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, OverflowError) as error:
            raise AnalysisError(f"{path} is not a table of numbers: {str(error).splitlines()[0]:.150}") from None
        missing = [name for name in columns if name not in table]
        if missing or table.empty:
            raise AnalysisError(f"{path} has no {'rows' if not missing else f'column {missing[0]!r}'}")
        if not table["step"].map(lambda step: 0 <= step < 2**53 and step == int(step)).all():
            raise AnalysisError(f"{path}: every row needs a step, a whole number from 0")
        table["step"] = table["step"].astype("int64")
        # Training and evaluation may write a row each; a resume repeats both: the last value of each column.
        return table.groupby("step", sort=True).last().reset_index()


def find_runs(paths: list[Path]) -> list[Run]:
    """Open every run folder in `paths`; a folder without run.json stands for the training runs inside it.

    Raises:
        AnalysisError: no such folder, no run in it, or a run.json that is not one.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise AnalysisError(f"{path} is not a folder")
        inside = [path]
        if not (path / "run.json").exists():
            records = sorted(path.glob("*/run.json"))
            inside = [file.parent for file in records if json_file.read(file).get("kind") != "bench"]
        if not inside:
            raise AnalysisError(f"{path} holds no run: neither {path / 'run.json'} nor a folder with one")
        for folder in inside:
            found.setdefault(folder.resolve(), folder)
    names = _names(list(found))
    return [open_run(folder, names[resolved]) for resolved, folder in found.items()]


def _names(paths: list[Path]) -> dict[Path, str]:
    """The shortest ends of the paths that tell all of them apart."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = {path: "/".join(path.parts[-parts:]) for path in paths}
        if len(set(names.values())) == len(paths):
            break
    return names


def open_run(path: Path, name: str) -> Run:
    """Read and check `path`/run.json.

    Raises:
        AnalysisError: unreadable, of another schema, or without what the analysis needs.
    """
    where = str(path / "run.json")
    about = json_file.read(path / "run.json")
    if about.get("schema") != SCHEMA:
        raise AnalysisError(f"{where} has schema {about.get('schema')!r:.80}; this reads {SCHEMA!r}")
    for key in ("config", "versions", "model", "data"):
        json_file.need(about, key, dict, where)
    for section, settings in about["config"].items():
        if not isinstance(settings, dict):
            raise AnalysisError(f"{where}: section {section!r:.80} of 'config' must be an object")
    batch = json_file.need(json_file.need(about["config"], "train", dict, where), "global_batch", int, where)
    if batch < 1:
        raise AnalysisError(f"{where}: 'global_batch' must be at least 1, but it is {batch}")
    launches = json_file.need(about, "launches", list, where)
    if not launches:
        raise AnalysisError(f"{where}: 'launches' is empty")
    for number, facts in enumerate(launches):
        _check_launch(facts, f"{where}, launch {number}")
    extra = [
        folder.name
        for folder in (path / "trace").glob("launch-*")
        if not re.fullmatch(r"launch-\d{1,9}", folder.name) or int(folder.name[7:]) >= len(launches)
    ]
    if extra:
        raise AnalysisError(f"{path}/trace/{min(extra)} belongs to none of the {len(launches)} launches in run.json")
    return Run(path, about, name)


def _check_launch(facts: Any, where: str) -> None:
    if not isinstance(facts, dict):
        raise AnalysisError(f"{where} must be an object")
    size = json_file.need(facts, "size", int, where)
    hosts = json_file.need(facts, "hosts", list, where)
    if size < 1 or len(hosts) != size or not all(isinstance(host, str) for host in hosts):
        raise AnalysisError(f"{where}: 'hosts' must name the host of each of {size} ranks; it has {len(hosts)} entries")
    for key in ("cores", "threads"):
        json_file.need(facts, key, int, where)
    for key in ("cpu", "device", "controller"):
        json_file.need(facts, key, str, where)
