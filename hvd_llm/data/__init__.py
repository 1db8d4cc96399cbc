"""Corpus to tokens to batches. Knows nothing of communication: a rank and a size are plain numbers here."""

from hvd_llm.data.batches import Batches, targets, tokens
from hvd_llm.data.shards import Dataset, Split, open_dataset

__all__ = ["Batches", "Dataset", "Split", "open_dataset", "targets", "tokens"]
