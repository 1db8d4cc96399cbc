"""What Horovod and MPI are told by environment variables, unless the user has exported them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """A variable's value and why."""

    value: str
    why: str


def variables(cycle_ms: float, timeline: bool = False) -> dict[str, Variable]:
    """What suits flat buckets on hosts whose cores all compute.

    Args:
        cycle_ms: how often Horovod looks for new operations, in milliseconds.
        timeline: whether Horovod's timeline will be started, later, when the run folder is known.
    """
    chosen = {
        "HOROVOD_CYCLE_TIME": Variable(f"{cycle_ms:g}", "every look is a collective of all ranks"),
        "HOROVOD_FUSION_THRESHOLD": Variable("0", "buckets are flat already: fusing them would only copy them"),
        "OMPI_MCA_mpi_yield_when_idle": Variable("1", "a waiting rank gives its core to one that computes"),
        "OMPI_MCA_btl_tcp_flags": Variable(
            "send,inplace,need-ack,need-csum,hetero-rdma",
            "receivers that ask for large messages (put) do so behind what they send: half the network's rate",
        ),
    }
    return chosen | ({"HOROVOD_TIMELINE": Variable("DYNAMIC", "it is started later")} if timeline else {})
