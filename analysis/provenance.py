"""What the figures come from: code, versions, hardware, launch lines, rules, and digests of the traces."""

import hashlib
import shlex
from collections import Counter

import pandas as pd

from analysis.match import differences, must_match
from analysis.measure import RULES, Measurement, warmup_rule
from analysis.scaling import Experiment


def facts(experiment: Experiment) -> list[tuple[str, str]]:
    """Name and value for the report's header; where runs differ, every value (see `launches` for which has which)."""
    versions = {f"{name} {value}" for one in experiment.measurements for name, value in _versions(one)}
    repeats = {len(cell.repeats) for cell in experiment.cells}
    own = [_of_launch(one) for one in experiment.measurements]
    return [
        ("Code", ", ".join(sorted({_commit(one) for one in experiment.measurements}))),
        ("Versions", ", ".join(sorted(versions))),
        *((name, "; or ".join(dict.fromkeys(each[name] for each in own))) for name in own[0]),
        (
            "Repeats",
            f"{' to '.join(map(str, sorted({min(repeats), max(repeats)})))} of each number of ranks or variant",
        ),
        ("Warm-up", warmup_rule(experiment.warmup)),
        ("Step time", " ".join(RULES)),
        (
            "Intervals",
            "95 %, moving-block bootstrap over steps and repeats, 2,000 draws, fixed seed; the block length follows "
            "the autocorrelation of the steps.",
        ),
    ]


def _of_launch(one: Measurement) -> dict[str, str]:
    about, own = one.launch.run.about, one.launch.facts
    config = about["config"]
    return {
        "Hardware": f"{own['cpu']}, {own['cores']} cores per host, {own['threads']} threads per rank, {own['device']}",
        "Model": f"{_value(config, 'model', 'family')}, {about['model'].get('parameters', '?')} parameters",
        "Data": f"{about['data'].get('kind', '?')}, fingerprint {about['data'].get('fingerprint', '?')}",
        "Precision": _value(config, "train", "precision"),
        "Gradients": ", ".join(f"{name} {value}" for name, value in config.get("reduce", {}).items()),
        "Sent through": _compressors(own),
        "Exchanged": _rounds(config.get("sync", {})),
        "Optimizer": _value(config, "optimizer", "name"),
    }


def _compressors(launch: dict) -> str:
    """Which gradients, in MB."""
    shares = launch.get("compressors")
    if not isinstance(shares, dict):
        return "?"
    sizes = {name: size for name, size in shares.items() if isinstance(size, int | float) and 0 <= size < 1e15}
    return ", ".join(f"{name:.100} ({size / 1e6:.2f} MB)" for name, size in sizes.items())


def _rounds(sync: dict) -> str:
    if sync.get("every", 1) == 1:
        return "gradients, in every step"
    return "weights: " + ", ".join(f"{name} {value}" for name, value in sync.items())


def _versions(one: Measurement):
    return one.launch.run.about["versions"].items()


def _commit(one: Measurement) -> str:
    git = one.launch.run.about.get("git")
    if not isinstance(git, dict):
        return "not from a git repository"
    return f"{git.get('commit')}{' with uncommitted changes' if git.get('dirty') else ''}"


def _value(config: dict, section: str, key: str) -> str:
    return str(config.get(section, {}).get(key, "?"))


def launches(experiment: Experiment) -> pd.DataFrame:
    """One row per launch: ranks, hosts, steps, launch line, and one digest over all its traces."""
    rows = []
    for cell in experiment.cells:
        for one in cell.repeats:
            own = one.launch.facts
            argv = own.get("argv") if isinstance(own.get("argv"), list) else []
            slurm = own.get("slurm") if isinstance(own.get("slurm"), dict) else {}
            rows.append(
                {
                    "launch": one.name,
                    "ranks": cell.ranks,
                    "hosts": " ".join(f"{host}×{ranks}" for host, ranks in Counter(own["hosts"]).items()),
                    "controller": own["controller"],
                    "global_batch": cell.global_batch,
                    "steps": len(one.step),
                    "warm_up": one.warmup,
                    "incomplete": one.incomplete,
                    "slurm_job": str(slurm.get("SLURM_JOB_ID", "")),
                    "started": str(own.get("started", "")),
                    "line": shlex.join(map(str, argv)),
                    "traces_sha256": _digest(one),
                }
            )
    return pd.DataFrame(rows)


def _digest(one: Measurement) -> str:
    """SHA-256 over the traces' digests, a line `rank digest` each."""
    return hashlib.sha256("".join(f"{rank} {sha}\n" for rank, sha in one.sha256.items()).encode()).hexdigest()


def traces(experiment: Experiment) -> pd.DataFrame:
    """One row per trace file with its SHA-256."""
    return pd.DataFrame(
        [
            {"launch": one.name, "rank": rank, "sha256": sha}
            for one in experiment.measurements
            for rank, sha in one.sha256.items()
        ]
    )


def free_differences(experiment: Experiment) -> dict[str, dict[str, list[str]]]:
    """Differences among the runs that do not change how long a step takes."""
    found = differences([one.launch for one in experiment.measurements])
    return {key: values for key, values in found.items() if not must_match(key)}
