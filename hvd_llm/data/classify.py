"""A label per document: [CLS] text [SEP], cut to the sequence length, padded to the longest of the batch."""

import numpy as np

from hvd_llm.data.shards import Split
from hvd_llm.errors import UserError


class Documents:
    """Documents between their special tokens; sample i is document i. Shared by classify and tag."""

    def __init__(self, split: Split, sequence_length: int):
        special = split.dataset.special
        if sequence_length < 3:
            raise UserError(f"data.sequence_length is {sequence_length}; labelled tasks need 3 or more")
        assert {"pad", "end"} <= special.keys(), "prepare refuses tokenizers that cannot frame a document"
        self.split, self.limit = split, sequence_length - 2
        self.first, self.last, self.pad = (
            special.get("cls", special["end"]),
            special.get("sep", special["end"]),
            special["pad"],
        )
        self.samples = split.documents
        self.lengths = np.minimum(np.diff(split.starts), self.limit)

    def framed(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask`, int64 [B, T]; T is the longest document and its two special tokens."""
        lengths_B = self.lengths[samples]
        T = int(lengths_B.max(initial=-2)) + 2
        tokens_BT = np.full((len(samples), T), self.pad, np.int64)
        for row, (sample, length) in enumerate(zip(samples.tolist(), lengths_B.tolist(), strict=True)):
            start = int(self.split.starts[sample])
            tokens_BT[row, 0], tokens_BT[row, length + 1] = self.first, self.last
            tokens_BT[row, 1 : length + 1] = self.split.stream(start, start + length)
        mask_BT = (np.arange(T) < lengths_B[:, None] + 2).astype(np.int64)
        return {"input_ids": tokens_BT, "attention_mask": mask_BT}


class Classify(Documents):
    """Documents with one label each."""

    def collate(self, samples: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask`, int64 [B, T], and `labels`, int64 [B]."""
        return self.framed(samples) | {"labels": self.split.document_labels[samples].astype(np.int64)}
