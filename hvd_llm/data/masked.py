"""Masked language modelling (Devlin et al., 2019): [CLS] a window of the stream [SEP], some tokens to be predicted.

Shapes: B sequences, T tokens.
"""

import numpy as np

from hvd_llm.data import order
from hvd_llm.data.causal import read_windows
from hvd_llm.data.shards import IGNORED, Split
from hvd_llm.data.words import word_starts
from hvd_llm.errors import UserError


class Masked:
    """Sample i is tokens [i * (T - 2), (i + 1) * (T - 2)) of the stream, and what is left is not used.

    Masks are drawn for each (key, epoch, sample) alone, so they do not depend on ranks or batches.
    """

    lengths = None  # all the same

    def __init__(self, split: Split, sequence_length: int, mask_rate: float, whole_word: bool, key: int):
        special = split.dataset.special
        missing = sorted({"cls", "sep", "mask"} - special.keys())
        if missing:
            raise UserError(
                f"data.task is 'masked', but the tokenizer of {split.dataset.folder} has no {missing[0]} token; "
                "prepare the data with --tokenizer wordpiece"
            )
        if sequence_length < 3:
            raise UserError(f"data.sequence_length is {sequence_length}; data.task 'masked' needs 3 or more")
        self.split, self.length, self.rate, self.key = split, sequence_length - 2, mask_rate, key
        self.samples = split.tokens // self.length
        self.special = special
        self.is_special_V = np.zeros(split.dataset.vocabulary, bool)
        self.is_special_V[split.dataset.index.tokenizer.special_ids] = True
        self.ordinary = np.flatnonzero(~self.is_special_V)  # what a random replacement is drawn from
        self.word_starts = word_starts(split.dataset) if whole_word else None

    def collate(self, samples: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        """`input_ids` and `labels` (-100 where nothing is to be predicted), both int64 [B, T]."""
        B, T = len(samples), self.length + 2
        tokens_BT = np.empty((B, T), np.int64)
        tokens_BT[:, 0], tokens_BT[:, -1] = self.special["cls"], self.special["sep"]
        tokens_BT[:, 1:-1] = read_windows(self.split, samples, self.length)

        chosen_BT = self._choose(tokens_BT, order.uniform(order.key(self.key, epoch, "choose"), samples, T))
        how_BT = order.uniform(order.key(self.key, epoch, "how"), samples, T)
        what_BT = order.uniform(order.key(self.key, epoch, "what"), samples, T)
        random_BT = self.ordinary[(what_BT * len(self.ordinary)).astype(np.int64)]
        inputs_BT = np.where(chosen_BT & (how_BT < 0.9), random_BT, tokens_BT)
        inputs_BT[chosen_BT & (how_BT < 0.8)] = self.special["mask"]
        return {"input_ids": inputs_BT, "labels": np.where(chosen_BT, tokens_BT, IGNORED)}

    def _choose(self, tokens_BT: np.ndarray, lots_BT: np.ndarray) -> np.ndarray:
        """Choose `rate` of the ordinary tokens of each sequence (one at least), bool [B, T].

        Units are tokens or whole words; a unit draws the lot of its first token, and the lowest lots win.
        """
        B, T = tokens_BT.shape
        ordinary_BT = ~self.is_special_V[tokens_BT]
        if self.word_starts:
            starts_BT = self.word_starts(tokens_BT)
            first_BT = np.maximum.accumulate(np.where(starts_BT, np.arange(T), 0), axis=1)
            lots_BT = np.take_along_axis(lots_BT, first_BT, axis=1)
        else:
            first_BT = np.broadcast_to(np.arange(T), (B, T))
        lots_BT = np.where(ordinary_BT, lots_BT, 2.0)  # special tokens come last
        ranking_BT = np.argsort(lots_BT, axis=1, kind="stable")
        units_BT = np.take_along_axis(first_BT, ranking_BT, axis=1)
        # In order of their lots: where each token's unit begins and ends.
        change_BT = units_BT[:, 1:] != units_BT[:, :-1]
        edge_B1 = np.ones((B, 1), bool)
        place_T = np.arange(T)
        begin_BT = np.maximum.accumulate(np.where(np.hstack([edge_B1, change_BT]), place_T, 0), axis=1)
        ends_BT = np.where(np.hstack([change_BT, edge_B1]), place_T + 1, T)
        end_BT = np.minimum.accumulate(ends_BT[:, ::-1], axis=1)[:, ::-1]
        wanted_B1 = np.maximum(1, np.rint(self.rate * ordinary_BT.sum(1, keepdims=True)))
        # A word counts when its middle fits, so that long ones neither inflate nor deflate the rate.
        wins_BT = ((begin_BT + end_BT) / 2 <= wanted_B1) | (begin_BT == 0)
        chosen_BT = np.zeros((B, T), bool)
        np.put_along_axis(chosen_BT, ranking_BT, wins_BT, axis=1)
        return chosen_BT & ordinary_BT
