"""A sum of what was encoded: every rank adds up one slice of all gradients in float32, then all get all slices.

Phase 1 sends slice r, encoded, to rank r. Phase 2 encodes the sum again and gives it to everyone. On the wire this
is 2 (n-1)/n of the encoded size, as in a ring allreduce, but nothing is rounded in between, ranks add in one
order, and everybody decodes the same bytes. (1-bit Adam, Tang et al. 2021, section 4.2; ZeRO++, Wang et al. 2023,
section 3.3.) A rank's own slice is never encoded in phase 1; what phase 2 rounds away stays with the slice's owner,
so that one error buffer holds both errors.
"""

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from hvd_llm.compress.base import AllToAll, Gather


class Codec(Protocol):
    """Turns numbers into bytes, in blocks of `block` elements that share what they share."""

    block: int

    def size(self, elements: int) -> int:
        """Bytes for that many elements, a multiple of 4."""

    def encode(self, values: Tensor) -> Tensor:
        """(elements,) float → (size,) uint8."""

    def decode(self, payload: Tensor, out: Tensor) -> Tensor:
        """(size,) uint8 → `out`, (elements,) float, which is returned."""


def slices(flat: Tensor, count: int, block: int) -> list[Tensor]:
    """Cut (elements,) into `count` slices of whole blocks, as equal as they can be; the last may be short or empty."""
    blocks = -(-flat.numel() // block)
    bounds = [min(flat.numel(), blocks * i // count * block) for i in range(count + 1)]
    return [flat[begin:end] for begin, end in pairwise(bounds)]


def two_phase(gradient: Tensor, at, codec: Codec):
    """Sum `gradient` over the group, encoded; leaves in it what was not sent if `at.feedback`."""
    gradient = gradient if gradient.dtype == torch.float32 else gradient.float()
    result = torch.empty_like(gradient)
    parts = slices(gradient.view(-1), at.size, codec.block)
    results = slices(result.view(-1), at.size, codec.block)
    own = parts[at.rank]

    payloads = [codec.encode(part) if part is not own else gradient.new_empty(0, dtype=torch.uint8) for part in parts]
    if at.feedback:
        for part, payload, scratch in zip(parts, payloads, results, strict=True):
            if part is not own:
                part.sub_(codec.decode(payload, scratch))
    incoming = [codec.size(own.numel()) if rank != at.rank else 0 for rank in range(at.size)]
    for rank, payload in enumerate((yield AllToAll(payloads, lengths=incoming))):
        if rank != at.rank:
            own.add_(codec.decode(payload, results[at.rank]))

    total = codec.encode(own)
    if at.feedback:
        own.sub_(codec.decode(total, results[at.rank]))
    everyone = yield Gather(total, lengths=[codec.size(part.numel()) for part in parts])
    for payload, out in zip(everyone, results, strict=True):
        codec.decode(payload, out)
    return result
