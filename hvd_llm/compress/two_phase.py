"""A sum of what was encoded: every rank adds up one slice of all gradients in float32, then all get all slices.

Phase 1 sends slice r, encoded, to rank r. Phase 2 encodes the sum again and gives it to everyone. On the wire this
is 2 (n-1)/n of the encoded size, as in a ring allreduce, but nothing is rounded in between, ranks add in one
order, and everybody decodes the same bytes. (1-bit Adam, Tang et al. 2021, section 4.2; ZeRO++, Wang et al. 2023,
section 3.3.) A rank's own slice is never encoded in phase 1; what phase 2 rounds away stays with the slice's owner,
so that one error buffer holds both errors.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from hvd_llm.compress.base import AllToAll, Gather

# Elements coded at a time: few enough to stay in a core's cache; elsewhere enough for what every call of torch costs.
CPU_CHUNK, CHUNK = 2**17, 2**20


class Codec(Protocol):
    """Turns numbers into bytes, in blocks of `block` elements that share what they share."""

    block: int

    def size(self, elements: int) -> int:
        """Bytes for that many elements, a multiple of 4."""

    def encode(self, values: Tensor, payload: Tensor) -> None:
        """`values`, (elements,) float32 → `payload`, (size,) uint8."""

    def decode(self, payload: Tensor, out: Tensor) -> None:
        """`payload`, (size,) uint8 → `out`, (elements,) float32."""

    def add(self, payload: Tensor, out: Tensor, times: float = 1) -> None:
        """Add what `payload` stands for to `out`, so many times."""


def two_phase(gradient: Tensor, at, codec: Codec):
    """Sum `gradient` over the group, encoded; leaves in it what was not sent if `at.feedback`."""
    assert gradient.dtype == torch.float32 or not at.feedback, "what is kept must be left in the gradient itself"
    gradient = gradient.float()
    result = at.result(gradient)  # maybe the same memory: nothing is decoded before all is encoded
    parts = _slices(gradient.view(-1), at.size, codec.block)
    results = _slices(result.view(-1), at.size, codec.block)
    sizes = [_size(codec, part) for part in parts]
    own = parts[at.rank]

    nothing = own.new_empty(0, dtype=torch.uint8)
    payloads = [encode(codec, part, at.feedback) if part is not own else nothing for part in parts]
    incoming = [sizes[at.rank] if rank != at.rank else 0 for rank in range(at.size)]
    received = yield AllToAll(payloads, lengths=incoming)
    others = [payload for rank, payload in enumerate(received) if rank != at.rank]
    everyone = yield Gather(encode(codec, own, at.feedback, others), lengths=sizes)
    for payload, out in zip(everyone, results, strict=True):
        decode(codec, payload, out)
    return result


def _slices(flat: Tensor, count: int, block: int) -> list[Tensor]:
    """Cut (elements,) into `count` slices of whole blocks, as equal as they can be; the last may be short or empty."""
    blocks = -(-flat.numel() // block)
    bounds = [min(flat.numel(), blocks * i // count * block) for i in range(count + 1)]
    return [flat[begin:end] for begin, end in pairwise(bounds)]


def _lengths(codec: Codec, values: Tensor) -> list[int]:
    """Elements of each chunk: whole blocks. A short last block is a chunk of its own, so that no other is padded."""
    elements = values.numel()
    rest = elements % codec.block
    step = max((CPU_CHUNK if values.device.type == "cpu" else CHUNK) // codec.block, 1) * codec.block
    whole = [min(step, elements - rest - begin) for begin in range(0, elements - rest, step)]
    return whole + [rest] if rest else whole


def _size(codec: Codec, values: Tensor) -> int:
    return sum(codec.size(length) for length in _lengths(codec, values))


def _chunks(codec: Codec, values: Tensor, *payloads: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Numbers and, of each payload, the bytes that stand for them, a chunk at a time."""
    lengths = _lengths(codec, values)
    sizes = [codec.size(length) for length in lengths]
    return zip(values.split(lengths), *(payload.split(sizes) for payload in payloads), strict=True)


def encode(codec: Codec, values: Tensor, keep: bool = False, others: Sequence[Tensor] = ()) -> Tensor:
    """(elements,) float32, to which `others` (payloads) are added first → uint8.

    Args:
        keep: leave in `values` what the bytes do not say.
    """
    payload = torch.empty(_size(codec, values), dtype=torch.uint8, device=values.device)
    for chunk, piece, *more in _chunks(codec, values, payload, *others):
        for other in more:
            codec.add(other, chunk)
        codec.encode(chunk, piece)
        if keep:
            codec.add(piece, chunk, times=-1)
    return payload


def decode(codec: Codec, payload: Tensor, out: Tensor) -> None:
    """uint8 → `out`, (elements,) float32."""
    for chunk, piece in _chunks(codec, out, payload):
        codec.decode(piece, chunk)
