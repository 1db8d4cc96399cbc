"""A run is followed while its traces grow."""

import json

import pytest
from synthetic_runs import write_run

from analysis.__main__ import main
from analysis.run_folder import find_runs
from analysis.trace_file import HEADER_BYTES
from analysis.watch import look


def lines(folder, steps=50):
    text, over = look(find_runs([folder])[0], steps)
    return text.splitlines(), over


def test_the_last_steps_are_those_of_the_report(tmp_path):
    run = write_run(tmp_path / "run", 4, steps=100, noise=0, slow={2: 1.2}, hosts=["a", "a", "b", "b"])
    said, over = lines(run)
    assert over
    assert said[0] == "run: step 100 of 100 (100.0 %), 4 ranks"
    assert said[1].startswith("last 50: 245.4 ms a step (95th percentile 245.4)")
    assert "forward 60.0, backward 120.0, exposed 56.4" in said[2]  # of the first of equally long ones
    assert said[3] == "slowest: rank 2 on b, +19.4 % over the median rank, in 100 % of steps"
    assert "ms exposed" in said[4]
    assert said[5].startswith("loss ")


def test_a_run_under_way(tmp_path):
    """One rank has no trace yet, then some steps, the last of them cut; the page follows."""
    run = write_run(tmp_path / "run", 2, steps=40, noise=0)
    path = run / "trace/launch-0/rank-00001.trace"
    whole = path.read_bytes()
    path.unlink()
    assert lines(run) == (["run: no step is over on all of 2 ranks yet"], False)
    path.write_bytes(whole[:HEADER_BYTES])
    assert lines(run) == (["run: no step is over on all of 2 ranks yet"], False)
    path.write_bytes(whole[: len(whole) * 3 // 5 + 7])
    said, over = lines(run)
    assert not over
    assert said[0] == "run: step 19 of 40 (47.5 %), 2 ranks"
    path.write_bytes(whole)
    assert lines(run)[1]


def test_only_the_end_of_a_trace_is_read(tmp_path, monkeypatch):
    """The step that is cut where reading begins does not count: its parts would be missing."""
    monkeypatch.setattr("analysis.watch._RECORDS_PER_STEP", 5)
    run = write_run(tmp_path / "run", 2, steps=60, noise=0)
    whole, _ = lines(run, steps=60)
    assert whole[1].startswith("last ")
    assert 1 < int(whole[1].split()[1].rstrip(":")) < 60
    assert ": 209.0 ms a step (95th percentile 209.0)" in whole[1]
    assert "residual 1.0" in whole[2]


def test_the_command(tmp_path, capsys):
    run = write_run(tmp_path / "run", 1, steps=20)
    assert main(["watch", str(run)]) == 0  # it is over: no second look
    assert "step 20 of 20" in capsys.readouterr().out
    about = json.loads((run / "run.json").read_text())
    about["config"]["train"]["steps"] = 40
    (run / "run.json").write_text(json.dumps(about))
    assert main(["watch", str(run), "--once"]) == 0
    assert "step 20 of 40 (50.0 %)" in capsys.readouterr().out
    about["launches"][0]["changed"] = {"train.steps": 80}  # by a resume
    (run / "run.json").write_text(json.dumps(about))
    assert main(["watch", str(run), "--once"]) == 0
    assert "step 20 of 80 (25.0 %)" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [(["--steps", "0"], "--steps must be"), (["--every", "nan"], "--every")])
def test_what_cannot_be_is_one_sentence(tmp_path, capsys, words, said):
    run = write_run(tmp_path / "run", 1)
    assert main(["watch", str(run), *words]) == 2
    assert said in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "nowhere")]) == 2
