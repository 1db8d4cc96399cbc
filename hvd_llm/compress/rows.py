"""rows: of the gradient of an embedding, the rows of those tokens that occurred. Nothing is lost.

What an embedding looks up is a small part of its table, and only that has a gradient; autograd has added up tokens that
occur several times. All ranks get all ranks' rows, so where these are many it is cheaper to add the whole tables.
"""

import torch

from hvd_llm.compress.base import Gather, Sum, compressor

_INDEX = {torch.float32: torch.int32, torch.float64: torch.int64}  # as wide as a number, to travel with it


@compressor(takes="matrices", dense=True)
def rows(gradient, state, at):
    """the rows that are not zero, where these are few, as in gradients of embeddings; exact"""
    table = gradient.flatten(0, -2)
    (places,) = ((table.amax(1) != 0) | (table.amin(1) != 0)).nonzero(as_tuple=True)  # half the time of abs().amax(1)
    counts = [int(count) for count in (yield Gather(torch.tensor([len(places)])))]
    width = table.shape[1]
    if sum(counts) * (1 + width) >= 2 * table.numel():  # what a ring sends for the whole
        return (yield Sum(gradient))
    index = places.to(_INDEX[table.dtype]).view(table.dtype)
    lengths = [count * (1 + width) for count in counts]
    parts = yield Gather(torch.cat([index, table[places].view(-1)]), lengths=lengths)
    table.zero_()  # what it held is in its part
    for part, count in zip(parts, counts, strict=True):
        index, values = part.split([count, count * width])
        table.index_add_(0, index.view(_INDEX[table.dtype]), values.view(count, width))
    return table.view_as(gradient)
