"""Where documents go: which are dropped, which are for validation, and into which shard."""

import heapq

import numpy as np

from hvd_llm.errors import UserError


def hash_order(digests: np.ndarray) -> np.ndarray:
    """Documents in the order of their hashes, ties in the order of the sources: int64 [D], from uint64 [D, 2]."""
    return np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))


def draw_validation(digests: np.ndarray, sizes: np.ndarray, share: float) -> np.ndarray:
    """Take the first documents in hash order until they hold `share` of all bytes: bool [D].

    At least one is taken and at least one is left.

    Raises:
        UserError: there are not two documents.
    """
    if len(sizes) < 2:
        raise UserError(
            f"the sources hold {len(sizes)} documents after cleaning and deduplication; training and validation need "
            "two or more (or give --validation-source)"
        )
    order = hash_order(digests)
    enough = np.searchsorted(np.cumsum(sizes[order]), share * sizes.sum()) + 1
    chosen = np.zeros(len(sizes), bool)
    chosen[order[: min(int(enough), len(sizes) - 1)]] = True
    return chosen


def balance(digests: np.ndarray, tokens: np.ndarray, shards: int) -> list[np.ndarray]:
    """Divide documents into shards of nearly equal numbers of tokens; inside a shard hash order rules.

    The longest document goes first, each to the shard that is emptiest so far (ties by hash), so shards
    differ by no more than a short document unless single documents are longer than a shard.

    Returns:
        for each shard its documents, int64.
    """
    order = hash_order(digests)
    order = order[np.argsort(-tokens[order], kind="stable")]
    shard_of = np.empty(len(tokens), np.int64)
    fill = [(0, shard) for shard in range(min(shards, len(tokens)))]
    for document, length in zip(order.tolist(), tokens[order].tolist(), strict=True):
        held, shard = fill[0]
        shard_of[document] = shard
        heapq.heapreplace(fill, (held + length, shard))
    in_order = hash_order(digests)
    return [in_order[shard_of[in_order] == shard] for shard in range(len(fill))]
