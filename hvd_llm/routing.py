"""How a run's gradients will travel: in which buckets, each through which compressor. Decided once, at the start."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hvd_llm import models
from hvd_llm.comm import Comm
from hvd_llm.compress import registry
from hvd_llm.compress.base import Compressor
from hvd_llm.compress.none import none
from hvd_llm.config import Config
from hvd_llm.errors import UserError
from hvd_llm.reduce import auto, policy
from hvd_llm.reduce.buckets import readiness
from hvd_llm.reduce.policy import Planned
from hvd_llm.reduce.reducer import lookup
from hvd_llm.reduce.sender import Route
from hvd_llm.state import State
from hvd_llm.trace import now

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


def candidates(config: Config) -> list[Compressor]:
    """What `reduce.compressor` allows: one, or for auto several, `none` first.

    Raises:
        UserError: one of them cannot be, or not with this optimizer.
    """
    among = registry.candidates(config.reduce.compressor)
    setting, value = ("sync.outer_momentum", config.sync.outer_momentum)
    if config.sync.every == 1:
        setting, value = ("optimizer.beta1", config.optimizer.beta1)
    given = f"reduce.compressor is {config.reduce.compressor!r}"
    if value and any(compressor.own_momentum for compressor in among):
        raise UserError(
            f"{given}, which has momentum of its own, and {setting} is {value:g}, which would be a second one: set it "
            "to 0"
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
    comm = route.comm
    sparse, lookups = _by_rows(config, comm, state, among)
    parts = {lookup(name): leaf for name, leaf in lookups.items()}
    parameters, progress = state.parameters | parts, state.progress
    if set(progress.bucket_order) != set(parameters):
        order = list(readiness(parameters, rehearse))
        progress.bucket_order = comm.broadcast_object("bucket order", order)
    if len(among) > 1 and comm.size > 1:
        return _choose(config, route, state, among, rehearse)
    size = config.reduce.bucket_mb * MIB
    return Plan(policy.plan(parameters, progress.bucket_order, size, among[0], [*sparse, *parts]), lookups)


def _by_rows(
    config: Config, comm: Comm, state: State, among: Sequence[Compressor]
) -> tuple[list[str], dict[str, Tensor]]:
    """Parameters that are sent by rows; and lookups that are, apart from the rest of their parameter's gradient.

    It pays where whole gradients would be sent: not in shared memory, nor where a compressor sends less; and where
    they are waited for.
    """
    whole = comm.size > 1 and not comm.shares_memory and config.sync.every == 1 and list(among) == [none]
    if config.reduce.delay or not (whole and config.reduce.rows):
        return [], {}
    tokens = config.train.global_batch * config.data.sequence_length
    return models.sparse_embeddings(state.model, tokens), models.part_lookups(state.model, tokens)


def _choose(
    config: Config, route: Route, state: State, among: Sequence[Compressor], rehearse: Callable[[], None]
) -> Plan:
    """For `reduce.compressor = auto`."""
    comm, trace, progress, why = route.comm, route.trace, state.progress, ""
    asked = {
        "ranks": comm.size,
        "ranks_per_host": comm.place(route.groups["node"])[1],
        "among": [one.text for one in among],
        "bucket_mb": config.reduce.bucket_mb,
        "overlap": config.reduce.overlap,
    }
    if progress.choice.get("asked") != asked:
        share = -(-config.train.global_batch // comm.size)
        choice = auto.choose(
            state.parameters,
            progress.bucket_order,
            config.reduce.bucket_mb * MIB,
            among,
            comm,
            route.groups,
            lambda: readiness(state.parameters, rehearse),
            passes=-(-share // config.train.micro_batch),
            overlap=config.reduce.overlap,
        )
        # Ranks may round unlike each other.
        why, progress.choice = choice.why, comm.broadcast_object("choice", {"asked": asked} | choice.as_json())
    expected, buckets = auto.from_json(progress.choice, among)
    trace.step = progress.step
    for bucket, seconds in enumerate(expected.exchange_s):
        trace.add("expected_exchange", now(), now(), bucket, round(seconds * 1e9))
    trace.add("expected_step", now(), now(), amount=round(expected.step_s * 1e9))
    return Plan(buckets, why=why)
