"""How long a step takes on other numbers of devices, from measurements on fewer: three numbers, none below 0.

    step = accumulation * (micro_batch * compute_s + grows_s * log2(devices)) + once_s

`compute_s` is a sequence's on one device. `once_s` comes once a step: the update, and what is exchanged for it. What a
micro-batch takes longer on more devices grows with the logarithm of their number, as the longest of so many times does
whose noise falls off exponentially, and the rounds of a tree; shards of weights are gathered for every micro-batch.
"""

import itertools

import numpy as np

from analysis.published import Published


def predict(known: Published, wanted: Published) -> np.ndarray:
    """Seconds of the steps of `wanted`, from those of `known`. (rows of wanted,)

    Relative errors of `known` are least in the mean square.
    """
    shares = _terms(known) / known.step_s[:, None]
    return _terms(wanted) @ _least_squares(shares, np.ones(len(shares)))


def trivial(known: Published, wanted: Published) -> np.ndarray:
    """What any prediction must beat: accumulation * time of a micro-batch + a constant, through two measurements.

    If their passes are equally long they do not tell these apart: the second one, of more devices, is the answer then.
    """
    passes, seconds = (known.accumulation * known.micro_batch)[:2], known.step_s[:2]
    if passes[0] == passes[1]:
        slope, constant = seconds[1] / passes[1], 0.0
    else:
        slope = (seconds[1] - seconds[0]) / (passes[1] - passes[0])
        constant = seconds[0] - slope * passes[0]
    return wanted.accumulation * wanted.micro_batch * slope + constant


def _terms(table: Published) -> np.ndarray:
    passes = table.accumulation
    return np.stack([passes * table.micro_batch, passes * np.log2(table.devices), np.ones(len(passes))], axis=1)


def _least_squares(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The coefficients, none below 0: the best of those that leave some of the terms out. terms (rows, T) → (T,)"""
    best, least = np.zeros(terms.shape[1]), np.inf
    for count in range(1, min(terms.shape) + 1):
        for used in itertools.combinations(range(terms.shape[1]), count):
            found, *_ = np.linalg.lstsq(terms[:, used], values, rcond=None)
            error = float(np.square(terms[:, used] @ found - values).sum())
            if (found >= 0).all() and error < least - 1e-12:  # of equal ones, that of fewest terms
                best, least = np.zeros(terms.shape[1]), error
                best[list(used)] = found
    return best
