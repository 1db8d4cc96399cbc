"""The report says what is true of runs whose truth is known, refuses mixtures, and is the same every time."""

import filecmp
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import write_run, write_trace

from analysis.__main__ import main
from analysis.advice import sentences
from analysis.breakdown import breakdown_table, communication_table, loss_ms, parts_ms
from analysis.errors import AnalysisError
from analysis.figures import _largest_of
from analysis.measure import measure_runs, warmup_steps
from analysis.run_folder import find_runs
from analysis.scaling import efficiency_table, experiment

STEP_MS = {1: 189.0, 2: 209.0, 4: 229.0}  # of write_run with exposed_ms 0, 20, 40


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    """Two repeats each of 1, 2 and 4 ranks, the same batch per rank; exposed communication 20 ms at 2, 40 ms at 4."""
    folder = tmp_path_factory.mktemp("weak")
    for ranks in (1, 2, 4):
        for repeat in range(2):
            path = folder / f"gpt-{ranks}-{repeat}"
            write_run(path, ranks, exposed_ms=20 * (ranks // 2), seed=10 * ranks + repeat, steps=200)
    return folder


def analyse(*folders, **options):
    return experiment(*measure_runs(find_runs(list(folders)))[:1], **options)


def report(out, *runs, **options):
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return main(["report", *map(str, runs), "--out", str(out), *flags])


def test_efficiency_interval_covers_the_truth(weak):
    table = efficiency_table(analyse(weak).series).set_index("ranks")
    assert set(table["scaling"]) == {"weak"}
    for ranks in (2, 4):
        row = table.loc[ranks]
        assert row["efficiency_low"] < STEP_MS[1] / STEP_MS[ranks] < row["efficiency_high"]
        assert row["efficiency_high"] - row["efficiency_low"] < 0.04
    assert table.loc[1, "efficiency"] == 1
    assert np.isnan(table.loc[1, "efficiency_low"])


def test_breakdown_sums_to_the_step_and_finds_injected_communication(weak):
    found = analyse(weak)
    for cell, row in zip(found.cells, breakdown_table(found.cells).to_dict("records"), strict=True):
        step_ms = np.mean([one.step_s.mean() for one in cell.repeats]) * 1e3
        assert sum(parts_ms(cell).values()) == pytest.approx(step_ms, rel=1e-12)
        assert row["residual_ms"] == pytest.approx(1.0, rel=0.05)
        assert row["exposed_ms"] == pytest.approx({1: 0, 2: 20, 4: 40}[cell.ranks], rel=0.03)
        assert (row["checkpoint_times"], row["evaluate_ms_each"]) == (8, pytest.approx(400))
    series = found.series[0]
    lost = loss_ms(series, series.cells[-1])
    assert max(lost, key=lost.get) == "exposed"
    assert sum(lost.values()) == pytest.approx(40, rel=0.1)


def test_parts_are_those_of_the_slowest_rank(tmp_path):
    """A rank for which nobody waits: how much slower it is must not look like overhead of the loop."""
    run = write_run(tmp_path / "run", 2, steps=60, noise=0)
    path = run / "trace" / "launch-0" / "rank-00001.trace"
    path.unlink()
    write_trace(path, (1, 2), {"input": 2.0, "forward": 90.0, "backward": 120.0}, 20.0, np.ones(60), 1024)
    (cell,) = analyse(run).cells
    expected = {"input": 2, "forward": 90, "backward": 120, "exposed": 20, "optimizer": 6, "residual": 1}
    assert parts_ms(cell) == pytest.approx(expected)


def test_a_rank_that_is_always_slow_stands_out(tmp_path):
    """Of four alike, each is the slowest now and then."""
    hosts = ["a", "a", "b", "b"]
    write_run(tmp_path / "slow", 4, slow={2: 1.2}, hosts=hosts)
    assert main(["report", str(tmp_path / "slow"), "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "ranks.csv").set_index("rank")
    assert table["slowest_share"].tolist() == [0, 0, 1, 0]
    assert table.loc[2, "own_over_median"] == pytest.approx(1.2, abs=0.02)
    assert table.loc[2, "host"] == "b"
    assert (tmp_path / "out" / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_a_heat_map_keeps_what_stands_out():
    """Of a thousand ranks and steps, one moment of one rank."""
    values = np.zeros((1000, 1001))
    values[617, 903] = 1
    shown = _largest_of(_largest_of(values, 400, 1), 400, 0)
    assert shown.shape == (400, 400)
    assert shown.sum() == 1
    assert np.argwhere(shown)[0] / 400 == pytest.approx([0.617, 903 / 1001], abs=0.003)
    assert (_largest_of(values, 2000, 0) == values).all()


def test_wire_bytes_are_what_ranks_sent(weak):
    """Of n ranks, each sends 2(n-1)/n times the payload of a sum, n-1 times that of a gather."""
    table = communication_table(analyse(weak).cells).set_index("ranks")
    assert list(table.index) == [2, 4]
    assert table["payload_mb"].tolist() == [12, 12]
    assert table["through"].tolist() == ["mpi", "mpi"]
    assert table["wire_mb"].tolist() == [12, 30]
    assert table.loc[2, "hidden_ms"] == pytest.approx(30, rel=0.03)  # a quarter of backward
    assert table.loc[2, "exposed_ms"] == pytest.approx(20, rel=0.03)
    assert table.loc[2, "bus_mb_per_s"] == pytest.approx(12 / 0.050, rel=0.03)


def test_nothing_goes_over_a_wire_in_shared_memory(tmp_path):
    write_run(tmp_path / "one", 1)
    write_run(tmp_path / "two", 2, exposed_ms=200, facts={"shares_memory": True})
    assert report(tmp_path / "out", tmp_path / "one", tmp_path / "two") == 0
    (row,) = pd.read_csv(tmp_path / "out" / "communication.csv").to_dict("records")
    assert (row["through"], row["payload_mb"]) == ("shared memory", 12)
    assert np.isnan([row["wire_mb"], row["bus_mb_per_s"]]).all()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<td>shared memory</td>" in page
    assert "a compressor" not in page


def test_strong_and_weak_are_kept_apart(weak, tmp_path):
    strong = write_run(tmp_path / "strong-2", 2, batch_per_rank=4, forward_ms=30, backward_ms=60)
    found = analyse(weak, strong)
    assert [(one.kind, [cell.ranks for cell in one.cells]) for one in found.series] == [
        ("weak", [1, 2, 4]),
        ("strong", [1, 2]),
    ]
    row = efficiency_table(found.series).iloc[-1]
    assert row["scaling"] == "strong"
    assert row["efficiency_low"] < 189 / (2 * 119) < row["efficiency_high"]


def test_same_input_same_bytes(weak, tmp_path):
    again = shutil.copytree(weak, tmp_path / "elsewhere")
    forms = ["--figures", "svg", "--figures", "pdf"]
    assert report(tmp_path / "a", weak, *forms) == 0
    assert report(tmp_path / "b", *sorted(again.iterdir(), reverse=True), *forms) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"report.html", "efficiency.png", "efficiency.csv", "breakdown.csv", "losses.png"} <= set(names)
    assert {"laws.svg", "ranks.pdf"} <= set(names)
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False) == (names, [], [])


def test_the_page_gives_the_message_first(weak, tmp_path, capsys):
    report(tmp_path / "out", weak)
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"https?://|src=\"(?!data:)", page)  # opens anywhere: nothing to load
    message = re.search(r'<section class="message">(.*?)</section>', page, re.S)[1].replace("\u00a0", " ")
    efficiency = pd.read_csv(tmp_path / "out" / "efficiency.csv").iloc[-1]
    assert f"{efficiency['efficiency'] * 100:.1f} % of the ideal 4 times" in message
    assert f"interval {efficiency['efficiency_low'] * 100:.1f} % to" in message
    assert "most is lost to exposed communication" in message
    assert "A smaller reduce.bucket_mb" in message
    digest = pd.read_csv(tmp_path / "out" / "launches.csv")["traces_sha256"][0]
    for text in ("c0ffee", "torch 2.13.0", "A CPU", "first 10 %", "hvd-llm train gpt2-tiny", digest):
        assert text in page


def test_a_hostile_name_stays_text(tmp_path):
    evil = write_run(tmp_path / "<script>alert(1)<", facts={"cpu": "<img onerror=x> $\\frac{ \U0001f600"})
    assert report(tmp_path / "out", evil) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "<img onerror" not in page


def test_one_run_alone_states_no_scaling(tmp_path):
    write_run(tmp_path / "run", 2)
    assert report(tmp_path / "out", tmp_path / "run") == 0
    assert "nothing can be said about scaling" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "efficiency.csv").exists()


def test_a_rank_alone_is_measured_without_communication(tmp_path):
    write_run(tmp_path / "run", 1)
    assert report(tmp_path / "out", tmp_path / "run") == 0


def test_a_baseline_without_launcher_matches_launched_runs(tmp_path):
    write_run(tmp_path / "one", 1, facts={"controller": "none", "environment": {}})
    write_run(tmp_path / "two", 2)
    assert len(analyse(tmp_path / "one", tmp_path / "two").series) == 1


def test_ranks_of_one_host_are_told_of_its_memory(tmp_path):
    settings = {"reduce.share_memory": False}
    for name, ranks in (("one", 1), ("two", 2)):
        write_run(tmp_path / name, ranks, exposed_ms=200, settings=settings)
    found = analyse(tmp_path)
    assert "Set reduce.share_memory, which is false" in sentences(found, efficiency_table(found.series))[2]


def test_above_100_is_flagged(tmp_path):
    write_run(tmp_path / "one", 1)
    write_run(tmp_path / "two", 2, backward_ms=90, exposed_ms=1)
    found = analyse(tmp_path / "one", tmp_path / "two")
    table = efficiency_table(found.series)
    assert table["above_100"].tolist() == [False, True]
    assert "More than 100 % is not a gain of scaling: the baseline" in sentences(found, table)[0]


ADVICE = {
    "straggler": ({"slow": {1: 1.3}, "exposed_ms": 2}, "look at rank 1 on host node-a first"),
    "nothing": ({"exposed_ms": 0.5}, "more ranks; at 2 ranks nothing"),
    "network": ({"exposed_ms": 200}, "compressor (reduce.compressor is none; 12.0 MB are sent per step)"),
    "late sending": ({"exposed_ms": 30}, "smaller reduce.bucket_mb (now 4.0): with so few buckets (2 per step)"),
    "noise": ({"noise": 0.3}, "too wide to act on"),
    "cores": ({"backward_ms": 150, "exposed_ms": 2, "facts": {"cores": 1}}, "share 1 cores"),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_follows_the_numbers(name, tmp_path):
    options, expected = ADVICE[name]
    write_run(tmp_path / "one", 1, facts=options.get("facts"))
    write_run(tmp_path / "two", 2, **options)
    found = analyse(tmp_path / "one", tmp_path / "two")
    assert expected.lower() in sentences(found, efficiency_table(found.series))[2].lower()


MIXTURES = {
    "settings": ({"settings": {"train.precision": "bf16"}}, "train.precision is fp32 in one but bf16 in two"),
    "compressor": ({"settings": {"reduce.compressor": "powersgd"}}, "--allow reduce.compressor"),
    "hardware": ({"facts": {"cpu": "Another CPU"}}, "hardware.cpu is A CPU in one but Another CPU in two"),
    "threads": ({"facts": {"threads": 2}}, "hardware.threads is 1 in one but 2 in two"),
    "versions": ({"about": {"versions": {"torch": "2.0"}}}, "versions.torch is 2.13.0 in one but 2.0 in two"),
    "code": ({"about": {"git": {"commit": "b" * 40, "dirty": False}}}, "git.commit"),
    "data": ({"about": {"data": {"fingerprint": "beef"}}}, "data.fingerprint is f00d in one but beef in two"),
    "batch": ({"batch_per_rank": 6}, "train.global_batch is 8 on 1 ranks but 12 on 2 ranks"),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_are_refused_by_name(name, tmp_path, capsys):
    options, expected = MIXTURES[name]
    write_run(tmp_path / "one", 1)
    write_run(tmp_path / "two", 2, **options)
    assert report(tmp_path / "out", tmp_path / "one", tmp_path / "two") == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


def test_placement_may_fill_up_but_not_shrink(tmp_path):
    write_run(tmp_path / "1", 1)
    write_run(tmp_path / "2", 2)
    write_run(tmp_path / "4", 4, hosts=["a", "a", "b", "b"])
    assert len(analyse(*tmp_path.iterdir()).cells) == 3
    write_run(tmp_path / "8", 8, hosts=list("abcdefgh"))
    with pytest.raises(AnalysisError, match="ranks_per_host is 1 in 1 and 1 more but 2 in 2 and 1 more"):
        analyse(*tmp_path.iterdir())


def test_an_allowed_difference_is_printed(tmp_path):
    write_run(tmp_path / "one", 1)
    write_run(tmp_path / "two", 2, settings={"train.precision": "bf16"})
    assert report(tmp_path / "out", tmp_path / "one", tmp_path / "two", allow="train.precision") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.search(r"Accepted with --allow: <b>train.precision</b>\s+differs", page)
    with pytest.raises(AnalysisError, match=r"did you mean 'train\.precision'"):
        analyse(tmp_path / "one", tmp_path / "two", allow=["train.precison"])


def test_what_does_not_change_a_step_may_differ(tmp_path):
    free = {"run.seed": 9, "run.dir": "x", "checkpoint.every": 7, "evaluate.every": 3, "optimizer.lr": 0.1}
    write_run(tmp_path / "one", 1)
    write_run(tmp_path / "two", 2, settings=free, steps=60)
    assert report(tmp_path / "out", tmp_path / "one", tmp_path / "two") == 0
    assert "optimizer.lr" in (tmp_path / "out" / "report.html").read_text()


def _without_exchange(tmp_path, **settings) -> Path:
    run = write_run(tmp_path / "run", 2, steps=30, settings=settings)
    alone = write_run(tmp_path / "alone", 1, steps=30)
    for rank in (0, 1):
        data = (alone / "trace/launch-0/rank-00000.trace").read_bytes()
        header = json.loads(data[:4096]) | {"rank": rank, "size": 2}
        path = run / f"trace/launch-0/rank-{rank:05d}.trace"
        path.write_bytes(json.dumps(header).encode().ljust(4095) + b"\n" + data[4096:])
    return run


def test_no_exchange_among_several_ranks_is_an_error(tmp_path):
    with pytest.raises(AnalysisError, match="not one bucket_exchange"):
        measure_runs(find_runs([_without_exchange(tmp_path)]))


def test_a_launch_that_ended_before_its_ranks_met_is_left_out(tmp_path):
    run = _without_exchange(tmp_path, **{"sync.every": 64})
    later = write_run(tmp_path / "later", 2, steps=30)
    (later / "trace/launch-0").rename(run / "trace/launch-1")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"launches": about["launches"] * 2}))
    (measurement,), (reason,) = measure_runs(find_runs([run]))
    assert measurement.launch.number == 1
    assert "before they met" in reason


