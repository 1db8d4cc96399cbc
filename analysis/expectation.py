"""What `reduce.compressor = auto` expected before it trained, against what came."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis.measure import Measurement
from analysis.scaling import Cell
from analysis.trace_file import TraceFile

_STEP = "step without optimizer"
_COLUMNS = ["launch", "ranks", "what", "expected_ms", "measured_ms", "error"]


def expectation_table(cells: Iterable[Cell]) -> pd.DataFrame:
    """A row per launch for the step without its optimizer part, and one for each bucket's exchange; milliseconds.

    Measured: the slowest rank's step less its optimizer part; means over ranks of exchanges, from a bucket's last
    gradient to its sum. Steps before `reduce.warmup_steps` do not count. The error is measured over expected, less 1.
    """
    rows = []
    for cell in cells:
        for one in cell.repeats:
            expected = _expected(one.launch.traces()[0])
            measured = _measured(one) if expected else {}
            for what, seconds in expected.items():
                found = measured.get(what, np.nan)
                row = (one.name, cell.ranks, what, seconds * 1e3, found * 1e3, found / seconds - 1)
                rows.append(dict(zip(_COLUMNS, row, strict=True)))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _bucket(index: int) -> str:
    return f"exchange of bucket {index}"


def _expected(trace: TraceFile) -> dict[str, float]:
    """Seconds by what they are of; every rank expects the same."""
    found: dict[str, float] = {}
    step, exchange = (trace.kinds.get(name, -1) for name in ("expected_step", "expected_exchange"))
    for chunk in trace.chunks():
        for record in chunk[np.isin(chunk["kind"], [step, exchange])]:
            what = _STEP if record["kind"] == step else _bucket(record["index"])
            if record["amount"]:
                found[what] = float(record["amount"]) / 1e9
    return found


def _measured(one: Measurement) -> dict[str, float]:
    """The same of what came."""
    seconds, count = {}, {}
    warmup = one.launch.run.about["config"].get("reduce", {}).get("warmup_steps", 0)
    steps = one.step >= (warmup if isinstance(warmup, int) else 0)
    for trace in one.launch.traces():
        for chunk in trace.chunks():
            exchanges, queues = (trace.kinds.get(kind, -1) for kind in ("bucket_exchange", "bucket_queue"))
            chunk = chunk[np.isin(chunk["kind"], [exchanges, queues]) & np.isin(chunk["step"], one.step[steps])]
            buckets, at = np.unique(chunk["index"], return_inverse=True)
            spans = np.bincount(at, (chunk["end_ns"] - chunk["start_ns"]) / 1e9)
            for bucket, total, times in zip(buckets, spans, np.bincount(at, chunk["kind"] == exchanges), strict=True):
                what = _bucket(bucket)
                seconds[what] = seconds.get(what, 0.0) + float(total)
                count[what] = count.get(what, 0) + int(times)
    means = {what: total / count[what] for what, total in seconds.items() if count[what]}
    return means | {_STEP: float((one.step_s - one.parts_s["optimizer"])[steps].mean()) if steps.any() else np.nan}
