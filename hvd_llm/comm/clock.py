"""How far this rank's clock is from rank 0's, with a bound that cannot be wrong.

Every round, each rank reads its clock, gathers the readings, and reads its clock again. Rank 0's reading
was sent before ours returned and ours before rank 0's returned, so the true offset lies in
[before_0 - after_r, after_0 - before_r]; rounds intersect (Cristian's bound, without its symmetry guess).
"""

import torch

from hvd_llm.comm.base import Comm
from hvd_llm.trace import now


def clock_offset(comm: Comm, rounds: int = 16) -> tuple[int, int]:
    """Return (offset, uncertainty) in ns: rank 0's clock = this rank's clock + offset ± uncertainty. Collective."""
    if comm.size == 1 or comm.shares_memory:  # one machine has one clock
        return 0, 0
    rows = []
    for index in range(rounds):
        before = now()
        readings = comm.gather_async(f"clock.{index}", torch.tensor([before])).wait()
        rows.append((int(readings[0]), before, now()))
    after_0 = comm.gather_async("clock.after", torch.tensor([row[2] for row in rows])).wait()[0].tolist()
    lowest = max(before_0 - after for before_0, _, after in rows)
    highest = min(end_0 - before for end_0, (_, before, _) in zip(after_0, rows, strict=True))
    if comm.rank == 0:
        return 0, 0
    return (lowest + highest) // 2, max(0, (highest - lowest + 1) // 2)
