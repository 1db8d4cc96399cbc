"""compare: equality to the last bit, and differences no smaller and no larger than they are."""

import re
import shutil

import pytest
from synthetic_runs import write_run

from analysis.__main__ import main


@pytest.fixture
def pair(tmp_path):
    a = write_run(tmp_path / "a", steps=60)
    return a, shutil.copytree(a, tmp_path / "b")


def compare(*words):
    return main(["compare", *map(str, words)])


def test_a_copy_is_equal(pair, capsys):
    shutil.rmtree(pair[1] / "trace")  # losses are all it needs
    assert compare(*pair, "--assert-equal") == 0
    assert "equal bit by bit at all 6 logged steps" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["loss", "validation_loss"])
def test_one_bit_is_a_difference(pair, column, capsys):
    path = pair[1] / "metrics.csv"
    lines = path.read_text().splitlines()
    at = lines[0].split(",").index(column)
    fields = lines[5].split(",")  # step 40, which has both
    value = float(fields[at])
    fields[at] = repr(value + 2**-51)
    lines[5] = ",".join(fields)
    path.write_text("\n".join(lines) + "\n")
    assert compare(*pair, "--assert-equal") == 1
    assert "first at step 40" in capsys.readouterr().out


def test_missing_steps_are_a_difference(pair, capsys):
    path = pair[1] / "metrics.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert compare(*pair, "--assert-equal") == 1
    assert "step 50 is only in" in capsys.readouterr().out


def test_a_resume_that_repeats_rows_is_equal(pair):
    path = pair[1] / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4] + lines[2:]))
    assert compare(*pair, "--assert-equal") == 0


@pytest.mark.parametrize(("slower", "words"), [(1.0, "no difference seen"), (1.1, "B is slower"), (0.9, "B is faster")])
def test_step_time_difference(tmp_path, slower, words, capsys):
    for name, scale in (("a", 1.0), ("b", slower)):
        for repeat in range(3):
            path = tmp_path / name / f"run-{repeat}"
            write_run(path, 1, forward_ms=60 * scale, backward_ms=129 * scale, seed=ord(name) + 2 * repeat)
    assert compare(tmp_path / "a", tmp_path / "b") == 0
    text = capsys.readouterr().out
    assert words in text
    low, high = (float(value) for value in re.search(r"interval ([+-][\d.]+)% to ([+-][\d.]+)%", text).groups())
    truth = (slower - 1) * 189 / 198 * 100
    assert low - 0.5 < truth < high + 0.5


def test_what_differs_is_named(tmp_path, capsys):
    write_run(tmp_path / "a", 2)
    write_run(tmp_path / "b", 2, settings={"reduce.compressor": "powersgd"})
    assert compare(tmp_path / "a", tmp_path / "b") == 0
    assert "differs: reduce.compressor: none (a), powersgd (b)" in capsys.readouterr().out


def test_mistakes_are_one_sentence(pair, tmp_path, capsys):
    for words, expected in [
        ((tmp_path / "nowhere", pair[1]), "is not a folder"),
        ((tmp_path, pair[1], "--assert-equal"), "one run with one run"),
    ]:
        assert compare(*words) == 2
        message = capsys.readouterr().err
        assert expected in message
        assert message.count("\n") == 1
    (pair[0] / "metrics.csv").unlink()
    assert compare(*pair, "--assert-equal") == 2
    assert "cannot read" in capsys.readouterr().err
    write_run(tmp_path / "mixed" / "one", 1)
    write_run(tmp_path / "mixed" / "two", 2)
    assert compare(tmp_path / "mixed", pair[1]) == 2
    assert "does not hold repeats: ranks is [1, 2]" in capsys.readouterr().err


def test_help_explains(capsys):
    for words in (["--help"], ["report", "--help"], ["compare", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--allow" in text
    assert "--assert-equal" in text
