"""The pipeline: sources → clean texts → no duplicates → splits → tokens → shards → index.json.

Every stage is a function of the settings and the sources alone, whatever the number of workers, and leaves
its finished parts in OUT/.work. A run that was killed and is started again reuses them; index.json comes
last, and .work goes with it.
"""

import json
import re
import shutil
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from hvd_llm.data import dedup, index, place, spool, tokenizer
from hvd_llm.data.columns import Fields
from hvd_llm.data.files import only_one, whole_file, whole_folder
from hvd_llm.data.plan import Plan, clear
from hvd_llm.data.shard_writer import write_shard
from hvd_llm.data.workers import Workers
from hvd_llm.errors import UserError

_SAMPLE_BYTES = 32 * 2**20  # of training text that a tokenizer is trained on

_MOST_LABELS = 2**15 - 1  # what a label file of kind tag can hold


def prepare(plan: Plan, out: Path, workers: int) -> index.Index:
    """Carry out `plan`, reusing what an interrupted run of the same plan left in ``out/.work``.

    What an earlier, finished preparation left in `out` is replaced.

    Raises:
        UserError: whatever is wrong with the sources; or another `prepare` is at work in `out`.
    """
    if any(piece.url.startswith("memory:") for _, part in plan.parts for piece in part):
        workers = 1  # other processes cannot see this one's memory
    work = out / ".work"
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out), Workers(workers) as pool:
        _continue_or_restart(plan, out, work)
        result = _Pipeline(plan, out, work, pool).run()
        with whole_file(out / "index.json", work) as file:
            file.write(index.to_json(result).encode())
    shutil.rmtree(work)
    return result


def _continue_or_restart(plan: Plan, out: Path, work: Path) -> None:
    """Keep .work if it belongs to this very plan, else start from nothing."""
    mark = json.dumps({"version": version("hvd_llm"), "settings": asdict(plan.settings), "sources": plan.sources})
    path = work / "plan.json"
    interrupted = path.exists() and not (out / "index.json").exists()
    if interrupted and path.read_text() == mark:
        return
    clear(out)
    work.mkdir()
    with whole_file(path, work) as file:
        file.write(mark.encode())


