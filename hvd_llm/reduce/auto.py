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
from hvd_llm.compress.rows import rows
from hvd_llm.reduce import network, policy, turns
from hvd_llm.reduce.buckets import allocate, lookup
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


@dataclass(frozen=True)
class Probe:
    """What was found out before the first step; the same on all ranks.

    Attributes:
        lines: of the network.
        pass_s: parameter, or part of one, → seconds of a forward and backward pass until its gradient is there.
        burden: seconds by which each byte that is sent meanwhile holds up such a pass.
    """

    lines: Network
    pass_s: Mapping[str, float]
    burden: float


def choose(
    parameters: Mapping[str, nn.Parameter],
    lookups: Mapping[str, Tensor],
    plain: Sequence[Planned],
    bucket_bytes: float,
    among: Sequence[Compressor],
    comm: Comm,
    groups: Mapping[str, Group],
    readiness: Callable[[], Mapping[str, float]],
    tokens: int,
    passes: int = 1,
    overlap: str = "backward",
) -> Choice:
    """Probe, then choose; the same on all ranks. Collective.

    Args:
        lookups: name → leaf that gets a part of a parameter's gradient, in `plain`.
        plain: the buckets if nothing is compressed.
        among: `none`, then what else may be chosen.
        groups: what names of groups stand for on this rank: "world", and those that candidates ask for.
        readiness: runs a forward and a backward pass; parameter or lookup → seconds from its start to the gradient.
        tokens: of a rank in a step.
        passes: in a step.
        overlap: `reduce.overlap`.
    """
    asked = {"world"}.union(*(compressor.groups for compressor in among))
    used = {name: groups[name] for name in sorted(asked)}
    found = _probe(comm, used, next(iter(parameters.values())).device, [*parameters, *lookups], readiness, overlap)
    whole_s = {name: max(found.pass_s[name], found.pass_s.get(lookup(name), 0.0)) for name in parameters}
    tensors, node_size = dict(parameters) | lookups, comm.place(groups["node"])[1]
    pass_s = max(whole_s.values())

    def decide(
        cuts: Sequence[Sequence[str]], offers: Sequence[Sequence[Compressor]], there_s: Mapping[str, float]
    ) -> tuple[list[int], Prediction]:
        """By bucket, which to take, and what to expect then."""
        costs = _costs(tensors, cuts, offers, comm, node_size, found, tokens)
        last = [max(there_s[name] for name in names) - pass_s for names in cuts]
        ready_s = [passes * pass_s + (0 if overlap == "none" else before) for before in last]
        chosen = search(costs, ready_s, passes * pass_s, overlap == "forward")
        taken = [row[at] for row, at in zip(costs, chosen, strict=True)]
        return chosen, predict(taken, ready_s, passes * pass_s, overlap == "forward")

    _, uncompressed = decide([each.names for each in plain], [[each.compressor] for each in plain], found.pass_s)
    order = sorted(parameters, key=whole_s.__getitem__)
    cuts = policy.cut(parameters, order, bucket_bytes, lambda name: policy.is_matrix(parameters[name]))
    offers = [list(among) if policy.is_matrix(parameters[names[0]]) else [none] for names in cuts]
    chosen, prediction = decide(cuts, offers, whole_s)
    plan = [Planned(tuple(names), offer[at]) for names, offer, at in zip(cuts, offers, chosen, strict=True)]
    if not any(chosen) or uncompressed.step_s <= prediction.step_s * _NEAR:
        plan, prediction = list(plain), uncompressed
    return Choice(plan, prediction, _why(tensors, plan, prediction, uncompressed, found.lines))


def _probe(
    comm: Comm,
    groups: Mapping[str, Group],
    device: torch.device,
    names: Sequence[str],
    readiness: Callable[[], Mapping[str, float]],
    overlap: str,
) -> Probe:
    readiness()  # the first pass is slower than all others
    lines = network.measure(comm, device, groups)
    seconds = [readiness() for _ in range(2)]
    mine = [min(each[name] for each in seconds) for name in names]
    pass_s, burden = dict(zip(names, _mean(comm, mine), strict=True)), 0.0
    if overlap != "none" and not comm.shares_memory:
        line = lines.lines["world", "sum"]
        found = network.burden(comm, device, line, lambda: max(readiness().values()), max(mine))
        burden = max(0.0, *_mean(comm, [found]))  # chance may have some ranks compute faster meanwhile
    return Probe(lines, pass_s, burden)


