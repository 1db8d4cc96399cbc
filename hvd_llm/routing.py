"""How a run's gradients will travel: in which buckets, each through which compressor. Decided once, at the start."""

from collections.abc import Callable, Sequence

from hvd_llm import models
from hvd_llm.comm import Comm
from hvd_llm.compress.base import Compressor
from hvd_llm.config import Config
from hvd_llm.reduce import auto, policy
from hvd_llm.reduce.buckets import readiness
from hvd_llm.reduce.policy import Planned
from hvd_llm.state import State
from hvd_llm.trace import Trace, now

MIB = 2**20


def plan(
    config: Config, comm: Comm, state: State, among: Sequence[Compressor], rehearse: Callable[[], None], trace: Trace
) -> tuple[list[Planned], str]:
    """The buckets to make, and what there is to say about them. Collective.

    What is found out here is kept in `state.progress`: a resumed run goes on as it was.

    Args:
        among: what `reduce.compressor` allows.
        rehearse: runs a forward and a backward pass.
    """
    progress, bucket_bytes = state.progress, config.reduce.bucket_mb * MIB
    if not progress.bucket_order:
        order = list(readiness(state.parameters, rehearse))
        progress.bucket_order = comm.broadcast_object("bucket order", order)
    sparse = _sparse(config, comm, state)
    if len(among) == 1 or comm.size == 1:
        return policy.plan(state.parameters, progress.bucket_order, bucket_bytes, among[0], sparse), ""

    why = ""
    asked = {"ranks": comm.size, "compressor": config.reduce.compressor, "bucket_mb": config.reduce.bucket_mb}
    if progress.choice.get("asked") != asked:
        share = -(-config.train.global_batch // comm.size)
        choice = auto.choose(
            state.parameters,
            progress.bucket_order,
            bucket_bytes,
            among,
            comm,
            lambda: readiness(state.parameters, rehearse),
            passes=-(-share // config.train.micro_batch),
            overlap=config.reduce.overlap != "none" and config.sync.every == 1,
            sparse=sparse,
        )
        why, progress.choice = choice.why, {"asked": asked} | choice.as_json()
    expected, chosen = auto.from_json(progress.choice, among)
    for bucket, seconds in enumerate(expected.exchange_s):
        trace.add("expected_exchange", now(), now(), bucket, round(seconds * 1e9))
    trace.add("expected_step", now(), now(), amount=round(expected.step_s * 1e9))
    return chosen, why


def _sparse(config: Config, comm: Comm, state: State) -> list[str]:
    """Parameters that are sent by rows: a pseudo-gradient has them all, and in shared memory nothing is sent."""
    if comm.size == 1 or comm.shares_memory or config.sync.every > 1:
        return []
    return models.sparse_embeddings(state.model, config.train.global_batch * config.data.sequence_length)
