"""reduce.compressor = auto: the compressor of each bucket is the one with which a step should take least time.

A probe before the first step measures the network, the compressors' kernels on buckets as they are, and when in
backward each bucket is ready; a model of the step then says how long it takes with any choice. Often the best is not to
compress (Agarwal et al. 2022, "On the utility of gradient compression": 6 of more than 200 set-ups gained).
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hvd_llm.comm import Comm, Group
from hvd_llm.compress.base import Compressor, State
from hvd_llm.compress.none import none
from hvd_llm.reduce import network, policy, turns
from hvd_llm.reduce.buckets import allocate
from hvd_llm.reduce.network import Network
from hvd_llm.reduce.policy import Planned
from hvd_llm.reduce.pricing import Price, price

_NEAR = 1.02  # a step longer than the shortest by less is as good, if it loses less
_LONG_S = 0.25  # kernels that take so long are not timed over and over


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


@dataclass(frozen=True)
class Choice:
    """Attributes:
    plan: the buckets.
    why: one line for the user.
    """

    plan: list[Planned]
    prediction: Prediction
    why: str

    def as_json(self) -> dict:
        """Without `why`, for a checkpoint: a resumed run must not choose again."""
        plan = [[list(planned.names), planned.compressor.text] for planned in self.plan]
        return {"plan": plan, "step_s": self.prediction.step_s, "exchange_s": list(self.prediction.exchange_s)}


def choose(
    parameters: Mapping[str, nn.Parameter],
    order: Sequence[str],
    bucket_bytes: float,
    among: Sequence[Compressor],
    comm: Comm,
    groups: Mapping[str, Group],
    readiness: Callable[[], Mapping[str, float]],
    passes: int = 1,
    overlap: str = "backward",
) -> Choice:
    """Probe, then choose; the same on all ranks. Collective.

    Args:
        order: parameter names as their gradients become ready.
        among: `none`, then what else may be chosen.
        groups: what names of groups stand for on this rank: "world", and those that candidates ask for.
        readiness: runs a forward and a backward pass; parameter → seconds from its start to the gradient.
        passes: of these in a step.
        overlap: `reduce.overlap`.
    """
    readiness()  # the first pass is slower than all others
    asked = {"world"}.union(*(compressor.groups for compressor in among))
    lines = network.measure(comm, parameters[order[0]].device, {name: groups[name] for name in sorted(asked)})
    node_size = comm.place(groups["node"])[1]
    seconds = [readiness() for _ in range(2)]
    mine = [min(each[name] for each in seconds) for name in order]
    pass_s = dict(zip(order, _mean(comm, mine), strict=True))
    burden = 0.0  # of a byte; where ranks share memory, none is sent
    if not comm.shares_memory:
        line = lines.lines["world", "sum"]
        device = parameters[order[0]].device
        (burden,) = _mean(comm, [network.burden(comm, device, line, lambda: max(readiness().values()), max(mine))])
    compute_s = passes * max(pass_s.values())

    def decide(cuts: Sequence[Sequence[str]], offers: Sequence[Sequence[Compressor]]) -> tuple[list[int], Prediction]:
        """By bucket, which to take, and what to expect then."""
        costs = _costs(parameters, cuts, offers, comm, node_size, lines, burden)
        last = [max(pass_s[name] for name in names) - max(pass_s.values()) for names in cuts]
        ready_s = [compute_s + (0 if overlap == "none" else before) for before in last]
        chosen = search(costs, ready_s, compute_s, overlap == "forward")
        taken = [row[at] for row, at in zip(costs, chosen, strict=True)]
        return chosen, predict(taken, ready_s, compute_s, overlap == "forward")

    as_is = policy.plan(parameters, order, bucket_bytes, none)
    _, plain = decide([planned.names for planned in as_is], [[none]] * len(as_is))
    cuts = policy.cut(parameters, order, bucket_bytes, lambda name: policy.is_matrix(parameters[name]))
    offers = [list(among) if policy.is_matrix(parameters[names[0]]) else [none] for names in cuts]
    chosen, prediction = decide(cuts, offers)
    plan = [Planned(tuple(names), offer[at]) for names, offer, at in zip(cuts, offers, chosen, strict=True)]
    if not any(chosen) or plain.step_s <= prediction.step_s * _NEAR:
        plan, prediction = as_is, plain
    return Choice(plan, prediction, _why(parameters, plan, prediction, plain, lines))


def _mean(comm: Comm, mine: Sequence[float]) -> list[float]:
    """Of every rank's numbers, one by one."""
    return [statistics.mean(numbers) for numbers in zip(*comm.gather_objects("auto", list(mine)), strict=True)]


