"""Spans → seconds per rank and step.

Shapes: R ranks, S steps.
"""

from dataclasses import dataclass, field, fields, replace

import numpy as np

from analysis.errors import AnalysisError, TooFewStepsError
from analysis.trace_file import TraceFile

# What a step consists of, in order; they do not overlap, and what they leave of the step is the residual.
PARTS = ("input", "forward", "backward", "exposed", "optimizer")
BETWEEN = ("checkpoint", "evaluate")

# What the clock's resolution and the writer's own time may cost before parts are said to overlap.
_SLACK = (0.01, 50e-6)  # share of the step, seconds


@dataclass
class RankSteps:
    """One rank's complete steps, in order of step. Arrays are (S,); times are in seconds."""

    step: np.ndarray
    span_s: np.ndarray
    tokens: np.ndarray
    parts_s: dict[str, np.ndarray]  # by PARTS
    exchange_s: np.ndarray  # union of bucket_exchange
    hidden_s: np.ndarray  # … of it while the rank was not waiting for it
    payload_bytes: np.ndarray
    sent_bytes: np.ndarray  # NaN in a trace from before these were recorded
    exchanges: np.ndarray  # number of bucket_exchange spans
    between: dict[str, tuple[int, float]] = field(default_factory=dict)  # name: (how often, seconds)

    def only(self, steps: np.ndarray) -> "RankSteps":
        """The same of some of its steps."""
        at = np.searchsorted(self.step, steps)
        parts = {name: values[at] for name, values in self.parts_s.items()}
        arrays = {
            one.name: getattr(self, one.name)[at] for one in fields(self) if one.name not in ("parts_s", "between")
        }
        return replace(self, **arrays, parts_s=parts)


def rank_steps(trace: TraceFile) -> RankSteps:
    """Read one trace, twice: the steps, then what happened in them. A step cut off by a crash does not count.

    Raises:
        TooFewStepsError: no complete step in it.
        AnalysisError: a step twice, or parts that take longer than their step.
    """
    steps, waits = _find_steps(trace)
    count = len(steps["step"])
    result = RankSteps(
        step=steps["step"],
        span_s=steps["seconds"],
        tokens=steps["tokens"],
        parts_s={name: np.zeros(count) for name in PARTS},
        exchange_s=np.zeros(count),
        hidden_s=np.zeros(count),
        payload_bytes=np.zeros(count),
        sent_bytes=np.full(count, 0.0 if "bucket_sent" in trace.kinds else np.nan),
        exchanges=np.zeros(count),
        between=dict.fromkeys(BETWEEN, (0, 0.0)),
    )
    for chunk in trace.chunks():
        _add_spans(result, chunk, trace.kinds)
        _add_exchanges(result, chunk[chunk["kind"] == trace.kinds.get("bucket_exchange", -1)], waits)
    _check_sum(result, trace)
    return result


def _find_steps(trace: TraceFile) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Steps in order, and when the rank did not compute a step's part: starts and ends, (2, spans) ns, in order.

    These are its exposed spans and what lies between steps.
    """
    records, waits = [], []
    for chunk in trace.chunks():
        records.append(chunk[chunk["kind"] == trace.kinds["step"]])
        exposed = chunk[chunk["kind"] == trace.kinds.get("exposed", -1)]
        waits.append(np.stack([exposed["start_ns"], exposed["end_ns"]]))
    found = np.concatenate(records) if records else np.empty(0, trace.record)
    if not len(found):
        raise TooFewStepsError(f"{trace.path} holds no complete step ({trace.count} records)")
    found = found[np.argsort(found["step"], kind="stable")]
    step = found["step"].astype(np.int64)
    twice = np.flatnonzero(np.diff(step) == 0)
    if len(twice):
        raise AnalysisError(f"{trace.path} holds step {step[twice[0]]} twice")
    seconds = (found["end_ns"] - found["start_ns"]) / 1e9
    if not (seconds > 0).all():
        raise AnalysisError(f"{trace.path}: step {step[np.argmin(seconds)]} takes no time")

    steps = {"step": step, "seconds": seconds, "tokens": found["amount"].astype(np.float64)}
    waits.append(np.stack([found["end_ns"][:-1], found["start_ns"][1:]]))
    return steps, np.sort(np.concatenate(waits, axis=1), axis=1)


def _locate(steps: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in sorted `steps` of those `wanted` that are there, and the mask of these."""
    at = np.searchsorted(steps, wanted)
    known = steps[np.minimum(at, len(steps) - 1)] == wanted
    return at[known], known


def _add_spans(result: RankSteps, chunk: np.ndarray, kinds: dict[str, int]) -> None:
    """Add the chunk's parts, what was sent, and what lay between steps, to `result`."""
    seconds = (chunk["end_ns"] - chunk["start_ns"]) / 1e9
    count = len(result.step)
    for name in PARTS:
        mask = chunk["kind"] == kinds.get(name, -1)
        at, known = _locate(result.step, chunk["step"][mask])
        result.parts_s[name] += np.bincount(at, seconds[mask][known], count)
    sent = chunk[chunk["kind"] == kinds.get("bucket_sent", -1)]
    at, known = _locate(result.step, sent["step"])
    result.sent_bytes += np.bincount(at, sent["amount"][known], count)
    for name in BETWEEN:
        mask = chunk["kind"] == kinds.get(name, -1)
        times, total = result.between[name]
        result.between[name] = (times + int(mask.sum()), total + float(seconds[mask].sum()))


def _add_exchanges(result: RankSteps, exchange: np.ndarray, waits: np.ndarray) -> None:
    """Add the union of the exchange spans, and its part during which the rank did not wait."""
    exchange = exchange[np.argsort(exchange["start_ns"], kind="stable")]
    at, known = _locate(result.step, exchange["step"])
    exchange, count = exchange[known], len(result.step)
    start, end = _new(exchange["start_ns"], exchange["end_ns"])
    seconds = (end - start) / 1e9
    result.exchange_s += np.bincount(at, seconds, count)
    result.hidden_s += np.bincount(at, seconds - (_waited(waits, end) - _waited(waits, start)), count)
    result.payload_bytes += np.bincount(at, exchange["amount"], count)
    result.exchanges += np.bincount(at, minlength=count)


def _new(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each span adds to the union of those before it, as a span; spans are in order of start (ns)."""
    covered = np.maximum.accumulate(np.concatenate([[0], end]))[:-1]
    start = np.maximum(start, covered)
    return start, np.maximum(end, start)


def _waited(waits: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Seconds that the rank had waited, in all, at each moment (ns)."""
    if not waits.size:
        return np.zeros(len(moment))
    start, end = waits
    total = np.concatenate([[0], np.cumsum(end - start)])
    at = np.searchsorted(start, moment, side="right")  # spans that have begun
    inside = np.where(at > 0, np.maximum(end[at - 1] - moment, 0), 0)
    return (total[at] - inside) / 1e9


def _check_sum(result: RankSteps, trace: TraceFile) -> None:
    share, floor = _SLACK
    excess = sum(result.parts_s.values()) - result.span_s * (1 + share) - floor
    if (excess > 0).any():
        at = int(np.argmax(excess))
        raise AnalysisError(
            f"{trace.path}: the parts of step {result.step[at]} take {sum(result.parts_s.values())[at]:.6g} s, "
            f"longer than the step itself ({result.span_s[at]:.6g} s), so their spans overlap or are damaged"
        )
