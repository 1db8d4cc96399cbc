"""The two stages between sources and shards, part by part: cleaned texts, then tokens.

Each part is a folder that appears when it is complete, so a restart skips what is there.
"""

import json
from collections import Counter
from functools import cached_property
from pathlib import Path

import numpy as np

from hvd_llm.data import clean, dedup, tokenizer
from hvd_llm.data.columns import Fields
from hvd_llm.data.files import whole_folder
from hvd_llm.data.readers import read
from hvd_llm.data.shards import IGNORED
from hvd_llm.data.sources import Piece

_AT_ONCE = 256  # documents given to the tokenizer together


class Texts:
    """A finished part of the first stage.

    digests: uint64 [D, 2]; starts: int64 [D + 1], bytes; labels: a list of strings (classify), of lists of
    strings (tag), or empty; removed: why documents were left out -> how many; signatures: see dedup.
    """

    def __init__(self, folder: Path):
        self.starts = np.load(folder / "starts.npy", allow_pickle=False)
        self.digests = np.load(folder / "digests.npy", allow_pickle=False)
        notes = json.loads((folder / "notes.json").read_bytes())
        self.labels, self.removed = notes["labels"], Counter(notes["removed"])
        self._folder = folder

    def __len__(self) -> int:
        return len(self.digests)

    @cached_property
    def _text(self) -> np.ndarray:
        return np.memmap(self._folder / "text", np.uint8, "r")

    def text(self, document: int) -> str:
        return self._text[self.starts[document] : self.starts[document + 1]].tobytes().decode()

    def signatures(self) -> np.ndarray:
        return np.load(self._folder / "signatures.npy", mmap_mode="r", allow_pickle=False)


def write_texts(folder: Path, pieces: list[Piece], fields: Fields, whitespace: str, near: bool) -> None:
    """First stage: read, clean, hash."""

    def fill(draft: Path) -> None:
        removed, texts, labels = Counter(), [], []
        for piece in pieces:
            for document in read(piece, fields, removed):
                cleaner = clean.clean_words if fields.kind == "tag" else clean.clean
                text = cleaner(document.text, whitespace)
                if not text.strip():
                    removed["empty"] += 1
                    continue
                texts.append(text.encode())
                if fields.kind != "text":
                    labels.append(list(document.tags) if fields.kind == "tag" else document.label)
        joined = b"".join(texts)
        starts = np.cumsum([0] + [len(text) for text in texts])
        (draft / "text").write_bytes(joined)
        np.save(draft / "starts.npy", starts)
        digests = b"".join(dedup.digest(text) for text in texts)
        np.save(draft / "digests.npy", np.frombuffer(digests, np.uint64).reshape(-1, 2))
        if near:
            np.save(draft / "signatures.npy", dedup.signatures(joined, starts))
        (draft / "notes.json").write_text(json.dumps({"labels": labels, "removed": removed}))

    whole_folder(folder, folder.parent, fill)


class Tokens:
    """A finished part of the second stage: tokens of the documents that were kept, as a shard will hold them."""

    def __init__(self, folder: Path):
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
        self.starts = np.load(folder / "starts.npy", allow_pickle=False)
        labels = folder / "labels.npy"
        self.labels = np.load(labels, mmap_mode="r", allow_pickle=False) if labels.exists() else None

    def __len__(self) -> int:
        return len(self.starts) - 1


def write_tokens(
    folder: Path,
    texts: Path,
    kept: np.ndarray,
    tokenizer_folder: Path,
    kind: str,
    labels: list[str],
    end: int,
    dtype: str,
) -> None:
    """Second stage: tokenize the documents `kept` (numbers within the part).

    Args:
        labels: all label names, in the order of their numbers.
        end: token that ends every document of kind text.
    """
    number = {label: i for i, label in enumerate(labels)}

    def fill(draft: Path) -> None:
        part, encoder = Texts(texts), tokenizer.load_for_encoding(tokenizer_folder)
        spaced = kind == "tag" and tokenizer.is_byte_level(tokenizer_folder)
        tokens, tags = [], []
        for first in range(0, len(kept), _AT_ONCE):
            batch = kept[first : first + _AT_ONCE].tolist()
            texts_now = [part.text(document) for document in batch]
            if kind == "tag":
                words = [_words(text, spaced) for text in texts_now]
                encodings = encoder.encode_batch(words, is_pretokenized=True, add_special_tokens=False)
                tags += [
                    _tags(e.word_ids, [number[t] for t in part.labels[d]])
                    for e, d in zip(encodings, batch, strict=True)
                ]
            else:
                encodings = encoder.encode_batch_fast(texts_now, add_special_tokens=False)
            tail = [end] if kind == "text" else []
            tokens += [np.array(encoding.ids + tail, dtype) for encoding in encodings]
        np.save(draft / "tokens.npy", np.concatenate([np.empty(0, dtype), *tokens]))
        np.save(draft / "starts.npy", np.cumsum([0] + [len(document) for document in tokens]))
        if kind == "tag":
            np.save(draft / "labels.npy", np.concatenate([np.empty(0, np.int16), *tags]))
        elif kind == "classify":
            np.save(draft / "labels.npy", np.array([number[part.labels[document]] for document in kept], np.int32))

    whole_folder(folder, folder.parent, fill)


def _words(text: str, spaced: bool) -> list[str]:
    words = text.split("\n")
    return [words[0], *(f" {word}" for word in words[1:])] if spaced else words


def _tags(word_ids: list[int], tags: list[int]) -> np.ndarray:
    """The tag of a word goes to its first token: int16 [tokens]."""
    before = [None, *word_ids[:-1]]
    return np.array([tags[w] if w != b else IGNORED for w, b in zip(word_ids, before, strict=True)], np.int16)