def _costs(
    parameters: Mapping[str, nn.Parameter],
    cuts: Sequence[Sequence[str]],
    offers: Sequence[Sequence[Compressor]],
    comm: Comm,
    node_size: int,
    lines: Network,
    burden: float,
) -> list[list[Cost]]:
    """By bucket and candidate; kernels take what they take on average, while all ranks compute."""
    prices = _prices(parameters, cuts, offers, comm.size, node_size)
    kernels = iter(_mean(comm, [price.kernel_s for row in prices for price in row]))
    return [
        [Cost(next(kernels), *lines.seconds(price.operations), burden * price.sent_bytes) for price in row]
        for row in prices
    ]


def _prices(
    parameters: Mapping[str, nn.Parameter],
    cuts: Sequence[Sequence[str]],
    offers: Sequence[Sequence[Compressor]],
    size: int,
    node_size: int,
) -> list[list[Price]]:
    """By bucket and candidate; what has the same shapes is priced once."""
    known: dict[tuple, Price] = {}
    for names, offer in zip(cuts, offers, strict=True):
        for compressor in offer:
            key = _shapes(parameters, names), compressor.text
            if key not in known:
                known[key] = _price(parameters, names, compressor, size, node_size)
    return [
        [known[_shapes(parameters, names), compressor.text] for compressor in offer]
        for names, offer in zip(cuts, offers, strict=True)
    ]


def _shapes(parameters: Mapping[str, nn.Parameter], names: Sequence[str]) -> tuple:
    return tuple(parameters[name].shape for name in names)


def _price(
    parameters: Mapping[str, nn.Parameter], names: Sequence[str], compressor: Compressor, size: int, node_size: int
) -> Price:
    """Of a bucket's exchange, as it is once there is a state from earlier steps."""

    def random(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.randn(elements, dtype=dtype, device=device)

    (bucket,) = allocate(parameters, [Planned(tuple(names), compressor)], random)
    states: list[State] = [{} for _ in bucket.segments]
    gradients = [segment.tensor for segment in bucket.segments]
    runs = [price(compressor, gradients, size, states, node_size)]  # it has no state yet, and cold caches
    while len(runs) < 2 or (len(runs) < 4 and runs[-1].kernel_s < _LONG_S):
        runs.append(price(compressor, gradients, size, states, node_size))
    return min(runs[1:], key=lambda run: run.kernel_s)


def from_json(saved: Mapping, among: Sequence[Compressor]) -> tuple[Prediction, list[Planned]]:
    """Undo `Choice.as_json`."""
    named = {compressor.text: compressor for compressor in among}
    plan = [Planned(tuple(names), named[text]) for names, text in saved["plan"]]
    return Prediction(saved["step_s"], tuple(saved["exchange_s"])), plan


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
    limit = step_s(chosen) * _NEAR
    for bucket in range(len(costs)):
        chosen = next(other for at in range(chosen[bucket] + 1) if step_s(other := with_other(bucket, at)) <= limit)
    return chosen


def _why(
    parameters: Mapping[str, nn.Parameter],
    plan: Sequence[Planned],
    chosen: Prediction,
    plain: Prediction,
    lines: Network,
) -> str:
    """One line: what was chosen, for how many bytes of gradients, and what speaks for it."""
    sizes: dict[str, int] = {}
    for planned in plan:
        size = sum(parameters[name].nbytes for name in planned.names)
        sizes[planned.compressor.text] = sizes.get(planned.compressor.text, 0) + size
    parts = ", ".join(f"{text} for {size / 1e6:.2f} MB" for text, size in sizes.items())
    line = lines.lines["world", "bucket"]
    network = f"a sum here takes {_short(line.latency_s * 1e3)} ms and {_short(line.per_byte_s * 1e9)} ms per MB sent"
    gain = f"{chosen.step_s * 1e3:.0f} ms a step expected, {plain.step_s * 1e3:.0f} ms uncompressed"
    return f"reduce.compressor auto takes {parts}: {gain} ({network}; what it costs in loss is not judged)"


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"
