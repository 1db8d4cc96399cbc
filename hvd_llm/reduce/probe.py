"""What is found out before the first step: about the network, the passes, and what each compressor would cost."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hvd_llm.comm import Comm, Group
from hvd_llm.compress.base import Compressor, State
from hvd_llm.compress.rows import rows
from hvd_llm.reduce import network
from hvd_llm.reduce.buckets import allocate, lookup
from hvd_llm.reduce.network import Network
from hvd_llm.reduce.policy import Planned
from hvd_llm.reduce.pricing import Price, price
from hvd_llm.reduce.step_time import Cost

_LONG_S = 0.25  # kernels that take so long are not timed over and over


@dataclass(frozen=True)
class Work:
    """What a rank has to compute and to send in a step.

    Attributes:
        parameters: by name.
        lookups: name → leaf that gets a part of a parameter's gradient, if nothing is compressed.
        readiness: runs a forward and a backward pass; parameter or lookup → seconds from its start to the gradient.
        tokens: of the rank.
        passes: forward and backward.
    """

    parameters: Mapping[str, nn.Parameter]
    lookups: Mapping[str, Tensor]
    readiness: Callable[[], Mapping[str, float]]
    tokens: int
    passes: int = 1

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and lookups."""
        return dict(self.parameters) | dict(self.lookups)


@dataclass(frozen=True)
class Probe:
    """What was found out; the same on all ranks.

    Attributes:
        lines: of the network.
        ready_s: parameter or lookup → seconds of a forward and backward pass until its gradient is there.
        burden: seconds by which each byte that is sent meanwhile holds up such a pass.
    """

    lines: Network
    ready_s: Mapping[str, float]
    burden: float

    def whole_s(self, name: str) -> float:
        """Until all of a parameter's gradient is there."""
        return max(self.ready_s[name], self.ready_s.get(lookup(name), 0.0))


def probe(comm: Comm, groups: Mapping[str, Group], work: Work, overlap: str) -> Probe:
    """Measure. Collective.

    Args:
        groups: by name, those that are asked about.
        overlap: `reduce.overlap`.
    """
    names, device = list(work.tensors), next(iter(work.parameters.values())).device
    work.readiness()  # the first pass is slower than all others
    lines = network.measure(comm, device, groups)
    seconds = [work.readiness() for _ in range(2)]
    mine = [min(each[name] for each in seconds) for name in names]
    ready_s, burden = dict(zip(names, _mean(comm, mine), strict=True)), 0.0
    if overlap != "none" and not comm.shares_memory:
        line = lines.lines["world", "sum"]
        found = network.burden(comm, device, line, lambda: max(work.readiness().values()))
        (burden,) = _mean(comm, [found])
        burden = max(0.0, burden)  # chance may have ranks compute faster meanwhile
    return Probe(lines, ready_s, burden)


def costs(
    comm: Comm,
    node_size: int,
    work: Work,
    found: Probe,
    cuts: Sequence[Sequence[str]],
    offers: Sequence[Sequence[Compressor]],
) -> list[list[Cost]]:
    """By bucket and candidate; kernels take what they take on average, while all ranks compute. Collective.

    Args:
        node_size: ranks on each host.
        cuts: by bucket, names of its parameters and lookups.
        offers: by bucket, candidates.
    """
    tensors = work.tensors
    known: dict[tuple, Price] = {}  # what has the same shapes is priced once

    def priced(names: Sequence[str], compressor: Compressor) -> Price:
        key = tuple((tensors[name].shape, tensors[name].dtype) for name in names), compressor.text
        if key not in known:
            known[key] = steady(tensors, Planned(tuple(names), compressor), comm.size, node_size, work.tokens)
        return known[key]

    prices = [[priced(names, compressor) for compressor in offer] for names, offer in zip(cuts, offers, strict=True)]
    kernels = iter(_mean(comm, [price.kernel_s for row in prices for price in row]))

    def cost(price: Price) -> Cost:
        held_up_s = found.burden * (price.sent_bytes + price.node_bytes)
        return Cost(next(kernels), *found.lines.seconds(price.operations), held_up_s)

    return [[cost(price) for price in row] for row in prices]


def _mean(comm: Comm, mine: Sequence[float]) -> list[float]:
    """Of every rank's numbers, one by one."""
    return [statistics.mean(numbers) for numbers in zip(*comm.gather_objects("auto", list(mine)), strict=True)]


def steady(tensors: Mapping[str, Tensor], planned: Planned, size: int, node_size: int, tokens: int) -> Price:
    """Price a bucket's exchange among `size` ranks as it is once there is a state from earlier steps.

    Args:
        tokens: of the rank. Of embeddings that are sent by rows, all are taken to differ.
    """

    def random(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.randn(elements, dtype=dtype, device=device)

    (bucket,) = allocate(tensors, [planned], random)
    states: list[State] = [{} for _ in bucket.segments]
    gradients = [segment.tensor for segment in bucket.segments]
    if planned.compressor == rows:
        for gradient in gradients:
            gradient[:, tokens:] = 0
    runs = [price(planned.compressor, gradients, size, states, node_size)]  # it has no state yet, and cold caches
    while len(runs) < 2 or (len(runs) < 4 and runs[-1].kernel_s < _LONG_S):
        runs.append(price(planned.compressor, gradients, size, states, node_size))
    return min(runs[1:], key=lambda run: run.kernel_s)
