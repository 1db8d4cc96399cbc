"""How speed-up grows with the number of ranks: laws of one or two numbers, and which of them to believe.

A law is judged by what it says of the most ranks if it is fitted to all others: one that bends wherever measurements do
fits best what it has seen, and says least of what it has not. In all of them n is the number of ranks over the
baseline's, S(n) the speed-up over the baseline.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

AHEAD = (2, 4)  # times the most ranks: how far ahead a law is asked


@dataclass(frozen=True)
class Law:
    """Attributes:
    formula: as it is shown.
    terms: n (R,) → what the coefficients are multiplied by, (R, coefficients).
    values: (n, S), (R,) each → what they should add up to, (R,).
    speedup: (n, coefficients) → S.
    """

    name: str
    formula: str
    terms: Callable[[np.ndarray], np.ndarray]
    values: Callable[[np.ndarray, np.ndarray], np.ndarray]
    speedup: Callable[[np.ndarray, np.ndarray], np.ndarray]

    @property
    def coefficients(self) -> int:
        return self.terms(np.array([2.0])).shape[1]

    def fit(self, n: np.ndarray, speedup: np.ndarray) -> np.ndarray:
        """Least squares of relative errors; no coefficient is below 0."""
        terms, values = self.terms(n), self.values(n, speedup)
        found, *_ = np.linalg.lstsq(terms, values, rcond=None)
        if (found < 0).any():  # of two, the one that is not
            kept = int(np.argmax(found))
            found = np.zeros_like(found)
            found[kept] = max(0.0, float(terms[:, kept] @ values / (terms[:, kept] @ terms[:, kept])))
        return found


def _column(values: np.ndarray) -> np.ndarray:
    return values[:, None]


# Amdahl 1967; Gustafson 1988; Gunther 1993 (the universal scalability law).
LAWS = (
    Law(
        "Amdahl",
        "1 / (a + (1 - a) / n)",
        lambda n: _column(n - 1),
        lambda n, speedup: n / speedup - 1,
        lambda n, by: 1 / (by[0] + (1 - by[0]) / n),
    ),
    Law(
        "Gustafson",
        "n - a (n - 1)",
        lambda n: _column((n - 1) / n),
        lambda n, speedup: 1 - speedup / n,
        lambda n, by: n - by[0] * (n - 1),
    ),
    Law(
        "universal scalability",
        "n / (1 + a (n - 1) + b n (n - 1))",
        lambda n: np.stack([n - 1, n * (n - 1)], axis=1),
        lambda n, speedup: n / speedup - 1,
        lambda n, by: n / (1 + by[0] * (n - 1) + by[1] * n * (n - 1)),
    ),
    Law(
        "power",
        "n to the a",
        lambda n: _column(np.log(n)),
        lambda n, speedup: np.log(speedup),
        lambda n, by: n ** by[0],
    ),
)

COLUMNS = [
    *("series", "variant", "law", "formula", "a", "b", "fitted_to", "most_ranks", "predicted", "measured", "error"),
    *("believed", *(f"efficiency_at_{times}x" for times in AHEAD)),
]


def serial_fraction(ranks: pd.Series, speedup: pd.Series) -> pd.Series:
    """The share of the baseline's time that does not shrink with ranks, as Karp and Flatt (1990) measure it.

    Args:
        ranks: over the baseline's; NaN comes of 1.
    """
    return (1 / speedup - 1 / ranks) / (1 - 1 / ranks).where(ranks > 1)


def law_table(efficiency: pd.DataFrame) -> pd.DataFrame:
    """A row per series of three numbers of ranks or more, and law of no more numbers than there are measurements.

    `predicted` is the speed-up of the most ranks by the law fitted to all fewer ones, and `error` what it is over the
    measured one, less 1; `a`, `b` and the efficiencies ahead are of the law fitted to all. The law whose error is least
    is `believed`.

    Args:
        efficiency: of `efficiency_table`.
    """
    rows = []
    for title, series in efficiency.groupby("series", sort=False):
        n = (series["ranks"] / series["baseline_ranks"]).to_numpy(dtype=float)[1:]
        speedup = series["speedup"].to_numpy()[1:]
        of_series = [_row(law, n, speedup) for law in LAWS if law.coefficients < len(n)]
        best = min(of_series, key=lambda row: abs(row["error"]), default=None)
        for row in of_series:
            about = {"series": title, "variant": series["variant"].iloc[0], "most_ranks": int(series["ranks"].max())}
            fitted_to = " ".join(map(str, series["ranks"].iloc[:-1]))
            rows.append(row | about | {"fitted_to": fitted_to, "believed": row is best})
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(law: Law, n: np.ndarray, speedup: np.ndarray) -> dict:
    predicted = float(law.speedup(n[-1:], law.fit(n[:-1], speedup[:-1]))[0])
    by = law.fit(n, speedup)
    return {
        "law": law.name,
        "formula": law.formula,
        "a": by[0],
        "b": by[1] if len(by) > 1 else np.nan,
        "predicted": predicted,
        "measured": speedup[-1],
        "error": predicted / speedup[-1] - 1,
        **{f"efficiency_at_{times}x": _efficiency(law, by, n[-1] * times) for times in AHEAD},
    }


def _efficiency(law: Law, by: np.ndarray, n: float) -> float:
    return float(law.speedup(np.array([n]), by)[0] / n)


def curves(table: pd.DataFrame, ranks: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    """Series → efficiency by the law to believe, at `ranks` over the baseline's."""
    by_name = {law.name: law for law in LAWS}
    for row in table[table["believed"]].itertuples():
        law = by_name[row.law]
        yield row.series, law.speedup(ranks, np.array([row.a, row.b])[: law.coefficients]) / ranks
