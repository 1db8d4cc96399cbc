"""How far ranks' clocks are apart, and whether what they say of exchanges can be true.

An exchange is over nowhere before it has begun everywhere. So, on clocks that agree, no rank sees the end of one before
another has begun it; if it seems so, the offset that was measured when the run started is off by at least that much
(the causality that Lamport 1978 orders events by), or has drifted so far since.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis.match import facts
from analysis.measure import Measurement
from analysis.trace_file import TraceFile

COLUMNS = ["launch", "rank", "host", "offset_ms", "uncertainty_ms", "off_by_ms", "off_at_step"]


def clock_table(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """A row for each launch of several ranks, and rank but 0, by whose clock the others are measured; milliseconds.

    `off_by_ms` is by how much a rank's clock is off at least, beyond its uncertainty, as exchanges show at
    `off_at_step`; 0 if they show nothing. Launches whose exchanges may reach into the next step are left out: ranks may
    see their ends in unlike steps.
    """
    rows = []
    for one in measurements:
        first, *others = one.launch.traces() if one.launch.size > 1 and _within_steps(one) else [None]
        known = _exchanges(first, one.step) if others else None
        for trace in others:
            offset_ns, uncertainty_ns, keys, start, end = _exchanges(trace, one.step)
            _, here, there = np.intersect1d(known[2], keys, return_indices=True, assume_unique=True)
            late = known[3][here] - (end[there] + offset_ns)  # rank 0 began after this one had seen the end
            early = start[there] + offset_ns - known[4][here]
            ahead = np.maximum(late, early) - uncertainty_ns - known[1]
            at = int(ahead.argmax()) if len(ahead) else 0
            off_ns = max(0, int(ahead[at])) if len(ahead) else 0
            step = int(keys[there[at]] >> 16) if off_ns else -1
            host = one.launch.facts["hosts"][trace.rank]
            row = (one.name, trace.rank, host, offset_ns / 1e6, uncertainty_ns / 1e6, off_ns / 1e6, step)
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _within_steps(one: Measurement) -> bool:
    """Whether every exchange is over in the step that it begins in."""
    known = facts(one.launch)
    ends = {"reduce.overlap": "backward", "reduce.delay": 0, "sync.every": 1}
    return all(known.get(key, usual) in (usual, "none") for key, usual in ends.items())


def _exchanges(trace: TraceFile, steps: np.ndarray) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray]:
    """The clock's offset and uncertainty, and of each exchange in `steps` a key, start and end on the own clock; ns.

    A bucket that was exchanged twice in a step is left out.
    """
    offset = uncertainty = 0
    keys, starts, ends = [], [], []
    for chunk in trace.chunks():
        clock = chunk[chunk["kind"] == trace.kinds.get("clock", -1)]
        if len(clock):
            offset = int(clock["amount"][-1])
            uncertainty = int(clock["end_ns"][-1] - clock["start_ns"][-1]) // 2
        found = chunk[(chunk["kind"] == trace.kinds.get("bucket_exchange", -1)) & np.isin(chunk["step"], steps)]
        keys.append(found["step"].astype(np.int64) << 16 | found["index"].astype(np.int64))
        starts.append(found["start_ns"])
        ends.append(found["end_ns"])
    key = np.concatenate(keys)
    unique, first, count = np.unique(key, return_index=True, return_counts=True)
    once = first[count == 1]
    return offset, uncertainty, unique[count == 1], np.concatenate(starts)[once], np.concatenate(ends)[once]
