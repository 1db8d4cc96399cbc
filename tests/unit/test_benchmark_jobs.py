"""A contender that fails is told from one that is done."""

import subprocess

import pytest

from benchmarks.jobs import IncompleteError, Job, Jobs, Ranks

CRASH = """\
[1,1]<stderr>:Traceback (most recent call last):
[1,1]<stderr>:RuntimeError: a wire is cut
RuntimeError: the launcher noticed
Bye."""


def job(folder, script: str, name: str = "peer") -> Job:
    folder.mkdir()

    def start(command, log):
        return Ranks([subprocess.Popen(["sh", "-c", script], stdout=log, stderr=log)])

    return Job(name, 1, folder, start, "gpt-tiny", [])


@pytest.mark.parametrize(
    ("log", "why"), [(CRASH, "RuntimeError: a wire is cut"), ("one\ntwo\n", "two"), ("", "not a word")]
)
def test_the_reason_is_the_first_error_or_the_last_line(tmp_path, log, why):
    (tmp_path / "said").write_text(log)
    with Jobs() as jobs:
        crashing = job(tmp_path / "words", f"cat {tmp_path}/said; exit 1")
        jobs.add(crashing)
        assert jobs.block(crashing, 1) is None
        assert jobs.incomplete == {"peer": why}
        assert jobs.in_turn(3) == []


def test_one_that_ends_too_early_did_not_complete_either(tmp_path):
    early = job(tmp_path / "words", "true")
    with pytest.raises(IncompleteError):
        early.block(1)
    early.end()


def test_the_slowest_rank_counts_and_turns_go_round(tmp_path):
    script = (
        "cd FOLDER; until [ -e go-0 ]; do sleep 0.01; done; echo 0.25 > .d; mv .d done-0-0; "
        "until [ -e go-1 ]; do sleep 0.01; done"
    )
    with Jobs() as jobs:
        several = [job(tmp_path / name, script.replace("FOLDER", str(tmp_path / name)), name) for name in "abc"]
        for each in several:
            jobs.add(each)
        assert [jobs.block(each, 1) for each in several] == [0.25] * 3
        assert "".join(each.name for each in jobs.in_turn(4)) == "bca"
