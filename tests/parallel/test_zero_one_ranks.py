"""0/1 Adam on real ranks, against simulated ones in this process and against AdamW."""

import pytest
import torch
from small_training import backward, settings, trainer

from hvd_llm import optimizer
from hvd_llm.comm.mute import Mute
from hvd_llm.compress.base import At
from hvd_llm.compress.none import none
from hvd_llm.reduce import lockstep

ZERO_ONE = {"name": "zero_one_adam", "kappa": 2, "lr": 0.01}
REDUCE = {"compressor": "onebit", "bucket_mb": 0.02}


def test_ranks_do_what_simulated_ranks_do(comm, folders):
    unclipped = ZERO_ONE | {"clip_norm": 0.0}  # norms of other buckets round differently
    config = settings(folders, "causal", optimizer=unclipped, reduce=REDUCE)
    together = trainer(comm, config)
    for _ in range(12):
        together.step()
    together.check_drift()
    if comm.rank:
        return  # rank 0 simulates, for all
    plain = settings(folders, "causal", optimizer=unclipped, reduce={"rows": False})
    ranks = [trainer(Mute(rank, comm.size), plain) for rank in range(comm.size)]
    states = [[[{} for _ in ranks] for _ in bucket.segments] for bucket in together.reducer.buckets]
    for step in range(12):
        count = sum(backward(rank, step) for rank in ranks)
        exact = optimizer.exact(config, step)
        lr = optimizer.learning_rate(config.optimizer, step, together.steps)
        for bucket, kept in zip(together.reducer.buckets, states, strict=True):
            for segment, mine in zip(bucket.segments, kept, strict=True):
                _sum(segment, ranks, mine, exact, step)
        for rank in ranks:
            rank.update.take(rank.nominal / count, exact, lr)
            rank.state.progress.step += 1
    for rank in ranks:
        assert torch.equal(_weights(rank), _weights(together))


def _weights(trainer):
    return torch.cat([parameter.detach().view(-1) for parameter in trainer.state.parameters.values()])


def _sum(segment, ranks, states, exact, step):
    """What a segment's exchange does to every rank's gradients."""
    gradients = [
        torch.cat([rank.state.parameters[name].grad.view(-1) for name in segment.views]).view_as(segment.tensor)
        for rank in ranks
    ]
    how = none if exact else segment.compressor
    at = At(next(iter(segment.views)), step=step)
    sums = lockstep.reduce(how, gradients, states, at)
    for rank, total in zip(ranks, sums, strict=True):
        for name, piece in segment.cut(total).items():
            gradient = rank.state.parameters[name].grad
            gradient.copy_(piece.view_as(gradient))


@pytest.mark.parametrize(
    "changes",
    [
        {"reduce": {"compressor": "none"}, "optimizer": {"kappa": 1000}},
        {"reduce": {"compressor": "onebit", "warmup_steps": 1000}},
    ],
    ids=["kappa", "warm-up"],
)
def test_without_compression_it_is_adamw(comm, folders, changes):
    optimizers = ({"name": "adamw", "lr": 0.01}, ZERO_ONE | changes.get("optimizer", {}))
    adamw, zero_one = (
        trainer(comm, settings(folders, "causal", optimizer=each, reduce=changes["reduce"]), torch.float64)
        for each in optimizers
    )
    for _ in range(12):
        adamw.step()
        zero_one.step()
    torch.testing.assert_close(_weights(zero_one), _weights(adamw), rtol=1e-10, atol=1e-12)


def test_second_moments_come_from_exact_gradients_alone(comm, folders):
    """On all ranks the same, and resting in between."""
    together = trainer(comm, settings(folders, "causal", optimizer=ZERO_ONE, reduce=REDUCE))
    seen = []
    for _ in range(8):
        together.step()
        seen.append(torch.cat([each["exp_avg_sq"].view(-1) for each in together.state.optimizer.state.values()]))
    rested = [step for step in range(1, 8) if torch.equal(seen[step], seen[step - 1])]
    assert rested == [3, 5, 7]
    everywhere = comm.gather_async("second moments", seen[-1]).wait()
    assert all(torch.equal(other, seen[-1]) for other in everywhere)
