"""hierarchical: full precision within a node, any other compressor across nodes (after Cho et al. 2019, "BlueConnect").

Every rank adds up its own share of its node's gradients, sends it through the wrapped compressor to the ranks with the
same share on the other nodes, and gets the other shares from its node. A share of matrices is whole ones, maybe none:
of blocks of their rows, powersgd would send a Q each.

What is not sent is kept by the rank whose share it is. What a checkpoint of other hosts left elsewhere comes to it with
the gradients.
"""

import dataclasses

import torch
from torch import Tensor

from hvd_llm.compress.base import AllToAll, At, Compressor, Exchange, Gather, Sum, compressor
from hvd_llm.compress.int4 import int4
from hvd_llm.errors import UserError


@compressor(feedback=1, groups=("node", "across"))
def hierarchical(gradient, state, at, across: Compressor = int4):
    """full precision within a node, another compressor `across` nodes; a plain sum on one node"""
    if across.groups:
        raise UserError(f"{across} cannot be used across nodes: it knows them itself")
    node, nodes = at.within("node"), at.within("across")
    too_few = gradient.dim() == 1 and len(gradient) < node.size
    if nodes.size == 1 or too_few:  # nothing to gain
        kept = None
        if not at.feedback:  # one that keeps an error of its own, and other things with it
            kept = state.pop("error", None)
            state.clear()
        total = yield Sum(gradient.clone() if kept is None else gradient + kept)
        gradient.zero_()
        return total
    mine, own = (yield from _sum_of_share(gradient, node)), {}
    for slot in sorted(state.keys() - ({"error"} if at.feedback else set())):
        if slot in across.same:
            own[slot] = state[slot].tensor_split(node.size)[node.rank]
        else:
            own[slot] = yield from _sum_of_share(state[slot].clone(), node)

    there = dataclasses.replace(nodes, name=f"{at.name}.{node.rank}")
    total = yield from _across(across.with_options(feedback=0.0)(mine, own, there))

    for slot in sorted(own):
        if slot in across.same:
            state[slot] = yield from _all_shares(own[slot], len(gradient), node)
        else:
            state[slot] = own[slot].new_zeros(len(gradient), *own[slot].shape[1:])
            state[slot].tensor_split(node.size)[node.rank].copy_(own[slot])
    if at.feedback:
        for rank, share in enumerate(gradient.tensor_split(node.size)):
            share.copy_(mine) if rank == node.rank else share.zero_()
    return (yield from _all_shares(total, len(gradient), node))


def _sum_of_share(whole: Tensor, node: At):
    """Add up this rank's share of the node's tensors, in rank order; 16-bit floats in float32, rounded once."""
    shares = whole.tensor_split(node.size)
    own = shares[node.rank]
    parts = yield AllToAll([share.reshape(-1) for share in shares], "node", [own.numel()] * node.size)
    total = parts[0].to(torch.promote_types(whole.dtype, torch.float32))
    for part in parts[1:]:
        total += part
    return total.to(whole.dtype).view_as(own)


def _all_shares(own: Tensor, count: int, node: At):
    """Put the node's shares together: `count` elements or matrices."""
    shape = own.shape[1:]
    lengths = [len(share) * shape.numel() for share in torch.empty(count, device="meta").tensor_split(node.size)]
    parts = yield Gather(own.reshape(-1), "node", lengths)
    return torch.cat(parts).view(count, *shape)


def _across(exchange: Exchange):
    """Carry on an exchange among the ranks with the same share."""
    answer = None
    while True:
        try:
            request = exchange.send(answer)
        except StopIteration as stop:
            return stop.value
        answer = yield dataclasses.replace(request, group="across")
