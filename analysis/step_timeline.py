"""One step's timeline: a processor that computes gradients and runs compressors, and a network that takes one operation
after the other.

A bucket's compressor is begun when its last gradient is there; whenever an answer has come, it goes on before the
backward pass does. Between its operations it computes for equal times.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """A bucket's way, in seconds.

    Attributes:
        ready_s: of computing, from the start of the pass, until its last gradient is there.
        kernel_s: of its compressor, in all rounds.
        operation_s: of each operation on the network, one after the other.
    """

    ready_s: float
    kernel_s: float
    operation_s: tuple[float, ...]


def pass_s(exchanges: Sequence[Exchange], compute_s: float, overlap: bool = True) -> float:
    """Seconds from the start of a pass until all gradients are computed and all sums are there.

    Args:
        exchanges: in the order in which they become ready.
        compute_s: of the pass alone.
        overlap: whether buckets are sent inside it, or when it is over.
    """
    ready = [min(exchange.ready_s, compute_s) if overlap else compute_s for exchange in exchanges]
    now = computed = network_free = 0.0
    waiting: list[tuple[float, int, int]] = []  # when a bucket's compressor can go on, the bucket, its operations done
    begun = 0

    def begin() -> None:
        nonlocal begun
        while begun < len(exchanges) and ready[begun] <= computed:
            heapq.heappush(waiting, (now, begun, 0))
            begun += 1

    begin()
    while computed < compute_s or begun < len(exchanges) or waiting:
        if waiting and waiting[0][0] <= now:
            _, bucket, done = heapq.heappop(waiting)
            exchange = exchanges[bucket]
            now += exchange.kernel_s / (len(exchange.operation_s) + 1)
            if done < len(exchange.operation_s):
                network_free = max(network_free, now) + exchange.operation_s[done]
                heapq.heappush(waiting, (network_free, bucket, done + 1))
        elif computed < compute_s:
            until = min([compute_s, *ready[begun : begun + 1]])
            spell = min([until - computed, *(answer - now for answer, _, _ in waiting[:1])])
            computed = until if spell == until - computed else computed + spell
            now += spell
            begin()
        else:
            now = max(now, waiting[0][0])
    return now
