"""Benchmarks' folders in the report: written by the benchmarks' own code, read by the analysis."""

import json
import math

import pandas as pd
import pytest
from synthetic_runs import write_run

from analysis.__main__ import main
from benchmarks import record

RATIOS = {
    "side_by_side": pd.DataFrame(
        {"controller": "mpi", "contender": ["ours", "ddp <b>"], "rounds": 3, "ms": [9.0, 10.0], "ratio": [1.0, 0.9]}
        | {"lower_quartile": [1.0, 0.8], "upper_quartile": [1.0, 0.95]}
    ),
    "network": record.ratios_to_peer(
        pd.DataFrame(
            {"controller": "gloo", "rate": "50mbit", "contender": ["ours", "ddp"] * 2, "round": [1, 1, 2, 2]}
            | {"seconds": [0.3, 2.0, 0.4, 2.0], "sent_bytes": [1e6, 1e7] * 2, "priced_bytes": [9e5, math.nan] * 2}
        ),
        {"gloo": ["ours", "ddp"]},
    ),
    "loss": pd.DataFrame({"contender": ["ours", "ours:int8"], "validation_loss": [4.0, 4.1], "loss_then": [4.0, 4.2]}),
    "kernels": pd.DataFrame(
        {"mib": 64.0, "kernel": ["int8"], "share_of_copy": [0.5], "lower_quartile": [0.4], "upper_quartile": [0.6]}
    ),
    "reports": pd.DataFrame({"report": ["1000 ranks"], "seconds": [60.0], "gib": [1.0]}),
}


@pytest.fixture(params=RATIOS)
def bench(request, tmp_path):
    folder = tmp_path / "runs" / "bench-1"
    record.write(folder, pd.DataFrame({"seconds": [1.0]}), RATIOS[request.param], {"kind": request.param, "ranks": 2})
    return folder


def test_a_benchmark_is_a_section(bench, tmp_path):
    write_run(tmp_path / "runs" / "one")
    again = bench / ".." / bench.name
    for paths in ([bench, tmp_path / "runs" / "one"], [tmp_path / "runs", bench, again]):
        assert main(["report", *map(str, paths), "--out", str(tmp_path / "out")]) == 0
        page = (tmp_path / "out" / "report.html").read_text()
        assert page.count('<section id="benchmark-1">') == 1
        assert "benchmark-2" not in page
        assert "<b>" not in page.partition('<section id="benchmark-1">')[2].partition("</section>")[0]
    table = pd.read_csv(tmp_path / "out" / "benchmark-1.csv")
    pd.testing.assert_frame_equal(table, pd.read_csv(bench / "ratios.csv"))
    assert (tmp_path / "out" / "benchmark-1.png").read_bytes().startswith(b"\x89PNG")


def _kind(bench, value):
    about = json.loads((bench / "bench.json").read_text())
    (bench / "bench.json").write_text(json.dumps(about | value))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda bench: _kind(bench, {"kind": "other"}), "'kind' is 'other'; this knows side_by_side"),
        (lambda bench: _kind(bench, {"schema": "hvd_llm.bench/1"}), "this reads 'hvd_llm.bench/2'"),
        (lambda bench: (bench / "ratios.csv").unlink(), "No such file"),
        (lambda bench: (bench / "ratios.csv").write_text("a,b\n1,2\n"), "has no column"),
        (lambda bench: (bench / "ratios.csv").write_text(""), "is not a table"),
    ],
)
def test_a_bad_folder_is_one_sentence(bench, spoil, sentence, tmp_path, capsys):
    write_run(tmp_path / "runs" / "one")
    spoil(bench)
    assert main(["report", str(tmp_path / "runs"), str(bench), "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["inf", "much", "1e308", "True", "NA"])
def test_what_is_no_number_is_not_drawn(value, tmp_path, capsys):
    folder = tmp_path / "runs" / "bench-1"
    record.write(folder, pd.DataFrame(), RATIOS["kernels"], {"kind": "kernels", "ranks": 1})
    (folder / "ratios.csv").write_text((folder / "ratios.csv").read_text().replace("0.5", value))
    write_run(tmp_path / "runs" / "one")
    assert main(["report", str(tmp_path / "runs"), str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "share_of_copy, lower_quartile, upper_quartile must be numbers" in capsys.readouterr().err


def test_a_row_may_have_any_name(tmp_path):
    folder = tmp_path / "bench-1"
    names = ["None", "", "ours:twobit,sync.after=500,sync.every=64,sync.late=add,sync.outer_lr=1,sync.outer_momentum=0"]
    table = pd.DataFrame({"contender": names, "validation_loss": [4.0, None, 4.1]})
    record.write(folder, pd.DataFrame(), table, {"kind": "loss", "ranks": 1})
    write_run(tmp_path / "one")
    assert main(["report", str(tmp_path / "one"), str(folder), "--out", str(tmp_path / "out")]) == 0


def test_a_report_needs_a_run(bench, tmp_path, capsys):
    assert main(["report", str(bench), "--out", str(tmp_path / "out")]) == 2
    assert "give the folder of a training run with it" in capsys.readouterr().err
