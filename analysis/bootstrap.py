"""95 % intervals by a moving-block bootstrap over steps and over repeats.

Neighbouring steps resemble each other, so whole blocks of steps are drawn with replacement, not single
steps; repeats of a configuration differ more than their steps do, so repeats are drawn too.

Drawing K things with replacement shows only (K-1)/K of the variance between them, so few repeats, or
few blocks of a single repeat, would give intervals that are too narrow. Repeats are stretched around
their mean by sqrt(R/(R-1)); of a single repeat, draws are stretched as Student's t is wider than the normal.

Shapes: R repeats, S steps of a repeat (each its own), D draws.
"""

import numpy as np

DRAWS = 2000
_SEED = 20_111
_BATCH = 4_000_000  # steps drawn at a time: bounds memory


def block_length(values: np.ndarray) -> int:
    """Steps in a block: Andrews' (1991) rule for a first-order autoregression, at least the cube root of S.

    At most a quarter of the steps, so that at least four blocks are drawn.
    """
    count = len(values)
    deviation = values - values.mean()
    variance = float(deviation @ deviation)
    rho = float(deviation[1:] @ deviation[:-1]) / variance if variance > 0 else 0.0
    rho = min(abs(rho + (1 + 3 * rho) / count), 0.97)  # the estimate is too small by that much (Marriott and Pope)
    andrews = 1.1447 * (4 * rho**2 / (1 - rho**2) ** 2 * count) ** (1 / 3)
    return int(np.clip(np.ceil(max(andrews, count ** (1 / 3))), 1, max(1, count // 4)))


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def throughput_draws(repeats: list[tuple[np.ndarray, np.ndarray]], key: tuple[int, ...]) -> np.ndarray:
    """Draws of total tokens over total time; `repeats` holds (tokens, seconds) of each. (D,)

    `key` tells apart the draws of different cells; the same key and values give the same draws.
    """
    random = np.random.default_rng([_SEED, *key])
    rates = np.stack([_rates(tokens, seconds, random) for tokens, seconds in repeats])  # (R, D)
    levels = np.array([tokens.sum() / seconds.sum() for tokens, seconds in repeats])
    return _over_repeats(rates, levels, _few_blocks(repeats[0][1]), random)


def _rates(tokens: np.ndarray, seconds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draws of one repeat's rate, from sums over blocks. (D,)"""
    length = block_length(seconds)
    blocks = -(-len(seconds) // length)
    sums = [np.concatenate([[0.0], np.cumsum(values)]) for values in (tokens, seconds)]
    token_sums, second_sums = (total[length:] - total[:-length] for total in sums)
    result = np.empty(DRAWS)
    batch = max(1, _BATCH // blocks)
    for first in range(0, DRAWS, batch):
        starts = random.integers(len(token_sums), size=(min(batch, DRAWS - first), blocks))
        result[first : first + batch] = token_sums[starts].sum(axis=1) / second_sums[starts].sum(axis=1)
    return result


def _few_blocks(seconds: np.ndarray) -> float:
    """How much wider an interval must be that rests on the blocks of one repeat: Student's t over the normal."""
    blocks = max(3, len(seconds) / block_length(seconds))
    free, z = blocks - 1, 1.96
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)  # Cornish and Fisher
    return float(student / z * np.sqrt(blocks / free))


def _over_repeats(draws: np.ndarray, levels: np.ndarray, few_blocks: float, random: np.random.Generator) -> np.ndarray:
    """Mean over repeats drawn with replacement. draws (R, D), levels (R,) → (D,)"""
    repeats, count = draws.shape
    if repeats == 1:
        return levels[0] + (draws[0] - levels[0]) * few_blocks
    stretched = (levels - levels.mean()) * np.sqrt(repeats / (repeats - 1)) + levels.mean()
    chosen = random.integers(repeats, size=(repeats, count))
    within = np.take_along_axis(draws - levels[:, None], chosen, axis=0)
    return (stretched[chosen] + within).mean(axis=0)


def median_draws(repeats: list[np.ndarray], key: tuple[int, ...]) -> np.ndarray:
    """Draws of the mean over repeats of the median step time; `repeats` holds each one's seconds. (D,)"""
    random = np.random.default_rng([_SEED, *key])
    draws = np.stack([_medians(seconds, random) for seconds in repeats])
    levels = np.array([np.median(seconds) for seconds in repeats])
    return _over_repeats(draws, levels, _few_blocks(repeats[0]), random)


def _medians(seconds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    length = block_length(seconds)
    count = len(seconds)
    blocks = -(-count // length)
    offsets = np.arange(length)
    result = np.empty(DRAWS)
    batch = max(1, _BATCH // count)
    for first in range(0, DRAWS, batch):
        starts = random.integers(count - length + 1, size=(min(batch, DRAWS - first), blocks))
        steps = (starts[:, :, None] + offsets).reshape(len(starts), -1)[:, :count]
        result[first : first + batch] = np.median(seconds[steps], axis=1)
    return result
