"""reduce.compressor = auto: the compressor of each bucket is the one with which a step should take least time.

A probe before the first step measures the network, the compressors' kernels on buckets as they are, and when in
backward each bucket is ready; a model of the step then says how long it takes with any choice. Often the best is not to
compress (Agarwal et al. 2022, "On the utility of gradient compression": 6 of more than 200 set-ups gained).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hvd_llm.compress.base import Compressor
from hvd_llm.compress.none import none
from hvd_llm.compress.rows import rows
from hvd_llm.reduce import policy
from hvd_llm.reduce.network import Network
from hvd_llm.reduce.policy import Planned
from hvd_llm.reduce.probe import Work, costs, probe
from hvd_llm.reduce.sender import Route
from hvd_llm.reduce.step_time import NEAR, Prediction, predict, search


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


def from_json(saved: Mapping, among: Sequence[Compressor]) -> tuple[Prediction, list[Planned]]:
    """Undo `Choice.as_json`."""
    named = {compressor.text: compressor for compressor in (*among, rows)}
    plan = [Planned(tuple(names), named[text]) for names, text in saved["plan"]]
    return Prediction(saved["step_s"], tuple(saved["exchange_s"])), plan


def choose(
    work: Work,
    route: Route,
    plain: Sequence[Planned],
    among: Sequence[Compressor],
    bucket_bytes: float,
    overlap: str = "backward",
) -> Choice:
    """Probe, then choose; the same on all ranks. Collective.

    Args:
        plain: the buckets if nothing is compressed, lookups among them.
        among: `none`, then what else may be chosen.
        overlap: `reduce.overlap`.
    """
    asked = {"world"}.union(*(compressor.groups for compressor in among))
    found = probe(route.comm, {name: route.groups[name] for name in sorted(asked)}, work, overlap)
    node_size = route.comm.place(route.groups["node"])[1]
    pass_s = max(map(found.whole_s, work.parameters))

    def decide(
        cuts: Sequence[Sequence[str]], offers: Sequence[Sequence[Compressor]], there_s: Callable[[str], float]
    ) -> tuple[list[int], Prediction]:
        """By bucket, which to take, and what to expect then."""
        offered = costs(route.comm, node_size, work, found, cuts, offers)
        last = [max(map(there_s, names)) - pass_s for names in cuts]
        ready_s = [work.passes * pass_s + (0 if overlap == "none" else before) for before in last]
        step = ready_s, work.passes * pass_s, overlap == "forward"
        chosen = search(offered, *step)
        return chosen, predict([row[at] for row, at in zip(offered, chosen, strict=True)], *step)

    _, uncompressed = decide(
        [each.names for each in plain], [[each.compressor] for each in plain], found.ready_s.__getitem__
    )
    order = sorted(work.parameters, key=found.whole_s)
    matrices = {name for name, parameter in work.parameters.items() if policy.is_matrix(parameter)}
    cuts = policy.cut(work.parameters, order, bucket_bytes, matrices.__contains__)
    offers = [list(among) if names[0] in matrices else [none] for names in cuts]
    chosen, prediction = decide(cuts, offers, found.whole_s)
    plan = [Planned(tuple(names), offer[at]) for names, offer, at in zip(cuts, offers, chosen, strict=True)]
    if not any(chosen) or uncompressed.step_s <= prediction.step_s * NEAR:
        plan, prediction = list(plain), uncompressed
    return Choice(plan, prediction, _why(work.tensors, plan, prediction, uncompressed, found.lines))


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
