"""Clocks that contradict each other are found."""

import pandas as pd
import pytest
from synthetic_runs import write_run

from analysis.__main__ import main
from analysis.clocks import clock_table
from analysis.measure import measure_runs
from analysis.run_folder import find_runs


def clocks(folder):
    return clock_table(measure_runs(find_runs([folder]))[0]).set_index("rank")


@pytest.mark.parametrize("error_ms", [50, -50])
def test_a_clock_that_is_off_is_named(tmp_path, error_ms):
    """Exchanges last 20 ms and more, which is what they leave open."""
    write_run(tmp_path / "run", 3, exposed_ms=20, noise=0, hosts=["a", "b", "b"], clock_error_ms={2: error_ms})
    found = clocks(tmp_path / "run")
    assert found["off_by_ms"].tolist() == [0, pytest.approx(30, abs=0.1)]
    assert found["offset_ms"].tolist() == pytest.approx([-1000, -2000 + error_ms])
    assert found["uncertainty_ms"].tolist() == pytest.approx([0.0005] * 2)
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "The clock of rank 2 on b (run) is off by 30.0 ms or more" in page
    assert pd.read_csv(tmp_path / "out/clocks.csv")["off_by_ms"].max() == pytest.approx(30, abs=0.1)


def test_clocks_that_agree_are_not_blamed(tmp_path):
    """Also if a rank is slow: the others begin earlier, but see the end as late as it does."""
    write_run(tmp_path / "run", 4, slow={3: 1.1}, noise=0.05)
    assert not clocks(tmp_path / "run")["off_by_ms"].any()
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert "is off by" not in (tmp_path / "out/report.html").read_text()


def test_one_rank_has_nobody_to_agree_with(tmp_path):
    write_run(tmp_path / "run", 1)
    assert clock_table(measure_runs(find_runs([tmp_path / "run"]))[0]).empty


def test_exchanges_that_reach_into_the_next_step_say_nothing(tmp_path):
    """Ranks may see their ends in unlike steps."""
    write_run(tmp_path / "run", 2, clock_error_ms={1: 50}, settings={"reduce.overlap": "forward"})
    assert clock_table(measure_runs(find_runs([tmp_path / "run"]))[0]).empty
