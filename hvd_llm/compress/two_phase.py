"""A sum of what was encoded: every rank adds up one slice of all gradients in float32, then all get all slices.

Phase 1 sends slice r, encoded, to rank r. Phase 2 encodes the sum again and gives it to everyone. On the wire this
is 2 (n-1)/n of the encoded size, as in a ring allreduce, but nothing is rounded in between, ranks add in one
order, and everybody decodes the same bytes. (1-bit Adam, Tang et al. 2021, section 4.2; ZeRO++, Wang et al. 2023,
section 3.3.) A rank's own slice is never encoded in phase 1; what phase 2 rounds away stays with the slice's owner,
so that one error buffer holds both errors.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from hvd_llm.compress.base import AllToAll, Gather

# Elements coded at a time: few enough to stay in the core's cache, enough for what every call of torch costs.
CHUNK = 2**20


class Codec(Protocol):
    """Turns numbers into bytes, in blocks of `block` elements that share what they share."""

    block: int

    def size(self, elements: int) -> int:
        """Bytes for that many elements, a multiple of 4."""

    def encode(self, values: Tensor, payload: Tensor) -> None:
        """`values`, (elements,) float32 → `payload`, (size,) uint8."""

    def decode(self, payload: Tensor, out: Tensor) -> None:
        """`payload`, (size,) uint8 → `out`, (elements,) float32."""


def two_phase(gradient: Tensor, at, codec: Codec):
    """Sum `gradient` over the group, encoded; leaves in it what was not sent if `at.feedback`."""
    assert gradient.dtype == torch.float32 or not at.feedback, "what is kept must be left in the gradient itself"
    gradient = gradient.float()
    result = torch.empty_like(gradient)
    parts = _slices(gradient.view(-1), at.size, codec.block)
    results = _slices(result.view(-1), at.size, codec.block)
    sizes = [_size(codec, part.numel()) for part in parts]
    own = parts[at.rank]

    payloads = [_encode(codec, part, at.feedback) if part is not own else _encode(codec, part[:0]) for part in parts]
    incoming = [sizes[at.rank] if rank != at.rank else 0 for rank in range(at.size)]
    for rank, payload in enumerate((yield AllToAll(payloads, lengths=incoming))):
        if rank != at.rank:
            _decode(codec, payload, own, add=True)
    everyone = yield Gather(_encode(codec, own, at.feedback), lengths=sizes)
    for payload, out in zip(everyone, results, strict=True):
        _decode(codec, payload, out)
    return result


def _slices(flat: Tensor, count: int, block: int) -> list[Tensor]:
    """Cut (elements,) into `count` slices of whole blocks, as equal as they can be; the last may be short or empty."""
    blocks = -(-flat.numel() // block)
    bounds = [min(flat.numel(), blocks * i // count * block) for i in range(count + 1)]
    return [flat[begin:end] for begin, end in pairwise(bounds)]


def _size(codec: Codec, elements: int) -> int:
    whole, rest = divmod(elements, CHUNK)
    return whole * codec.size(CHUNK) + (codec.size(rest) if rest else 0)


def _chunks(codec: Codec, values: Tensor, payload: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers and the bytes that stand for them, a chunk at a time."""
    step = codec.size(CHUNK)
    for index in range(-(-values.numel() // CHUNK)):
        chunk = values[index * CHUNK : (index + 1) * CHUNK]
        yield chunk, payload[index * step : index * step + codec.size(chunk.numel())]


def _encode(codec: Codec, values: Tensor, keep: bool = False) -> Tensor:
    """(elements,) float32 → uint8; `keep` leaves in `values` what the bytes do not say."""
    payload = torch.empty(_size(codec, values.numel()), dtype=torch.uint8, device=values.device)
    scratch = torch.empty_like(values[:CHUNK]) if keep else values
    for chunk, piece in _chunks(codec, values, payload):
        codec.encode(chunk, piece)
        if keep:
            codec.decode(piece, scratch[: chunk.numel()])
            chunk.sub_(scratch[: chunk.numel()])
    return payload


def _decode(codec: Codec, payload: Tensor, out: Tensor, add: bool = False) -> None:
    """uint8 → `out`, (elements,) float32, or onto it."""
    scratch = torch.empty_like(out[:CHUNK]) if add else out
    for chunk, piece in _chunks(codec, out, payload):
        if add:
            codec.decode(piece, scratch[: chunk.numel()])
            chunk.add_(scratch[: chunk.numel()])
        else:
            codec.decode(piece, chunk)
