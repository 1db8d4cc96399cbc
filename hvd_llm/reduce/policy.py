"""Which parameters' gradients travel together, and through which compressor."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hvd_llm.compress.base import Compressor
from hvd_llm.compress.none import none
from hvd_llm.compress.rows import rows


@dataclass(frozen=True)
class Planned:
    """A bucket to be made: names of its parameters, of one dtype and device, as they become ready."""

    names: tuple[str, ...]
    compressor: Compressor


def plan(
    parameters: Mapping[str, Tensor],
    order: Sequence[str],
    bucket_bytes: float,
    compressor: Compressor,
    sparse: Collection[str] = (),
) -> list[Planned]:
    """The buckets if there is one compressor for all that it suits, in the order in which they become ready.

    Args:
        sparse: those whose gradient has few rows, which are sent as such.
    """
    of_all = compressor.dense or not compressor.sums
    chosen = {name: compressor if of_all or is_matrix(p) else none for name, p in parameters.items()}
    chosen |= dict.fromkeys(sparse, rows)
    cuts = cut(parameters, order, bucket_bytes, lambda name: id(chosen[name]))
    return [Planned(tuple(names), chosen[names[0]]) for names in cuts]


def is_matrix(parameter: Tensor) -> bool:
    """Biases, norms and other vectors are few bytes, and what is lost of them hurts: they are sent as they are."""
    return parameter.dim() >= 2


def cut(
    parameters: Mapping[str, Tensor], order: Sequence[str], bucket_bytes: float, kind: Callable[[str], Hashable]
) -> list[list[str]]:
    """Cut `order` into buckets of at most `bucket_bytes`, of one kind, dtype and device; a larger parameter is alone.

    Args:
        order: parameter names as their gradients become ready.
    """
    kinds: dict[tuple, list[str]] = {}
    for name in order:
        kinds.setdefault((parameters[name].dtype, parameters[name].device, kind(name)), []).append(name)
    cuts: list[list[str]] = []
    for names in kinds.values():
        filled = bucket_bytes
        for name in names:
            if filled + parameters[name].nbytes > bucket_bytes:
                cuts.append([])
                filled = 0
            cuts[-1].append(name)
            filled += parameters[name].nbytes
    place = {name: index for index, name in enumerate(order)}
    return sorted(cuts, key=lambda names: max(place[name] for name in names))
