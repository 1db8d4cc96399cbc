"""Which samples make the global batch of a step, and which of them are a rank's.

Everything is a pure function of (data, seed, step, rank, size): there is no iterator to save or to
replay. The global batch is the same list at any size; rank r takes every size-th sample from r on.
Shapes: B sequences, T tokens.
"""

import numpy as np

from hvd_llm.data import order
from hvd_llm.data.causal import Causal
from hvd_llm.data.classify import Classify
from hvd_llm.data.masked import Masked
from hvd_llm.data.shards import IGNORED, Dataset
from hvd_llm.data.tag import Tag
from hvd_llm.errors import UserError

_KINDS = {"causal": "text", "masked": "text", "classify": "classify", "tag": "tag"}
_MEGABATCH = 50  # batches whose samples are sorted by length together


class Batches:
    """The batches of one split for one task.

    `samples` is the number of samples in an epoch and `steps_per_epoch` the number of batches; the last
    batch of an epoch holds what is left and never wraps. Steps count on over epochs.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str = "train",
        task: str = "causal",
        *,
        sequence_length: int = 256,
        global_batch: int = 32,
        seed: int = 1,
        mask_rate: float = 0.15,
        whole_word: bool = False,
        shuffle: bool = True,
    ):
        """Args are the settings of the same name; `shuffle=False` keeps the samples in stored order.

        Raises:
            UserError: the data was not prepared for the task, or holds less than one sequence.
        """
        if dataset.kind != _KINDS[task]:
            raise UserError(
                f"data.task is {task!r}, but {dataset.folder} was prepared with --kind {dataset.kind}; "
                f"it needs --kind {_KINDS[task]}"
            )
        self.dataset, self.task, self.global_batch, self.shuffle = dataset, task, global_batch, shuffle
        part = dataset.split(split)
        if task == "causal":
            self._source = Causal(part, sequence_length)
        elif task == "masked":
            self._source = Masked(part, sequence_length, mask_rate, whole_word, order.key(seed, "mask"))
        elif task == "classify":
            self._source = Classify(part, sequence_length)
        else:
            self._source = Tag(part, sequence_length)
        self.samples = self._source.samples
        if not self.samples:
            raise UserError(
                f"split {split!r} of {dataset.folder} has {part.tokens} tokens in {part.documents} documents, less "
                f"than one sequence of data.sequence_length = {sequence_length}"
            )
        self.steps_per_epoch = -(-self.samples // global_batch)
        self._key = order.key(dataset.fingerprint, seed, split)

    def global_samples(self, step: int) -> np.ndarray:
        """The samples of the step's global batch in their global order: int64 [at most global_batch]."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self.shuffle and self._source.lengths is not None:
            return self._grouped_by_length(epoch, batch)
        return self._positions(epoch, batch * self.global_batch, (batch + 1) * self.global_batch)

    def _positions(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Samples at places [start, stop) of the epoch's order."""
        places = np.arange(start, min(stop, self.samples))
        return order.permute(places, self.samples, order.key(self._key, epoch)) if self.shuffle else places

    def _grouped_by_length(self, epoch: int, batch: int) -> np.ndarray:
        """Batches of similar lengths: many shuffled batches are sorted together, and their order shuffled again."""
        full = self.samples // self.global_batch  # a smaller last batch stays last
        if batch < full:
            batch = int(order.permute(np.array([batch]), full, order.key(self._key, epoch, "batches"))[0])
        first = batch - batch % _MEGABATCH
        mega = self._positions(epoch, first * self.global_batch, (first + _MEGABATCH) * self.global_batch)
        mega = mega[np.argsort(self._source.lengths[mega], kind="stable")]
        start = (batch - first) * self.global_batch
        return mega[start : start + self.global_batch]

    def at(self, step: int, rank: int = 0, size: int = 1) -> dict:
        """This rank's whole share of the step's global batch; B may be 0.

        Returns:
            int64 tensors: `input_ids` (B, T) and `labels`, which is (B, T) with -100 where there is no target
            (the model shifts causal labels), or (B,) for classify. classify and tag pad to the longest and
            add `attention_mask` (B, T), 1 for tokens and 0 for padding.
        """
        return self._tensors(step, self.global_samples(step)[rank::size])

    def micro_batches(self, step: int, rank: int = 0, size: int = 1, micro_batch: int = 8) -> list[dict]:
        """This rank's share cut into batches of at most `micro_batch` sequences, each padded on its own."""
        mine = self.global_samples(step)[rank::size]
        return [self._tensors(step, mine[i : i + micro_batch]) for i in range(0, len(mine), micro_batch)]

    def _tensors(self, step: int, samples: np.ndarray) -> dict:
        import torch  # here, so that preparing data does not wait for it

        arrays = self._source.collate(samples, step // self.steps_per_epoch)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def tokens(batch: dict) -> int:
    """Number of input tokens, without padding: what throughput counts."""
    mask = batch.get("attention_mask")
    return batch["input_ids"].numel() if mask is None else int(mask.sum())


def targets(batch: dict) -> int:
    """Number of targets that the loss of a batch is averaged over.

    The first position of a sequence is never one: causal models predict each token from those before it,
    and for the other tasks it holds a special token.
    """
    labels = batch["labels"]
    return int(((labels[:, 1:] if labels.dim() == 2 else labels) != IGNORED).sum())
