"""Duplicates: exact ones by hash, near ones by MinHash and locality-sensitive hashing (Broder, 1997).

A document is a set of shingles (five words in a row, without case and punctuation). The share of equal
minima in two signatures estimates the Jaccard similarity of the two sets; documents that agree on all
rows of some band are candidates, and candidates that agree on enough of the signature are duplicates.
"""

import hashlib

import numpy as np

from hvd_llm.data.order import key, mix

ROWS, BANDS = 4, 32
PERMUTATIONS = ROWS * BANDS
THRESHOLD = 0.8  # similarity from which on two documents are one, but for the tolerance
_SHINGLE = 5  # words
_TOLERANCE = 0.04  # about one standard error of the estimate: what is on the threshold counts as over it


def digest(text: bytes) -> bytes:
    """128 bits that stand for the content of a document."""
    return hashlib.blake2b(text, digest_size=16).digest()


def signatures(text: bytes, starts: np.ndarray) -> np.ndarray:
    """MinHash signatures of the documents that lie one after another in `text`.

    Args:
        text: UTF-8.
        starts: int64 [D + 1], where each document starts.

    Returns:
        uint32 [PERMUTATIONS, D]; documents without words have all ones.
    """
    shingles_N, owner_N = _shingles(text, starts)
    result = np.full((PERMUTATIONS, len(starts) - 1), 2**32 - 1, np.uint32)
    if not len(shingles_N):
        return result
    first = np.flatnonzero(np.diff(owner_N, prepend=-1))
    keys = mix(np.arange(1, PERMUTATIONS + 1, dtype=np.uint64) * np.uint64(key("minhash")))
    for row, factor in enumerate(keys | np.uint64(1)):
        hashes_N = ((shingles_N * factor) >> np.uint64(32)).astype(np.uint32)
        result[row, owner_N[first]] = np.minimum.reduceat(hashes_N, first)
    return result


def _word_bytes() -> np.ndarray:
    """A random number for each byte of a word, case ignored; 0 for bytes that separate words."""
    table = mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    for byte in range(128):
        if chr(byte).isupper():
            table[byte] = table[ord(chr(byte).lower())]
        elif not chr(byte).isalnum():
            table[byte] = 0
    return table


_WORD_BYTES = _word_bytes()


def _shingles(text: bytes, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all shingles, uint64 [N], and the document of each, int64 [N] in ascending order."""
    values = _WORD_BYTES[np.frombuffer(text, np.uint8)]
    inside = values != 0
    edge = np.zeros(len(values) + 1, bool)
    edge[starts] = True  # a word never reaches over the end of a document
    begins = np.flatnonzero(inside & (edge[:-1] | ~np.concatenate([[False], inside[:-1]])))
    if not len(begins):
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    # A word is a polynomial in its bytes, by Horner's rule over all words at once, a byte of each at a time.
    owner = np.searchsorted(starts, begins, side="right") - 1
    gaps = np.flatnonzero(~inside)
    following = np.append(gaps, len(values))[np.searchsorted(gaps, begins)]
    ends = np.minimum(following, starts[owner + 1])
    words = np.zeros(len(begins), np.uint64)
    active, place = np.arange(len(begins)), begins.copy()
    for _ in range(64):  # what is longer is data, not language, and its first 64 bytes tell it apart
        active = active[place[active] < ends[active]]
        if not len(active):
            break
        words[active] = words[active] * np.uint64(0x9E3779B97F4A7C15) + values[place[active]]
        place[active] += 1
    words = mix(words)

    hashes = words.copy()
    complete = np.ones(len(words), bool)
    for distance in range(1, _SHINGLE):
        ahead = np.zeros(len(words), np.uint64)
        same = owner[distance:] == owner[:-distance]
        ahead[: len(same)] = np.where(same, words[distance:], np.uint64(0))
        hashes = hashes * np.uint64(0xD1342543DE82EF95) + ahead
        complete[: len(same)] &= same
        complete[len(same) :] = False
    # A document shorter than a shingle still has one, of what there is.
    complete |= np.diff(owner, prepend=-1) != 0
    return mix(hashes[complete]), owner[complete]


def exact_duplicates(digests: np.ndarray) -> np.ndarray:
    """Which documents equal an earlier one: bool [D].

    Args:
        digests: uint64 [D, 2].
    """
    order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
    same = (digests[order][1:] == digests[order][:-1]).all(1)
    duplicate = np.zeros(len(digests), bool)
    duplicate[order[1:][same]] = True
    return duplicate


def near_duplicates(signatures_PD: np.ndarray) -> np.ndarray:
    """Which documents resemble an earlier one that is kept: bool [D].

    Args:
        signatures_PD: uint32 [PERMUTATIONS, D].
    """
    count = signatures_PD.shape[1]
    wordless = (signatures_PD == 2**32 - 1).all(0)
    pairs = np.unique(np.concatenate([_candidates(signatures_PD, band) for band in range(BANDS)]), axis=0)
    pairs = pairs[~wordless[pairs[:, 1]]]
    similar = [
        (signatures_PD[:, chunk[:, 0]] == signatures_PD[:, chunk[:, 1]]).mean(0) >= THRESHOLD - _TOLERANCE
        for chunk in np.array_split(pairs, max(1, len(pairs) // 100_000))
    ]
    duplicate = np.zeros(count, bool)
    for earlier, later in pairs[np.concatenate(similar)][:, [0, 1]].tolist():
        if not duplicate[earlier]:
            duplicate[later] = True
    return duplicate


def _candidates(signatures_PD: np.ndarray, band: int) -> np.ndarray:
    """Pairs (first of its bucket, other) of documents with the same rows in this band: int64 [N, 2]."""
    rows = signatures_PD[band * ROWS : (band + 1) * ROWS].astype(np.uint64)
    buckets = np.zeros(signatures_PD.shape[1], np.uint64)
    for row in rows:
        buckets = mix(buckets * np.uint64(0xD1342543DE82EF95) + row)
    _, first, inverse = np.unique(buckets, return_index=True, return_inverse=True)
    others = np.flatnonzero(first[inverse] != np.arange(len(buckets)))
    return np.stack([first[inverse[others]], others], axis=1)
