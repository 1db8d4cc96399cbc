"""Codes of less than a byte, packed."""

import numpy as np
import torch
from torch import Tensor

# What a byte of signs stands for.
_SIGNS = 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32) - 1


def pack_signs(values: Tensor) -> Tensor:
    """(..., n) → (..., n / 8) uint8: a bit per element, set where it is not negative; the first is the lowest."""
    shape = (*values.shape[:-1], values.shape[-1] // 8)
    if values.device.type == "cpu":  # one pass, where torch needs eight; along an axis it would be nine times slower
        return torch.from_numpy(np.packbits(values.numpy() >= 0, bitorder="little")).view(shape)
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=values.device)
    return ((values >= 0).unflatten(-1, (-1, 8)) * weights).sum(-1, dtype=torch.uint8)


def unpack_signs(codes: Tensor, out: Tensor) -> Tensor:
    """Undo `pack_signs`: `out`, contiguous floats, becomes 1 and -1."""
    if codes.device.type == "cpu":  # "clip" writes straight into `out`; no byte is out of range
        np.take(_SIGNS, codes.view(-1).numpy(), axis=0, out=out.view(-1, 8).numpy(), mode="clip")
        return out
    shifts = torch.arange(8, dtype=torch.uint8, device=codes.device)
    return out.view(-1, 8).copy_(codes.view(-1, 1) >> shifts & 1).mul_(2).sub_(1).view_as(out)


def pack_12(indices: Tensor) -> Tensor:
    """(rows, 2 n) integers below 4096 → (rows, 3 n) uint8."""
    first, second = indices.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first & 255, first >> 8 | (second & 15) << 4, second >> 4], -1).to(torch.uint8).flatten(-2)


def unpack_12(codes: Tensor) -> Tensor:
    """Undo `pack_12`; gives int64."""
    low, middle, high = codes.long().unflatten(-1, (-1, 3)).unbind(-1)
    return torch.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], -1).flatten(-2)
