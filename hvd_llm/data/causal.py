"""Next-token prediction: the split as one stream of tokens, cut into windows without padding."""

import numpy as np

from hvd_llm.data.shards import Split


class Causal:
    """Sample i is tokens [i * T, (i + 1) * T) of the stream; what is left at its end is not used."""

    lengths = None  # all the same

    def __init__(self, split: Split, sequence_length: int):
        self.split, self.length = split, sequence_length
        self.samples = split.tokens // sequence_length

    def collate(self, samples: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        """`input_ids` and `labels`, both int64 [B, T] and equal: the model shifts."""
        tokens_BT = read_windows(self.split, samples, self.length)
        return {"input_ids": tokens_BT, "labels": tokens_BT.copy()}


def read_windows(split: Split, samples: np.ndarray, length: int) -> np.ndarray:
    """Read one window of `length` tokens per sample: int64 [B, length]."""
    windows_BT = np.empty((len(samples), length), np.int64)
    for row, sample in enumerate(samples.tolist()):
        windows_BT[row] = split.stream(sample * length, (sample + 1) * length)
    return windows_BT
