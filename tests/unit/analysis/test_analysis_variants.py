"""Runs that differ in a setting are shown side by side, not pooled; truth is known from how they are written."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import write_run

from analysis.__main__ import main
from analysis.advice import sentences
from analysis.errors import AnalysisError
from analysis.measure import measure_runs
from analysis.report import loss_table
from analysis.run_folder import find_runs
from analysis.scaling import efficiency_table, experiment
from analysis.variants import variant_table

STEP_MS = {"none": 389.0, "int8": 209.0}  # of two ranks, of which 200 and 20 ms wait for gradients


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """One rank; two ranks through each compressor, twice."""
    folder = tmp_path_factory.mktemp("sweep")
    write_run(folder / "one", 1, steps=200)
    for name, exposed_ms in (("none", 200), ("int8", 20)):
        for repeat in range(2):
            settings = {"reduce.compressor": name}
            write_run(folder / f"{name}-{repeat}", 2, steps=200, exposed_ms=exposed_ms, seed=repeat, settings=settings)
    return folder


def analyse(folder, **options):
    return experiment(*measure_runs(find_runs([folder]))[:1], **options)


def test_variants_are_cells_of_their_own(sweep):
    found = analyse(sweep, by=["reduce.compressor"])
    assert [(cell.ranks, cell.label, len(cell.repeats)) for cell in found.cells] == [
        (1, "compressor none", 1),
        (2, "compressor int8", 2),
        (2, "compressor none", 2),
    ]
    assert found.accepted == {}


def test_one_plain_rank_is_everyones_baseline(sweep):
    table = efficiency_table(analyse(sweep, by=["reduce.compressor"]).series)
    last = table[table["ranks"] == 2].set_index("variant")
    assert table["series"].nunique() == len(last) == 2
    for name, step_ms in STEP_MS.items():
        row = last.loc[f"compressor {name}"]
        assert row["efficiency_low"] < 189 / step_ms < row["efficiency_high"]


def test_they_are_compared_at_equal_ranks(sweep):
    found = analyse(sweep, by=["reduce.compressor"])
    table = variant_table(found.cells, pd.DataFrame()).set_index("variant")
    int8, none = table.loc["compressor int8"], table.loc["compressor none"]
    assert set(table["over"]) == {"compressor none"}
    assert none["ratio"] == 1
    assert np.isnan(none["ratio_low"])
    assert int8["ratio_low"] < STEP_MS["int8"] / STEP_MS["none"] < int8["ratio_high"]
    assert int8["ratio_high"] - int8["ratio_low"] < 0.05
    assert int8["ms_low"] < 209 < int8["ms_high"]
    said = sentences(found, efficiency_table(found.series))[0]
    assert "Of 2 variants at 2 ranks, compressor int8 is the fastest: 1.8" in said
    assert "With compressor int8, 2 ranks process 1.8" in said
    assert "one run each" not in said


def test_equal_variants_are_told_to_be_so(tmp_path):
    for name in ("none", "int8"):
        write_run(tmp_path / name, 2, seed=len(name), noise=0.1, settings={"reduce.compressor": name})
    found = analyse(tmp_path, by=["reduce.compressor"])
    assert not found.series
    assert "by no more than noise before" in sentences(found, efficiency_table(found.series))[0]


def test_the_report_shows_them(sweep, tmp_path, capsys):
    words = ["report", str(sweep), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "show them side by side with --by reduce.compressor" in capsys.readouterr().err
    assert main([*words, "--by", "reduce.compressor"]) == 0
    table = pd.read_csv(tmp_path / "out" / "variants.csv")
    assert table["validation_loss"].notna().all()
    for name in ("throughput", "breakdown", "communication", "efficiency", "steps"):
        assert {"compressor none", "compressor int8"} == set(pd.read_csv(tmp_path / "out" / f"{name}.csv")["variant"])
    assert "Side by side" in (tmp_path / "out" / "report.html").read_text()


def test_a_baseline_that_computes_otherwise_is_nobodys(tmp_path):
    write_run(tmp_path / "one", 1)
    write_run(tmp_path / "two", 2, settings={"train.precision": "bf16"})
    with pytest.raises(AnalysisError, match=r"precision fp32 was measured on 1 ranks .* alone"):
        analyse(tmp_path, by=["train.precision"])
    with pytest.raises(AnalysisError, match=r"--by train\.precison.*did you mean"):
        analyse(tmp_path, by=["train.precison"])


def test_the_fastest_is_named_even_if_it_was_measured_once(tmp_path):
    """Of two variants, only the slower one has a series of its own."""
    write_run(tmp_path / "2", 2, settings={"reduce.compressor": "none"})
    for name, exposed_ms in (("none", 80), ("int8", 40)):
        write_run(tmp_path / name, 4, exposed_ms=exposed_ms, settings={"reduce.compressor": name})
    found = analyse(tmp_path, by=["reduce.compressor"])
    said = sentences(found, efficiency_table(found.series))[0]
    assert "Of 2 variants at 4 ranks, compressor int8 is the fastest: 1.1" in said
    assert "one run each" in said
    assert "compressor int8 was measured on 4 ranks alone" in said


def test_one_rank_has_no_controller(tmp_path):
    write_run(tmp_path / "one", 1)
    for name in ("gloo", "mpi"):
        write_run(tmp_path / name, 2, facts={"controller": name})
    found = analyse(tmp_path, by=["controller"])
    assert [[cell.label for cell in one.cells] for one in found.series] == [
        ["", "controller gloo"],
        ["", "controller mpi"],
    ]


def test_the_header_has_the_settings_of_all(sweep, tmp_path):
    assert main(["report", str(sweep), "--by", "reduce.compressor", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert re.search(r"compressor none, [^;]*; or compressor int8, ", page)


def test_a_run_that_went_on_as_another_variant_has_neithers_loss(tmp_path):
    """Its last loss is of both."""
    run = write_run(tmp_path / "run", 2)
    write_run(tmp_path / "other", 2, settings={"reduce.overlap": "none"})
    about = json.loads((run / "run.json").read_text())
    about["launches"] += [about["launches"][0] | {"changed": {"reduce.overlap": "none"}}]
    (run / "run.json").write_text(json.dumps(about))
    shutil.copytree(run / "trace/launch-0", run / "trace/launch-1")
    found = analyse(tmp_path, by=["reduce.overlap"])
    losses = loss_table(find_runs([tmp_path]))[0]
    table = variant_table(found.cells, losses).set_index("variant")
    assert table["repeats"].to_dict() == {"overlap backward": 1, "overlap none": 2}
    assert np.isnan(table.loc["overlap backward", "validation_loss"])
    assert table.loc["overlap none", "validation_loss"] > 0


def test_many_long_names_leave_room_for_the_figure(tmp_path):
    """matplotlib would warn of axes that have none."""
    for number in range(10):
        settings = {"reduce.compressor": f"topk(keep={number}, chunk=4096, feedback=1.0)"}
        write_run(tmp_path / str(number), 2, steps=30, settings=settings)
    assert main(["report", str(tmp_path), "--by", "reduce.compressor", "--out", str(tmp_path / "out")]) == 0


def test_a_refusal_names_all_that_would_show_them(tmp_path, capsys):
    """So that one more try is enough."""
    write_run(tmp_path / "a", 2, settings={"reduce.compressor": "int8", "reduce.overlap": "none"})
    write_run(tmp_path / "b", 2)
    words = ["report", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    beside = "--by reduce.compressor --by reduce.overlap"
    assert f"{beside}, or" in capsys.readouterr().err
    assert main([*words, *beside.split()]) == 0
