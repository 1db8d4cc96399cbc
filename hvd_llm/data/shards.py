"""A prepared folder, opened: token shards as memory maps, seen as one stream or as documents.

NAME.tokens   uint16 or uint32, the documents' tokens one after another
NAME.offsets  int64 [documents + 1], where each document starts
NAME.labels   int32 [documents] (classify) or int16 [tokens] (tag, -100: no target)

Kind text: every document ends with the end-of-text token, so the stream needs no further joining.
"""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np

from hvd_llm.data import index as indexes
from hvd_llm.errors import UserError, first_line, nearest

_AGAIN = "prepare the data again with --force"
IGNORED = -100  # a label that is not a target

LABEL_TYPES = {"classify": np.dtype("<i4"), "tag": np.dtype("<i2")}
OFFSET_TYPE = np.dtype("<i8")


def open_dataset(path: str | Path) -> "Dataset":
    """Open a folder written by `hvd-llm prepare`; checks the index and the size of every file.

    Raises:
        UserError: the folder, its index or a shard is missing, truncated or damaged.
    """
    folder = Path(path)
    index = indexes.read(folder)
    for shards in index.splits.values():
        for shard in shards:
            for kind, size in _sizes(index, shard).items():
                _check_size(folder / f"{shard.name}.{kind}", size)
    return Dataset(folder, index)


def _sizes(index: indexes.Index, shard: indexes.Shard) -> dict[str, int]:
    """Bytes that each of the shard's files must have."""
    sizes = {
        "tokens": shard.tokens * np.dtype(index.dtype).itemsize,
        "offsets": (shard.documents + 1) * OFFSET_TYPE.itemsize,
    }
    if index.kind in LABEL_TYPES:
        count = shard.documents if index.kind == "classify" else shard.tokens
        sizes["labels"] = count * LABEL_TYPES[index.kind].itemsize
    return sizes


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError:
        raise UserError(f"{path} is missing; prepare the data again") from None
    if found != size:
        raise UserError(f"{path} has {found} bytes where its index says {size}; prepare the data again")


class Dataset:
    """A prepared folder: its index and its splits."""

    def __init__(self, folder: Path, index: indexes.Index):
        self.folder, self.index = folder, index
        self.kind = index.kind
        self.fingerprint = index.fingerprint
        self.vocabulary = index.tokenizer.vocabulary
        self.labels = index.labels
        self.special = index.tokenizer.special

    def split(self, name: str) -> "Split":
        """Return the split `name`.

        Raises:
            UserError: the folder has no such split.
        """
        if name not in self.index.splits:
            raise UserError(f"{self.folder} has no split {name!r}{nearest(name, self.index.splits)}")
        return Split(self, name)

    def tokenizer(self):
        """Load the `transformers` tokenizer (fast, offline).

        Raises:
            UserError: tokenizer/ is missing or damaged.
        """
        from transformers import AutoTokenizer

        folder = self.folder / "tokenizer"
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers and tokenizers raise many types for a damaged file
            raise UserError(f"{folder} cannot be loaded as a tokenizer: {first_line(error)}") from None

    def verify(self) -> None:
        """Hash every file again and compare with the index.

        Raises:
            UserError: names the first file that differs.
        """
        _check_hash(self.folder / "tokenizer" / "tokenizer.json", self.index.tokenizer.sha256)
        for shards in self.index.splits.values():
            for shard in shards:
                for kind, sha256 in shard.files.items():
                    _check_hash(self.folder / f"{shard.name}.{kind}", sha256)


def _check_hash(path: Path, sha256: str) -> None:
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if found != sha256:
        raise UserError(f"{path} has changed since it was prepared (its SHA-256 differs); {_AGAIN}")


class Split:
    """The shards of one split, one after another."""

    def __init__(self, dataset: Dataset, name: str):
        self.dataset, self.name = dataset, name
        self.shards = dataset.index.splits[name]
        self.documents = sum(shard.documents for shard in self.shards)
        self.tokens = sum(shard.tokens for shard in self.shards)
        self._token_starts = np.cumsum([0] + [shard.tokens for shard in self.shards])
        self._maps = [self._map(shard, "tokens", np.dtype(dataset.index.dtype)) for shard in self.shards]

    def _map(self, shard: indexes.Shard, kind: str, dtype: np.dtype) -> np.ndarray:
        path = self.dataset.folder / f"{shard.name}.{kind}"
        try:
            if path.stat().st_size == 0:  # cannot be mapped
                return np.empty(0, dtype)
            return np.memmap(path, dtype.newbyteorder("<"), "r")
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}") from None

    def stream(self, start: int, stop: int) -> np.ndarray:
        """Read tokens [start, stop) of the split as one stream: int64 [stop - start]."""
        return self._gather(self._maps, start, stop, 0, self.dataset.vocabulary)

    def _gather(self, maps: list[np.ndarray], start: int, stop: int, low: int, limit: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.tokens
        shard = int(np.searchsorted(self._token_starts, start, side="right")) - 1
        pieces = []
        while start < stop:
            first, end = int(self._token_starts[shard]), int(self._token_starts[shard + 1])
            pieces.append(maps[shard][start - first : min(stop, end) - first])
            start, shard = min(stop, end), shard + 1
        values = np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, np.int64)
        if len(values) and not low <= values.min() <= values.max() < limit:  # a damaged file of the right size
            raise UserError(f"split {self.name!r} of {self.dataset.folder} is damaged; {_AGAIN}")
        return values

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each document starts in the stream: int64 [documents + 1]."""
        parts = []
        for shard, first in zip(self.shards, self._token_starts, strict=False):
            offsets = np.asarray(self._map(shard, "offsets", OFFSET_TYPE))
            if offsets[0] != 0 or offsets[-1] != shard.tokens or (np.diff(offsets) < 0).any():
                raise UserError(f"{self.dataset.folder / shard.name}.offsets is damaged; {_AGAIN}")
            parts.append(offsets[:-1] + first)
        return np.concatenate([*parts, [self.tokens]])

    def document(self, number: int) -> np.ndarray:
        """Read one document: int64 [its tokens]."""
        return self.stream(int(self.starts[number]), int(self.starts[number + 1]))

    @cached_property
    def document_labels(self) -> np.ndarray:
        """Kind classify: the label of each document, int32 [documents]."""
        values = np.concatenate([np.empty(0, np.int32), *self._label_maps])
        if len(values) and not 0 <= values.min() <= values.max() < len(self.dataset.labels):
            raise UserError(f"the labels of split {self.name!r} in {self.dataset.folder} are damaged; {_AGAIN}")
        return values

    def token_labels(self, number: int) -> np.ndarray:
        """Kind tag: the labels of one document's tokens, int64 [its tokens], -100: no target."""
        start, stop = int(self.starts[number]), int(self.starts[number + 1])
        return self._gather(self._label_maps, start, stop, -100, len(self.dataset.labels))

    @cached_property
    def _label_maps(self) -> list[np.ndarray]:
        return [self._map(shard, "labels", LABEL_TYPES[self.dataset.kind]) for shard in self.shards]
