"""What `auto` expected stands beside what came."""

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import write_run, write_trace

from analysis.__main__ import main


def test_errors_are_those_that_were_made(tmp_path):
    """A step of 203 ms but for the optimizer; buckets of 2 + 30 ms and 20 ms."""
    run = write_run(tmp_path / "run", ranks=2, steps=60, noise=0)
    for path in sorted((run / "trace").rglob("*.trace")):
        path.unlink()
        own = {"input": 2.0, "forward": 60.0, "backward": 120.0}
        expected = {"expected_exchange": [16.0, 40.0], "expected_step": [203.0]}
        write_trace(path, (int(path.stem[-5:]), 2), own, 20.0, np.ones(60), 1024, expected)
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    table = pd.read_csv(tmp_path / "report" / "expectation.csv").set_index("what")
    assert table["error"].to_dict() == {
        "exchange of bucket 0": pytest.approx(1.0),
        "exchange of bucket 1": pytest.approx(-0.5),
        "step without optimizer": pytest.approx(0.0, abs=1e-9),
    }
    assert "What auto expected" in (tmp_path / "report" / "report.html").read_text()


def test_without_expectations_there_is_no_such_section(tmp_path):
    run = write_run(tmp_path / "run", ranks=2, steps=60)
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    assert not (tmp_path / "report" / "expectation.csv").exists()
