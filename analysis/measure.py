"""A launch's measured steps: warm-up dropped, ranks put together.

Shapes: R ranks, S measured steps.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import pandas as pd
from tqdm import tqdm

from analysis.errors import AnalysisError, TooFewStepsError
from analysis.run_folder import Launch, Run
from analysis.steps import BETWEEN, PARTS, RankSteps, rank_steps

FEWEST_STEPS = 8  # fewer say nothing about how steps vary
ALL_PARTS = (*PARTS, "residual")

RULES = (
    "The time of a step and its parts are its slowest rank's, from asking for the batch to the updated weights.",
    "Throughput is the tokens of all ranks over that time.",
    "No step is left out for what happened in it.",
)


@dataclass(frozen=True)
class Measurement:
    """One launch. Arrays are (S,); times are in seconds."""

    launch: Launch
    warmup: int  # steps dropped at the start
    incomplete: int  # steps that not every rank finished
    step: np.ndarray
    step_s: np.ndarray  # the slowest rank's
    tokens: np.ndarray  # over all ranks
    parts_s: dict[str, np.ndarray]  # by ALL_PARTS, that rank's; with the residual they sum to step_s
    hidden_s: np.ndarray  # mean over ranks, as are the next four
    exchange_s: np.ndarray
    payload_bytes: np.ndarray
    sent_bytes: np.ndarray
    exchanges: np.ndarray
    ranks: pd.DataFrame  # rank, host, mean seconds of each part, own_s: without waiting for gradients
    own_s: np.ndarray  # (R, S) float32: the same by step
    between: dict[str, tuple[int, float]]  # checkpoint, evaluate: how often, seconds (slowest rank, whole launch)
    sha256: dict[int, str]  # of each rank's trace

    @property
    def name(self) -> str:
        return self.launch.name


def warmup_rule(warmup: int | None) -> str:
    """The rule in words."""
    if warmup is not None:
        return f"The first {warmup} steps of each launch are dropped as warm-up (--warmup)."
    return "The first 10 % of each launch's steps, at least 3 and at most 20, are dropped as warm-up."


def warmup_steps(count: int, warmup: int | None) -> int:
    """How many of `count` steps are warm-up; `warmup` overrides the rule."""
    return int(np.clip(np.ceil(count / 10), 3, 20)) if warmup is None else warmup


def measure_runs(runs: list[Run], warmup: int | None = None) -> tuple[list[Measurement], list[str]]:
    """Measure every launch of every run.

    Returns:
        the measurements, and a sentence for each launch that was too short or not traced.

    Raises:
        AnalysisError: a damaged trace, or a run of which no launch can be measured.
    """
    if warmup is not None and warmup < 0:
        raise AnalysisError(f"--warmup is {warmup}; it must be 0 or more")
    launches = [launch for run in runs for launch in run.launches]
    measured, left_out = [], []
    for launch in tqdm(launches, desc="reading traces", unit="launch", delay=3, leave=False, disable=None):
        try:
            measured.append(measure(launch, warmup))
        except TooFewStepsError as error:
            left_out.append((launch, str(error)))
    for run in runs:
        reasons = [text for launch, text in left_out if launch.run is run]
        if len(reasons) == len(run.launches):
            raise AnalysisError(reasons[0])
    return measured, [f"{launch.name} is left out: {text}" for launch, text in left_out]


def measure(launch: Launch, warmup: int | None = None) -> Measurement:
    """Read a launch's traces.

    Raises:
        TooFewStepsError: not traced, fewer than FEWEST_STEPS steps after warm-up, or over before ranks that train
            apart met.
        AnalysisError: a damaged trace, or several ranks among which no exchange was traced.
    """
    traces = launch.traces()
    if not traces:
        raise TooFewStepsError(f"{launch.run.path}/trace/launch-{launch.number} holds no trace")
    ranks = [rank_steps(trace) for trace in tqdm(traces, unit="rank", delay=3, leave=False, disable=None)]
    for trace, rank in zip(traces, ranks, strict=True):
        if launch.size > 1 and not rank.exchanges.any():
            said = f"{trace.path}: {launch.size} ranks but not one bucket_exchange span, so "
            if launch.run.apart:
                raise TooFewStepsError(f"{said}it ended before they met")
            raise AnalysisError(f"{said}communication was not traced")
    common = reduce(np.intersect1d, [rank.step for rank in ranks])
    drop = warmup_steps(len(common), warmup)
    kept = common[drop:]
    if len(kept) < FEWEST_STEPS:
        raise TooFewStepsError(
            f"{launch.name} has {len(common)} complete steps, {len(kept)} after the warm-up of {drop}; "
            f"{FEWEST_STEPS} are needed"
        )
    total = reduce(np.union1d, [rank.step for rank in ranks])
    read = {"warmup": drop, "incomplete": len(total) - len(common)}
    return together(launch, ranks, kept, sha256={trace.rank: trace.sha256() for trace in traces}, **read)


def together(
    launch: Launch,
    ranks: list[RankSteps],
    steps: np.ndarray,
    warmup: int = 0,
    incomplete: int = 0,
    sha256: dict[int, str] | None = None,
) -> Measurement:
    """Measure `steps`, which all ranks have taken."""
    ranks = [rank.only(steps) for rank in ranks]

    def stack(arrays) -> np.ndarray:
        return np.stack(list(arrays))  # (R, S)

    spans_s = stack(rank.span_s for rank in ranks)
    slowest = spans_s.argmax(axis=0), np.arange(spans_s.shape[1])
    step_s = spans_s[slowest]
    parts = {name: stack(rank.parts_s[name] for rank in ranks)[slowest] for name in PARTS}
    own_s = stack(sum(rank.parts_s[name] for name in PARTS if name != "exposed") for rank in ranks)
    means = {
        name: stack(getattr(rank, name) for rank in ranks).mean(axis=0)
        for name in ("hidden_s", "exchange_s", "payload_bytes", "sent_bytes", "exchanges")
    }
    return Measurement(
        launch=launch,
        warmup=warmup,
        incomplete=incomplete,
        step=steps,
        step_s=step_s,
        tokens=stack(rank.tokens for rank in ranks).sum(axis=0),
        parts_s=parts | {"residual": step_s - sum(parts.values())},
        **means,
        ranks=_rank_table(ranks, launch.facts["hosts"]),
        own_s=own_s.astype(np.float32),
        between={name: max((rank.between[name] for rank in ranks), key=lambda pair: pair[1]) for name in BETWEEN},
        sha256=sha256 or {},
    )


def _rank_table(ranks: list[RankSteps], hosts: list[str]) -> pd.DataFrame:
    rows = []
    for number, (rank, host) in enumerate(zip(ranks, hosts, strict=True)):
        means = {f"{name}_s": rank.parts_s[name].mean() for name in PARTS}
        own = sum(means.values()) - means["exposed_s"]
        rows.append({"rank": number, "host": host, "step_s": rank.span_s.mean(), **means, "own_s": own})
    return pd.DataFrame(rows)