@pytest.mark.parametrize(("count", "expected"), [(10, 3), (30, 3), (31, 4), (150, 15), (1000, 20)])
def test_warm_up_rule(count, expected):
    assert warmup_steps(count, None) == expected
    assert warmup_steps(count, 1) == 1


def test_too_few_steps_are_refused(tmp_path):
    write_run(tmp_path / "run", steps=10)
    with pytest.raises(AnalysisError, match="10 complete steps, 7 after the warm-up of 3; 8 are needed"):
        measure_runs(find_runs([tmp_path / "run"]))
    with pytest.raises(AnalysisError, match="--warmup is -1"):
        measure_runs(find_runs([tmp_path / "run"]), -1)


def test_a_launch_killed_at_once_is_left_out_and_named(tmp_path):
    run = write_run(tmp_path / "run")
    description = json.loads((run / "run.json").read_text())
    description["launches"] *= 2
    (run / "run.json").write_text(json.dumps(description))
    data = (run / "trace/launch-0/rank-00000.trace").read_bytes()
    (run / "trace/launch-1").mkdir()
    (run / "trace/launch-1/rank-00000.trace").write_bytes(data[:4096])
    measured, left_out = measure_runs(find_runs([run]))
    assert [one.name for one in measured] == ["run/launch-0"]
    assert len(left_out) == 1
    assert "run/launch-1 is left out" in left_out[0]


def test_an_output_that_cannot_be_written_is_one_sentence(weak, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert report(tmp_path / "file", weak) == 2
    assert "cannot write the report" in capsys.readouterr().err
