"""What compressors remember between steps: errors, momentum, warm starts; by parameter in a checkpoint.

A step first works on copies of these dictionaries, whose tensors are never written into, and is kept or dropped
as a whole: a step that is skipped leaves no trace.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from hvd_llm.compress.base import State
from hvd_llm.reduce.buckets import Bucket, Segment

_UNSENT = "unsent.error"  # what no compressor has taken over yet
SENT = "sent/"  # begins the names of weights as a rank that trains apart sent them
Named = dict[str, dict[str, Tensor]]  # parameter name → slot → tensor


class Memory:
    """The states of all buckets' segments on this rank."""

    def __init__(self, buckets: Sequence[Bucket], kept: Mapping[str, Mapping[str, Tensor]]):
        """Take up what a checkpoint kept, however its parameters were divided into buckets."""
        self._buckets = list(buckets)
        self._kept = [[_join(segment, kept) for segment in bucket.segments] for bucket in buckets]
        self._unsent = [_unsent(bucket, kept) for bucket in buckets]
        self._drafts: dict[int, list[State]] = {}

    def draft(self, bucket: int) -> list[State]:
        """The states of one bucket's segments, for this step to change."""
        self._drafts[bucket] = [dict(state) for state in self._kept[bucket]]
        return self._drafts[bucket]

    def unsent(self, bucket: int) -> Tensor | None:
        """The errors of other compressors, from before a resume, if any: they belong to the next gradient."""
        return self._unsent[bucket]

    def keep(self, bucket: int | None = None) -> None:
        """The step counts, or that of one bucket."""
        for index in list(self._drafts) if bucket is None else [bucket]:
            self._kept[index] = self._drafts.pop(index)
            self._unsent[index] = None

    def drop(self, bucket: int | None = None) -> None:
        """The step is skipped, or that of one bucket."""
        for index in list(self._drafts) if bucket is None else [bucket]:
            del self._drafts[index]

    def by_parameter(self) -> Named:
        """All that is kept, by parameter; tensors are views."""
        found: Named = {}
        for bucket, states, unsent in zip(self._buckets, self._kept, self._unsent, strict=True):
            if unsent is not None:
                pieces = unsent.split([view.numel() for view in bucket.views.values()])
                for (name, view), piece in zip(bucket.views.items(), pieces, strict=True):
                    found[name] = {_UNSENT: piece.view_as(view)}
            for segment, state in zip(bucket.segments, states, strict=True):
                for slot, value in state.items():
                    for name, piece in segment.cut(value).items():
                        shaped = piece.view_as(segment.views[name]) if value.shape == segment.tensor.shape else piece
                        found.setdefault(name, {})[segment.compressor.kept(slot)] = shaped
        return found


def _join(segment: Segment, kept: Mapping[str, Mapping[str, Tensor]]) -> State:
    """The state of a segment from what its compressor kept by parameter; what one of them lacks starts afresh."""
    pieces = [dict(kept.get(name, {})) for name in segment.views]
    if any("error" in piece for piece in pieces):  # a sum: who has none has zeros
        for piece, view in zip(pieces, segment.views.values(), strict=True):
            piece.setdefault("error", torch.zeros(view.shape))
    device = segment.tensor.device
    joined = {}
    for key in sorted(set.intersection(*(set(piece) for piece in pieces))):
        slot = segment.compressor.slot(key)
        if slot is None:
            continue
        parts = [piece[key] for piece in pieces]
        if all(part.shape == view.shape for part, view in zip(parts, segment.views.values(), strict=True)):
            joined[slot] = torch.cat([part.reshape(-1) for part in parts]).view(segment.tensor.shape).to(device)
        elif len({part.shape[1:] for part in parts}) == 1:  # else other options of the same compressor made them
            joined[slot] = torch.cat(parts).to(device)
    return joined


def _unsent(bucket: Bucket, kept: Mapping[str, Mapping[str, Tensor]]) -> Tensor | None:
    """The errors, (elements,), that a bucket's compressors would leave where they are; None without any."""
    errors = {
        name: [
            value
            for key, value in kept.get(name, {}).items()
            if key.rpartition(".")[2] == "error" and segment.compressor.slot(key) is None and value.shape == view.shape
        ]
        for segment in bucket.segments
        for name, view in segment.views.items()
    }
    if not any(errors.values()):
        return None
    parts = [sum(errors[name], torch.zeros(view.shape)).reshape(-1) for name, view in bucket.views.items()]
    return torch.cat(parts).to(bucket.flat.device)


def take_over(load: Callable[[int], Named], writers: int, rank: int, size: int, same: Collection[str]) -> Named:
    """What `rank` of `size` takes over from the `writers` ranks of a checkpoint.

    Slots named in `same` are equal on all ranks; those that begin with "own." are taken as they are, from writer `rank`
    modulo their number. The others are parts of a sum, which is conserved: rank r takes those of the writers r,
    r + size, …; a rank beyond them starts with zeros.

    Args:
        load: reads what one writer kept.
    """
    if writers == size:
        return load(rank)
    mine: Named = {}
    if not writers:
        return mine
    for writer in sorted({0, rank % writers, *range(rank, writers, size)}):
        counts = writer % size == rank
        for name, slots in load(writer).items():
            for slot, value in slots.items():
                have = mine.setdefault(name, {})
                if slot in same or slot.startswith("own."):
                    if writer == rank % writers:
                        have[slot] = value
                elif counts and slot in have:
                    have[slot] = have[slot] + value
                else:
                    have[slot] = value if counts else torch.zeros_like(value)
    return mine