def _mean(comm: Comm, mine: Sequence[float]) -> list[float]:
    """Of every rank's numbers, one by one."""
    return [statistics.mean(numbers) for numbers in zip(*comm.gather_objects("auto", list(mine)), strict=True)]


def _costs(
    tensors: Mapping[str, Tensor],
    cuts: Sequence[Sequence[str]],
    offers: Sequence[Sequence[Compressor]],
    comm: Comm,
    node_size: int,
    found: Probe,
    tokens: int,
) -> list[list[Cost]]:
    """By bucket and candidate; kernels take what they take on average, while all ranks compute."""
    known: dict[tuple, Price] = {}  # what has the same shapes is priced once

    def priced(names: Sequence[str], compressor: Compressor) -> Price:
        key = tuple(tensors[name].shape for name in names), compressor.text
        if key not in known:
            known[key] = _price(tensors, names, compressor, comm.size, node_size, tokens)
        return known[key]

    prices = [[priced(names, compressor) for compressor in offer] for names, offer in zip(cuts, offers, strict=True)]
    kernels = iter(_mean(comm, [price.kernel_s for row in prices for price in row]))

    def cost(price: Price) -> Cost:
        held_up_s = found.burden * (price.sent_bytes + price.node_bytes)
        return Cost(next(kernels), *found.lines.seconds(price.operations), held_up_s)

    return [[cost(price) for price in row] for row in prices]


def _price(
    tensors: Mapping[str, Tensor],
    names: Sequence[str],
    compressor: Compressor,
    size: int,
    node_size: int,
    tokens: int,
) -> Price:
    """Of a bucket's exchange, as it is once there is a state from earlier steps; of rows, if all tokens differ."""

    def random(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.randn(elements, dtype=dtype, device=device)

    (bucket,) = allocate(tensors, [Planned(tuple(names), compressor)], random)
    states: list[State] = [{} for _ in bucket.segments]
    gradients = [segment.tensor for segment in bucket.segments]
    if compressor == rows:
        for gradient in gradients:
            gradient[:, tokens:] = 0
    runs = [price(compressor, gradients, size, states, node_size)]  # it has no state yet, and cold caches
    while len(runs) < 2 or (len(runs) < 4 and runs[-1].kernel_s < _LONG_S):
        runs.append(price(compressor, gradients, size, states, node_size))
    return min(runs[1:], key=lambda run: run.kernel_s)


def from_json(saved: Mapping, among: Sequence[Compressor]) -> tuple[Prediction, list[Planned]]:
    """Undo `Choice.as_json`."""
    named = {compressor.text: compressor for compressor in (*among, rows)}
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
    tensors: Mapping[str, Tensor],
    plan: Sequence[Planned],
    chosen: Prediction,
    plain: Prediction,
    lines: Network,
) -> str:
    """One line: what was chosen, for how many bytes of gradients, and what speaks for it."""
    sizes: dict[str, int] = {}
    for planned in plan:
        size = sum(tensors[name].nbytes for name in planned.names)
        sizes[planned.compressor.text] = sizes.get(planned.compressor.text, 0) + size
    parts = ", ".join(f"{text} for {size / 1e6:.2f} MB" for text, size in sizes.items())
    line = lines.lines["world", "bucket"]
    network = f"a sum here takes {_short(line.latency_s * 1e3)} ms and {_short(line.per_byte_s * 1e9)} ms per MB sent"
    gain = f"{chosen.step_s * 1e3:.0f} ms a step expected, {plain.step_s * 1e3:.0f} ms uncompressed"
    return f"reduce.compressor auto takes {parts}: {gain} ({network}; what it costs in loss is not judged)"


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"
