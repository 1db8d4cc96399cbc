"""adasum: gradients that agree are averaged, those at right angles are added (Maleki et al. 2020, arXiv:2006.02924).

Of two gradients of one parameter, what they have in common counts once:

    adasum(a, b) = (1 - a.b / 2|a|^2) a + (1 - a.b / 2|b|^2) b

Neighbours are combined first, then pairs of pairs (recursive vector halving): partners divide what they have, so that
each combines one half, and dot products are added over all ranks that hold parts of the two. It is what Horovod's
`hvd.Adasum` does on MPI, except that a norm below 1e-4 counts as none there.

The trainer divides a sum by all ranks' targets. What is returned is therefore the number of ranks times the above: as
much as the sum where all gradients are equal, and after the division the Adasum of the ranks' means.
"""

import torch
from torch import Tensor

from hvd_llm.compress.base import AllToAll, At, Gather, compressor
from hvd_llm.errors import UserError


@compressor(takes="matrices", sums=False)
def adasum(gradient, state, at):
    """gradients that agree are averaged, others are added, by parameter (Adasum); in full precision"""
    if at.size & (at.size - 1):
        raise UserError(f"adasum is for 2, 4, 8, … ranks (or hosts, if used across them), not {at.size}")
    piece = gradient.flatten(1).to(torch.promote_types(gradient.dtype, torch.float32))
    distance = 1
    while distance < at.size:
        piece = yield from _combine(piece, at, distance)
        distance *= 2
    columns = [_columns(rank, at.size, gradient.shape[1:].numel()) for rank in range(at.size)]
    lengths = [len(gradient) * len(places) for places in columns]
    everyone = yield Gather((piece * at.size).view(-1), lengths=lengths)
    result = piece.new_empty(gradient.flatten(1).shape)
    for part, places in zip(everyone, columns, strict=True):
        result[:, places.start : places.stop] = part.view(len(gradient), len(places))
    return result.view_as(gradient)


def _combine(piece: Tensor, at: At, distance: int):
    """Half of a piece, (parameters, elements), combined with that of the partner at a distance."""
    left, right = piece.tensor_split(2, dim=1)
    is_left = not at.rank & distance
    mine, theirs = (left, right) if is_left else (right, left)
    partner = at.rank ^ distance
    received = (yield _to([partner], theirs, mine.numel(), at.size))[partner].view_as(mine)
    a, b = (mine, received) if is_left else (received, mine)

    x, y = a.double(), b.double()
    products = torch.stack([torch.linalg.vecdot(x, y), torch.linalg.vecdot(x, x), torch.linalg.vecdot(y, y)])
    first = at.rank // (2 * distance) * 2 * distance
    holders = range(first, first + 2 * distance)
    answers = yield _to(holders, products, products.numel(), at.size)
    ab, aa, bb = sum(answers[rank] for rank in holders).view_as(products)
    return a * _weight(ab, aa).to(a.dtype) + b * _weight(ab, bb).to(b.dtype)


def _weight(product: Tensor, square: Tensor) -> Tensor:
    """(parameters,) → (parameters, 1); a gradient of zeros has nothing in common with any."""
    return torch.where(square == 0, 1, 1 - product / (2 * square)).unsqueeze(1)


def _to(ranks, tensor: Tensor, answer: int, size: int) -> AllToAll:
    """Send a tensor to some ranks, which send `answer` elements; nothing to the others."""
    tensors = [tensor.reshape(-1) if rank in ranks else tensor.new_empty(0) for rank in range(size)]
    return AllToAll(tensors, lengths=[answer if rank in ranks else 0 for rank in range(size)])


def _columns(rank: int, size: int, count: int) -> range:
    """The elements of each parameter that a rank has after all halvings."""
    places, distance = range(count), 1
    while distance < size:
        middle = (len(places) + 1) // 2
        places = places[middle:] if rank & distance else places[:middle]
        distance *= 2
    return places
