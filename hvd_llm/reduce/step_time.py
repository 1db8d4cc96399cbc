"""How long a step takes with some choice of compressors, and the choice with which it takes least. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

from hvd_llm.reduce import turns

NEAR = 1.02  # a step longer than the shortest by less is as good, if it loses less


@dataclass(frozen=True)
class Cost:
    """What a bucket's exchange takes with one compressor, in seconds: of computing, of waiting, of the network; and by
    how much the network's work holds up what is computed meanwhile.
    """

    kernel_s: float
    latency_s: float
    sending_s: float
    burden_s: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """Attributes:
    step_s: a step but for the optimizer.
    exchange_s: by bucket, from its last gradient to its sum.
    """

    step_s: float
    exchange_s: tuple[float, ...]


def predict(costs: Sequence[Cost], ready_s: Sequence[float], compute_s: float, whole_step: bool = False) -> Prediction:
    """A step's time if buckets go through the network one after the other; kernels and sending hold up backward.

    Args:
        costs: by bucket, in the order in which they are sent.
        ready_s: when each one's last gradient is there, if nothing else were computed.
        compute_s: the passes' time.
        whole_step: what backward does not hide, the next step hides.
    """
    held_up_s = network_s = 0.0
    exchanges, last = [], 0.0
    for cost, ready in zip(costs, ready_s, strict=True):
        ready += held_up_s
        held_up_s += cost.kernel_s + cost.burden_s
        network_s = max(ready + cost.kernel_s, network_s) + cost.sending_s
        exchanges.append(network_s + cost.latency_s - ready)
        last = max(last, network_s + cost.latency_s)
    if whole_step:
        sending_s = sum(cost.sending_s for cost in costs)
        last = max(sending_s, (sending_s + sum(cost.latency_s for cost in costs)) / turns.UNDER_WAY)
    return Prediction(max(last, compute_s + held_up_s), tuple(exchanges))


def search(
    costs: Sequence[Sequence[Cost]], ready_s: Sequence[float], compute_s: float, whole_step: bool = False
) -> list[int]:
    """By bucket, which of its candidates to take.

    The best of one for all, then bucket by bucket what is better, until nothing changes; last, what is as good and
    loses less.
    """

    def step_s(chosen: Sequence[int]) -> float:
        taken = [row[at] for row, at in zip(costs, chosen, strict=True)]
        return predict(taken, ready_s, compute_s, whole_step).step_s

    def with_other(bucket: int, at: int) -> list[int]:
        return [*chosen[:bucket], at, *chosen[bucket + 1 :]]

    most = max(len(row) for row in costs)
    chosen = min(([min(at, len(row) - 1) for row in costs] for at in range(most)), key=step_s)
    for _ in range(len(costs)):
        before = list(chosen)
        for bucket, row in enumerate(costs):
            chosen = min((with_other(bucket, at) for at in range(len(row))), key=step_s)
        if chosen == before:
            break
    limit = step_s(chosen) * NEAR
    for bucket in range(len(costs)):
        chosen = next(other for at in range(chosen[bucket] + 1) if step_s(other := with_other(bucket, at)) <= limit)
    return chosen
