"""Published tables: their largest rows are predicted from the others, and what is no table is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import published
from analysis.__main__ import main
from analysis.replay import scorecard
from analysis.step_model import predict, trivial

PUBLISHED = Path(__file__).parents[4] / "shared/data/published_scaling.csv"
HEADER = "id,model,framework,hardware,gpus_per_node,gpus,precision,seq,microbatch_per_gpu,accum,throughput,unit,note"


def line(devices, accumulation, step_s, *, model="BERT", micro_batch=8, unit="seq/s", seq="128", note=""):
    """A row of a file whose step takes so long."""
    length = int(seq) if unit == "tok/s" else 1
    rate = devices * micro_batch * accumulation * length / step_s
    return f"t,{model},DDP,A100,8,{devices},fp16,{seq},{micro_batch},{accumulation},{float(rate)!r},{unit},{note}"


def write(path, lines):
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def truth(devices, accumulation, micro_batch=8):
    return accumulation * (micro_batch * 0.02 + 0.004 * np.log2(devices)) + 0.05


def rows(sizes=(8, 16, 32, 64), model="BERT", noise=0.0, batch=512, **options):
    """A table of one global batch; without one, of one pass a step."""
    random = np.random.default_rng(sum(map(ord, model)))
    passes = {n: batch // n if batch else 1 for n in sizes}
    return [
        line(n, passes[n], truth(n, passes[n]) * (1 + noise * random.standard_normal()), model=model, **options)
        for n in sizes
    ]


@pytest.mark.parametrize("unit", ["seq/s", "tok/s"])
def test_what_follows_the_model_is_predicted_exactly(tmp_path, unit):
    (table,) = published.read(write(tmp_path / "t.csv", rows(unit=unit)))
    known, wanted = table.among(table.devices < 64), table.among(table.devices == 64)
    assert predict(known, wanted) == pytest.approx([truth(64, 8)], rel=1e-6)
    assert trivial(known, wanted) != pytest.approx([truth(64, 8)], rel=1e-2)


def test_no_part_of_a_step_takes_less_than_no_time(tmp_path):
    """Steps that become shorter with more devices: the constant would be below 0, as the trivial baseline's is."""
    lines = [line(8, 32, 6.0), line(16, 16, 2.9), line(32, 8, 1.4)]
    (table,) = published.read(write(tmp_path / "t.csv", lines))
    wanted = table.among(table.devices == 32)
    known = table.among(table.devices < 32)
    assert predict(known, wanted) > 1.4
    assert trivial(known, wanted) < 1.4


def test_a_row_that_is_no_baseline_is_left_out(tmp_path):
    foreign = line(4, 128, 100.0, note="row from a different run")
    (table,) = published.read(write(tmp_path / "t.csv", [foreign, *rows()]))
    assert table.devices.tolist() == [8, 16, 32, 64]
    assert table.foreign == ("row from a different run",)


def test_intervals_hold_about_as_many_as_they_should(tmp_path):
    """Of tables on which the largest row is no harder to predict than those before."""
    lines = [one for number in range(60) for one in rows((8, 16, 32, 64, 128), f"M{number}", noise=0.02, batch=0)]
    score = scorecard(published.read(write(tmp_path / "t.csv", lines)))
    assert len(score) == 60
    inside = score["measured_s"].between(score["low_s"], score["high_s"]).mean()
    assert 0.75 < inside <= 1


def test_other_columns_do_not_matter(tmp_path):
    path = write(tmp_path / "t.csv", rows())
    path.write_text("\n".join(f"{one},x" for one in path.read_text().splitlines()).replace(",x", ",length", 1) + "\n")
    assert published.read(path)[0].step_s[-1] == pytest.approx(truth(64, 8))


def test_few_tables_have_no_interval(tmp_path):
    assert scorecard(published.read(write(tmp_path / "t.csv", rows())))["low_s"].isna().all()


def test_the_score_is_told_and_written(tmp_path, capsys):
    lines = [*rows(), *rows((8, 16), model="GPT")]
    assert main(["replay", str(write(tmp_path / "t.csv", lines)), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Median absolute error 0.0 %" in said
    assert "1 of 2 tables were used" in said
    assert len(pd.read_csv(tmp_path / "out/replay.csv")) == 1
    assert (tmp_path / "out/replay.png").read_bytes().startswith(b"\x89PNG")


WRONG = {
    "no column": ("gpus,throughput\n1,2\n", "has no column 'id'"),
    "no rows": (HEADER + "\n", "has no rows"),
    "no number": (HEADER + "\n" + line(8, 1, 1.0).replace(",8,fp16", ",many,fp16"), "line 2: gpus is 'many'"),
    "no speed": (HEADER + "\nt,m,f,h,8,8,fp16,128,8,1,0,seq/s,", "line 2: throughput is '0'"),
    "no length": (HEADER + "\n" + line(8, 1, 1.0) + "\nt,m,f,h,8,8,fp16,,8,1,9,tok/s,", "line 3: seq is ''"),
    "too small": (HEADER + "\n" + line(8, 1, 1.0), "no table of three numbers of devices"),
    "too many fields": (HEADER + "\n" + line(8, 1, 1.0, note="a, b"), "line 2: 14 fields, but the first line names 13"),
    "no table": ('a,b\n"1\n', "is not a table"),
    "no text": (b"\xff\xfe\x00", "is not a table"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_table_is_one_sentence(name, tmp_path, capsys):
    text, expected = WRONG[name]
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["replay", str(path)]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED.name} is not beside this checkout")
def test_published_tables_are_predicted_better_than_by_the_baseline():
    score = scorecard(published.read(PUBLISHED))
    assert len(score) > 20
    ours, theirs = score["error"].abs().median(), score["trivial_error"].abs().median()
    assert ours < min(0.06, theirs)
