"""How a run's gradients will travel: in which buckets, each through which compressor. Decided once, at the start."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hvd_llm import models
from hvd_llm.comm import Comm
from hvd_llm.compress import registry
from hvd_llm.compress.base import Compressor
from hvd_llm.compress.none import none
from hvd_llm.compress.rows import rows
from hvd_llm.config import Config
from hvd_llm.errors import UserError
from hvd_llm.reduce import auto, policy
from hvd_llm.reduce.buckets import lookup, readiness
from hvd_llm.reduce.policy import Planned
from hvd_llm.reduce.probe import Work
from hvd_llm.reduce.sender import Route
from hvd_llm.reduce.step_time import Prediction
from hvd_llm.state import Progress, State
from hvd_llm.trace import Trace, now

MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """What was decided.

    Attributes:
        buckets: to be made.
        lookups: parameter → leaf that gets the gradient of looking up in it, which is sent apart.
        why: what there is to say about it, if anything.
    """

    buckets: list[Planned]
    lookups: Mapping[str, Tensor] = field(default_factory=dict)
    why: str = ""

    def shares(self, parameters: Mapping[str, Tensor]) -> dict[str, int]:
        """Bytes of gradients by the compressor that they go through."""
        tensors = dict(parameters) | {lookup(name): leaf for name, leaf in self.lookups.items()}
        found: dict[str, int] = {}
        for planned in self.buckets:
            size = sum(tensors[name].nbytes for name in planned.names)
            found[planned.compressor.text] = found.get(planned.compressor.text, 0) + size
        return found


def allowed(config: Config) -> list[Compressor]:
    """What `reduce.compressor` allows: one, or for auto several, `none` first.

    Raises:
        UserError: one of them cannot be, or not with this optimizer.
    """
    among = registry.candidates(config.reduce.compressor)
    momenta = {"optimizer.beta1": config.optimizer.beta1, "sync.outer_momentum": config.sync.outer_momentum}
    setting = "optimizer.beta1" if config.sync.every == 1 else "sync.outer_momentum"
    given = f"reduce.compressor is {config.reduce.compressor!r}"
    if momenta[setting] and any(compressor.own_momentum for compressor in among):
        raise UserError(
            f"{given}, which has momentum of its own, and {setting} is {momenta[setting]:g}, which would be a second "
            "one: set it to 0"
        )
    if config.optimizer.name == "zero_one_adam" and not all(compressor.sums for compressor in among):
        raise UserError(f"{given} and optimizer.name is 'zero_one_adam', which is for sums of gradients; take 'adamw'")
    return among


def plan(config: Config, route: Route, state: State, among: Sequence[Compressor], rehearse: Callable[[], None]) -> Plan:
    """Decide. Collective. What is found out is kept in `state.progress`: a resumed run goes on as it was.

    Args:
        among: what `reduce.compressor` allows.
        rehearse: runs a forward and a backward pass.
    """
    if len(among) == 1 or route.comm.size == 1:
        return _plain(config, route.comm, state, among[0], rehearse)
    found, expected = _choose(config, route, state, among, rehearse)
    _note(route.trace, state.progress.step, expected)
    return found


def _plain(config: Config, comm: Comm, state: State, compressor: Compressor, rehearse: Callable[[], None]) -> Plan:
    """One compressor for all that it suits."""
    sparse, lookups = _by_rows(config, comm, state, compressor)
    parts = {lookup(name): leaf for name, leaf in lookups.items()}
    order = _order(state.parameters | parts, comm, state.progress, rehearse)
    size = config.reduce.bucket_mb * MIB
    return Plan(policy.plan(state.parameters | parts, order, size, compressor, [*sparse, *parts]), lookups)


def _order(parameters: Mapping[str, Tensor], comm: Comm, progress: Progress, rehearse: Callable[[], None]) -> list[str]:
    """In which gradients become ready, on rank 0; once it is known, it stays."""
    if set(progress.bucket_order) != set(parameters):
        progress.bucket_order = comm.broadcast_object("bucket order", list(readiness(parameters, rehearse)))
    return progress.bucket_order


def _note(trace: Trace, step: int, expected: Prediction) -> None:
    """Write down what is expected, so that a report can say what came of it."""
    trace.step = step
    for bucket, seconds in enumerate(expected.exchange_s):
        trace.add("expected_exchange", now(), now(), bucket, round(seconds * 1e9))
    trace.add("expected_step", now(), now(), amount=round(expected.step_s * 1e9))


def _by_rows(config: Config, comm: Comm, state: State, compressor: Compressor) -> tuple[list[str], dict[str, Tensor]]:
    """Parameters that are sent by rows; and lookups that are, apart from the rest of their parameter's gradient.

    It pays where whole gradients would be sent: not in shared memory, nor where a compressor sends less; and where
    they are waited for.
    """
    whole = comm.size > 1 and not comm.shares_memory and config.sync.every == 1 and compressor == none
    if config.reduce.delay or not (whole and config.reduce.rows):
        return [], {}
    tokens = config.train.global_batch * config.data.sequence_length
    return models.sparse_embeddings(state.model, tokens), models.part_lookups(state.model, tokens)


def _choose(
    config: Config, route: Route, state: State, among: Sequence[Compressor], rehearse: Callable[[], None]
) -> tuple[Plan, Prediction]:
    """For `reduce.compressor = auto`: the buckets, and what to expect of them."""
    comm, progress, why = route.comm, state.progress, ""
    plain = _plain(config, comm, state, none, rehearse)
    asked = comm.broadcast_object("asked", _asked(config, route, state, among))  # hosts may be unlike; all must choose
    if progress.choice.get("asked") != asked:
        parts = {lookup(name): leaf for name, leaf in plain.lookups.items()}
        share = -(-config.train.global_batch // comm.size)
        work = Work(
            state.parameters,
            parts,
            lambda: readiness(state.parameters | parts, rehearse),
            tokens=share * config.data.sequence_length,
            passes=-(-share // config.train.micro_batch),
        )
        size = config.reduce.bucket_mb * MIB
        choice = auto.choose(work, route, plain.buckets, among, size, config.reduce.overlap)
        # Ranks may round unlike each other.
        why, progress.choice = choice.why, comm.broadcast_object("choice", {"asked": asked} | choice.as_json())
    expected, buckets = auto.from_json(progress.choice, among)
    if all(planned.compressor in (none, rows) for planned in buckets):  # as if nothing else had been asked for
        known = expected if buckets == plain.buckets else replace(expected, exchange_s=())
        return replace(plain, why=why), known
    models.whole_lookups(state.model)
    return Plan(buckets, why=why), expected


def _asked(config: Config, route: Route, state: State, among: Sequence[Compressor]) -> dict:
    """What the choice depends on; with another one of these, a resumed run chooses again."""
    return {
        "ranks": route.comm.size,
        "ranks_per_host": route.comm.place(route.groups["node"])[1],
        "shares_memory": route.comm.shares_memory,
        "device": next(iter(state.parameters.values())).device.type,
        "among": [one.text for one in among],
        "bucket_mb": config.reduce.bucket_mb,
        "rows": config.reduce.rows,
        "overlap": config.reduce.overlap,
        "passes": [config.train.micro_batch, config.train.activation_checkpointing, config.train.compile],
        "threads": torch.get_num_threads(),
    }
