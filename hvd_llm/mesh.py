"""Which ranks do what together: ranks.reshape(dp, pp, tp), and the hosts they live on. A value, passed around."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from hvd_llm.comm import Group
from hvd_llm.errors import UserError


@dataclass(frozen=True)
class Mesh:
    """This rank's groups, and `groups`: those of all ranks, in the order in which they must be registered."""

    world: Group
    dp: Group  # same part of the model, other data
    pp: Group  # same data, other layers
    tp: Group  # same data, same layers, other slices
    node: Group  # this host
    across: Group  # one rank of every host: those with this rank's place on its host
    groups: tuple[Group, ...]

    def named(self, names: Collection[str]) -> list[Group]:
        """Those of all groups that names such as "node" stand for.

        Raises:
            UserError: "across" is among them, and hosts have not equally many ranks.
        """
        homes = [len(group.ranks) for group in self.groups if group.name.startswith("node.")]
        if "across" in names and len(set(homes)) > 1:
            numbers = f"{min(homes)} to {max(homes)}"
            raise UserError(f"reduce.compressor needs equally many ranks on every host, not {numbers}", shared=True)
        return [group for group in self.groups if group.name.partition(".")[0] in names]


def build(rank: int, hosts: list[str], pp: int = 1, tp: int = 1) -> Mesh:
    """Arrange `len(hosts)` ranks, rank r living on `hosts[r]`, with tp innermost.

    Raises:
        UserError: the ranks cannot be divided into pp x tp.
    """
    size = len(hosts)
    if size % (pp * tp):
        fit = max(n for n in range(1, pp * tp + 1) if size % n == 0)
        raise UserError(f"{size} ranks cannot be divided into pp = {pp} x tp = {tp}; the nearest product is {fit}")
    grid = np.arange(size).reshape(size // (pp * tp), pp, tp)
    axes = {}
    for axis, name in enumerate(("dp", "pp", "tp")):
        rows = np.moveaxis(grid, axis, -1).reshape(-1, grid.shape[axis]).tolist()
        axes[name] = [Group(f"{name}.{i}", tuple(row)) for i, row in enumerate(rows)]
    places: dict[int, list[int]] = {}
    homes: dict[str, list[int]] = {}
    for r, host in enumerate(hosts):
        places.setdefault(len(homes.setdefault(host, [])), []).append(r)
        homes[host].append(r)
    axes["node"] = [Group(f"node.{i}", tuple(ranks)) for i, ranks in enumerate(homes.values())]
    axes["across"] = [Group(f"across.{i}", tuple(ranks)) for i, ranks in places.items()]
    mine = {name: next(group for group in groups if rank in group.ranks) for name, groups in axes.items()}
    everyone = tuple(group for groups in axes.values() for group in groups)
    return Mesh(world=Group("world", tuple(range(size))), groups=everyone, **mine)