class _Pipeline:
    """The stages, in order; each reads what the one before left in the work folder."""

    def __init__(self, plan: Plan, out: Path, work: Path, pool: Workers):
        self.settings, self.parts, self.sources = plan.settings, plan.parts, plan.sources
        self.out, self.work, self.pool = out, work, pool

    def run(self) -> index.Index:
        self._read()
        texts = [spool.Texts(self.work / f"texts-{number:05d}") for number in range(len(self.parts))]
        removed = sum((part.removed for part in texts), Counter())
        digests = np.concatenate([part.digests for part in texts])
        split_of = np.repeat([split for split, _ in self.parts], [len(part) for part in texts])
        kept = self._deduplicate(texts, digests, split_of, removed)
        sizes = np.concatenate([np.diff(part.starts) for part in texts])
        split_of = self._split(digests, sizes, split_of, kept)
        labels = _label_names(texts, self.settings.kind)
        self._make_tokenizer(texts, digests, sizes, kept & (split_of == "train"))
        about = tokenizer.describe(self.work / "tokenizer", self.settings.tokenizer)
        dtype = "uint16" if about["vocabulary"] <= 2**16 else "uint32"
        self._tokenize(texts, kept, labels, about["special"]["end"], dtype)
        splits = self._write_shards(digests, split_of, kept)
        whole_folder(self.out / "tokenizer", self.work, lambda folder: _copy(self.work / "tokenizer", folder))
        return index.build(
            kind=self.settings.kind,
            version=version("hvd_llm"),
            dtype=dtype,
            labels=labels,
            tokenizer=about,
            splits=splits,
            settings=asdict(self.settings),
            sources=self.sources,
            removed=dict(removed),
        )

    def _read(self) -> None:
        s = self.settings
        fields = Fields(s.kind, s.text_column, s.label_column, s.header, s.undecodable)
        tasks = [
            (self.work / f"texts-{number:05d}", pieces, fields, s.whitespace, s.near_duplicates)
            for number, (_, pieces) in enumerate(self.parts)
        ]
        self.pool.run(spool.write_texts, tasks, "read")

    def _deduplicate(self, texts, digests, split_of, removed: Counter) -> np.ndarray:
        """Which documents are kept, bool [D]. Those that the user gave for evaluation are, always.

        They come first, so that a training document that equals one of them is a duplicate and goes.
        """
        evaluated_first = np.argsort(split_of == "train", kind="stable")
        train = split_of[evaluated_first] == "train"
        drop = dedup.exact_duplicates(digests[evaluated_first]) & train
        removed["exact duplicates"] = int(drop.sum())
        if self.settings.near_duplicates:
            left = evaluated_first[~drop]
            near = (
                dedup.near_duplicates(_gather_signatures(texts, self.work / "signatures.npy")[:, left]) & train[~drop]
            )
            removed["near duplicates"] = int(near.sum())
            drop[np.flatnonzero(~drop)[near]] = True
        kept = np.empty(len(drop), bool)
        kept[evaluated_first] = ~drop
        return kept

    def _split(self, digests, sizes, split_of, kept) -> np.ndarray:
        """The split of each document, with validation drawn from train unless the user gave it."""
        train = np.flatnonzero(kept & (split_of == "train"))
        if not len(train):
            raise UserError("the sources hold no document for training after cleaning and deduplication")
        for split in {split for split, _ in self.parts}:
            if not (kept & (split_of == split)).any():
                raise UserError(f"--{split}-source holds no document after cleaning")
        if not any(split == "validation" for split, _ in self.parts):
            chosen = place.draw_validation(digests[train], sizes[train], self.settings.validation)
            split_of = split_of.astype("U10")
            split_of[train[chosen]] = "validation"
        return split_of

    def _make_tokenizer(self, texts, digests, sizes, train) -> None:
        """Train on a sample of the training split, the first documents in hash order, or copy a given one."""

        def fill(folder: Path) -> None:
            s = self.settings
            if s.tokenizer not in tokenizer.TRAINED:
                return tokenizer.adopt(Path(s.tokenizer), s.kind, folder)
            documents = np.flatnonzero(train)
            documents = documents[place.hash_order(digests[documents])]
            documents = np.sort(documents[: np.searchsorted(np.cumsum(sizes[documents]), _SAMPLE_BYTES) + 1])
            part_of, number = _locate(texts, documents)
            sample = (texts[part].text(document) for part, document in zip(part_of, number, strict=True))
            return tokenizer.save(tokenizer.train(s.tokenizer, sample, s.vocabulary, s.lowercase), s.tokenizer, folder)

        whole_folder(self.work / "tokenizer", self.work, fill)

    def _tokenize(self, texts, kept, labels, end: int, dtype: str) -> None:
        kept_by_part = np.split(kept, np.cumsum([len(part) for part in texts])[:-1])
        tasks = [
            (
                self.work / f"tokens-{number:05d}",
                self.work / f"texts-{number:05d}",
                np.flatnonzero(mine),
                self.work / "tokenizer",
                self.settings.kind,
                labels,
                end,
                dtype,
            )
            for number, mine in enumerate(kept_by_part)
        ]
        self.pool.run(spool.write_tokens, tasks, "tokenize")

    def _write_shards(self, digests, split_of, kept) -> dict[str, list[dict]]:
        """Training documents are spread over shards; evaluation is one shard (given sources in their order)."""
        parts = [spool.Tokens(self.work / f"tokens-{number:05d}") for number in range(len(self.parts))]
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        split_of, digests = split_of[kept], digests[kept]
        given = {split for split, _ in self.parts}
        tasks = []
        for split in (name for name in index.SPLITS if (split_of == name).any()):
            mine = np.flatnonzero(split_of == split)
            if split == "train":
                shards = [mine[shard] for shard in place.balance(digests[mine], lengths[mine], self.settings.shards)]
            else:
                shards = [mine if split in given else mine[place.hash_order(digests[mine])]]
            for number, documents in enumerate(shards):
                part_of, inside = _locate(parts, documents)
                tasks.append((self.out, self.work, f"{split}-{number:05d}", part_of, inside))
        written = self.pool.run(write_shard, tasks, "write")
        splits: dict[str, list[dict]] = {}
        for shard in written:
            splits.setdefault(shard["name"].partition("-")[0], []).append(shard)
        return splits


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _locate(parts, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of each document and its number within the part, from its number over all parts."""
    first = np.cumsum([0] + [len(part) for part in parts])
    part_of = np.searchsorted(first, documents, side="right") - 1
    return part_of, documents - first[part_of]


def _gather_signatures(texts, path: Path) -> np.ndarray:
    """All signatures as one array on disk, uint32 [P, D]: they may be more than memory holds."""
    count = sum(len(part) for part in texts)
    if not count:
        return np.empty((dedup.PERMUTATIONS, 0), np.uint32)
    result = np.lib.format.open_memmap(path, "w+", np.uint32, (dedup.PERMUTATIONS, count))
    first = 0
    for part in texts:
        result[:, first : first + len(part)] = part.signatures()
        first += len(part)
    return result


def _label_names(texts, kind: str) -> list[str]:
    """All labels, sorted: as numbers if they all are, else as text."""
    if kind == "text":
        return []
    names = {name for part in texts for label in part.labels for name in ([label] if kind == "classify" else label)}
    if not 2 <= len(names) <= _MOST_LABELS:
        raise UserError(f"the sources have {len(names)} different labels; --kind {kind} needs 2 to {_MOST_LABELS}")
    return sorted(names, key=int) if all(re.fullmatch(r"-?\d{1,18}", name) for name in names) else sorted(names)
