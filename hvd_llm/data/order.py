"""The order of samples: keyed permutations and random numbers that need no state.

A permutation is a Feistel network over the smallest power of four that holds all samples; a number
that lands outside is sent through again until it is inside (cycle walking). So any position of any
epoch is computed on its own, in any process, without shuffling a list of all samples.
"""

import hashlib

import numpy as np

_ROUNDS = 8  # four make a good permutation of a large domain; a tiny one needs more


def key(*parts) -> int:
    """Return a 64-bit key that depends on every part (numbers and strings) and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mix(numbers: np.ndarray) -> np.ndarray:
    """Scramble uint64 numbers one to one so that every input bit reaches every output bit (SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def permute(positions: np.ndarray, size: int, secret: int) -> np.ndarray:
    """Send each of `positions` to its place in the permutation of ``range(size)`` that `secret` names.

    Args:
        positions: int64 or uint64, any shape, all in ``range(size)``.

    Returns:
        int64, same shape; over all positions each number below `size` comes once.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    keys = mix(np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(secret))
    result = positions.astype(np.uint64).reshape(-1)
    outside = np.arange(len(result))
    while len(outside):
        walking = result[outside]
        left, right = walking >> half, walking & low
        for round_key in keys:
            left, right = right, left ^ (mix(right ^ round_key) & low)
        result[outside] = walking = (left << half) | right
        outside = outside[walking >= size]
    return result.astype(np.int64).reshape(positions.shape)


def uniform(secret: int, rows: np.ndarray, columns: int) -> np.ndarray:
    """Draw numbers in [0, 1) that depend on (secret, row, column) alone.

    Args:
        rows: int64, shape [R].

    Returns:
        float64, shape [R, columns].
    """
    row_keys = mix(rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(secret))
    cells = row_keys[:, None] + np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mix(cells) >> np.uint64(11)) * 2.0**-53
