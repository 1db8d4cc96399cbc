"""Laws of scaling find the numbers that made the speed-ups, and the one that made them is believed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import write_run

from analysis.__main__ import main
from analysis.laws import LAWS, curves, law_table, serial_fraction

RANKS = np.array([1, 2, 4, 8, 16])
MADE_BY = {"Amdahl": [0.05], "Gustafson": [0.05], "universal scalability": [0.02, 0.004], "power": [0.85]}


def efficiencies(speedup, ranks=RANKS, baseline=1):
    return pd.DataFrame(
        {"series": "weak", "variant": "", "baseline_ranks": baseline, "ranks": ranks * baseline, "speedup": speedup}
    ).assign(efficiency=speedup / ranks)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("baseline", [1, 3])
def test_the_law_that_made_them_is_believed(law, baseline):
    made_by = np.array(MADE_BY[law.name])
    table = law_table(efficiencies(law.speedup(RANKS.astype(float), made_by), baseline=baseline))
    believed = table[table["believed"]].iloc[0]
    assert believed["law"] == law.name
    assert believed["error"] == pytest.approx(0, abs=1e-9)
    assert [believed["a"], believed["b"]][: law.coefficients] == pytest.approx(made_by)
    assert believed["efficiency_at_2x"] == pytest.approx(float(law.speedup(np.array([32.0]), made_by)[0]) / 32)
    ((_, values),) = curves(table, np.array([1.0, 64.0]))
    assert values == pytest.approx([1, believed["efficiency_at_4x"]])


@given(st.floats(0, 1), st.integers(2, 10_000))
def test_karp_and_flatt_find_what_amdahl_put_in(fraction, ranks):
    speedup = 1 / (fraction + (1 - fraction) / ranks)
    assert serial_fraction(pd.Series([ranks]), pd.Series([speedup]))[0] == pytest.approx(fraction, abs=1e-9)


@given(st.lists(st.floats(0.1, 40), min_size=2, max_size=6))
def test_any_speedups_have_laws_of_finite_numbers(speedups):
    """Also those that no law allows."""
    ranks = 2 ** np.arange(len(speedups) + 1)
    table = law_table(efficiencies(np.array([1.0, *speedups]), ranks))
    assert table["believed"].sum() == 1
    assert np.isfinite(table[["a", "predicted", "error", "efficiency_at_4x"]]).all(axis=None)
    assert (table["a"] >= 0).all()
    assert {"Amdahl", "Gustafson", "power"} <= set(table["law"])
    assert ("universal scalability" in set(table["law"])) == (len(speedups) > 2)


def test_two_numbers_of_ranks_say_nothing():
    assert law_table(efficiencies(np.array([1.0, 1.8]), RANKS[:2])).empty


def test_the_report_has_them(tmp_path):
    """A tenth of one rank's time stays, whatever their number: the batch is divided, a part of the step is not."""
    for ranks in (1, 2, 4):
        for repeat in range(2):
            scale = {"forward_ms": 60 / ranks, "backward_ms": 120 / ranks, "exposed_ms": 0}
            path = tmp_path / f"{ranks}-{repeat}"
            write_run(path, ranks, 8 // ranks, steps=200, seed=ranks + 10 * repeat, **scale)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "efficiency.csv")
    truth = 9 / 189  # input, optimizer and the loop: 9 ms of 189
    for row in table[table["ranks"] > 1].itertuples():
        assert row.serial_fraction == pytest.approx(truth, rel=0.5)
        assert row.serial_fraction_low < truth < row.serial_fraction_high
    laws = pd.read_csv(tmp_path / "out" / "laws.csv").set_index("law")
    assert laws.loc["Amdahl", "a"] == pytest.approx(truth, rel=0.3)
    assert abs(laws.loc["Amdahl", "error"]) < 0.05
    assert laws["believed"].sum() == 1
    assert "How it would go on" in (tmp_path / "out" / "report.html").read_text()
