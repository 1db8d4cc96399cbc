"""What `make bench-reports` makes up is what the report then says."""

import pandas as pd
import pytest

from analysis.__main__ import main
from benchmarks import reports


def test_a_report_says_what_was_made_up(tmp_path):
    assert reports.write_run(tmp_path / "run", 3, 40) == 3 * 40 * len(reports.SPANS)
    reports.write_timeline(tmp_path / "run/trace/launch-0/horovod_timeline.json", 0.05)
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    (cell,) = pd.read_csv(tmp_path / "out/throughput.csv").to_dict("records")
    assert cell["ranks"] == 3
    assert cell["step_ms_mean"] == pytest.approx(207, rel=0.05)
    table = pd.read_csv(tmp_path / "out/horovod.csv").set_index("activity")
    sums = table.loc["MPI_ALLREDUCE"]
    assert sums["tensors"] == 4 * sums["batches"] > 0
    assert sums["seconds"] == pytest.approx(0.008 * sums["batches"])
    assert sums["mb"] == pytest.approx(4 * sums["tensors"])
    assert table.loc["negotiation", "seconds"] == pytest.approx(0.009011 * sums["batches"] / 3, rel=0.01)
