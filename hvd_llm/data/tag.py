"""A label per word: only the first token of a word is a target, and special tokens and padding are none."""

import numpy as np

from hvd_llm.data.classify import Documents
from hvd_llm.data.shards import IGNORED


class Tag(Documents):
    """Documents whose words have labels."""

    def collate(self, samples: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        """`input_ids`, `attention_mask` and `labels` (-100: no target), int64 [B, T]."""
        batch = self.framed(samples)
        labels_BT = np.full(batch["input_ids"].shape, IGNORED, np.int64)
        for row, sample in enumerate(samples.tolist()):
            length = int(self.lengths[sample])
            labels_BT[row, 1 : length + 1] = self.split.token_labels(sample)[:length]
        return batch | {"labels": labels_BT}
