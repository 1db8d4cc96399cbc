"""What users get wrong, over every command: one sentence, exit code 2, no traceback, nobody left behind."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from commands import BIN, ENVIRONMENT, launcher, run
from mistakes import CASES, REPORTS, RESUME, TRAIN

from analysis import __main__ as analysis
from hvd_llm import __main__ as hvd_llm
from hvd_llm import runfolder


@pytest.fixture(scope="session")
def trained(config, tmp_path_factory):
    """A finished run that every test may copy."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    done = run("hvd-llm", "train", config, "--out", folder, "--train.steps", 14)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def place(folder, data, config, trained, monkeypatch):
    """A folder to be in, with its own copies of good data, a good run and a good configuration."""
    shutil.copytree(data, folder / "data")
    shutil.copytree(trained, folder / "run")
    (folder / "good.toml").write_text(config.read_text().replace(str(data), "data"))
    (folder / "text.txt").write_text("some text\n\nand more\n" * 50)
    monkeypatch.chdir(folder)
    return folder


def outcome(main, words, capsys, monkeypatch) -> tuple[int, str]:
    """Run a command's own entry point in this process; returns exit code and what it said."""

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["command", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("typed", "mishap", "named"), CASES.values(), ids=CASES.keys())
def test_one_sentence(place, capsys, monkeypatch, typed, mishap, named):
    mishap(place)
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    code, said = outcome(hvd_llm.main, typed.split(), capsys, monkeypatch)
    complaint = [line for line in said.splitlines() if line and not line.startswith("warning: ")]
    assert code == 2
    assert len(complaint) == 1, said
    assert named in complaint[0]
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in before} == before, "something that was there is gone"


@pytest.mark.parametrize(("typed", "mishap", "named"), REPORTS.values(), ids=REPORTS.keys())
def test_one_sentence_of_the_analysis(place, capsys, monkeypatch, typed, mishap, named):
    mishap(place)
    code, said = outcome(lambda: sys.exit(analysis.main()), typed.split(), capsys, monkeypatch)
    assert code == 2
    assert len(said.strip().splitlines()) == 1, said
    assert named in said


SENTENCE = "hvd-llm: rank 1: data is not a prepared folder"


@pytest.mark.slow
@pytest.mark.parametrize("controller", ["mpi", "gloo"])
def test_no_rank_is_left_behind(place, controller):
    """Only rank 1 has the trouble; both ranks end, with its sentence, within ten seconds."""
    script = place / "rank.py"
    script.write_text(
        "import os, shutil, sys\n"
        "rank = os.environ.get('HOROVOD_RANK') or os.environ['OMPI_COMM_WORLD_RANK']\n"
        "if rank == '1':\n"
        "    os.chdir(sys.argv.pop())\n"
        "else:\n"
        "    sys.argv.pop()\n"
        "from hvd_llm.__main__ main\n".replace("__main__ main", "__main__ import main")
        + "main()\n"
    )
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(place / "good.toml", elsewhere)
    mark = f"mark-{os.getpid()}-{controller}"
    command = [*launcher(2, controller), "python", str(script), "train", "good.toml", "--out", mark, str(elsewhere)]
    options = {"env": ENVIRONMENT, "cwd": place, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:
        said = []
        while not said or SENTENCE not in said[-1]:
            said.append(process.stdout.readline())
            assert said[-1], "".join(said)
        began = time.monotonic()
        while ranks := [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]:
            assert time.monotonic() - began < 10, f"left behind: {ranks}"
            time.sleep(0.1)
        said += process.stdout.readlines()
    assert process.returncode != 0
    assert sum(SENTENCE in line for line in said) == 1, "".join(said)
    assert not any("rank.py" in line for line in said), "a rank printed a traceback"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_full_disk_loses_nothing(place, ranks):
    """A checkpoint that does not fit: one sentence, and the older checkpoints still load."""
    limited = ["bash", "-c", 'ulimit -f 150; trap "" XFSZ; exec "$@"', "limited"]
    # Shared memory counts as a file, MPI's own too: the limit would hit it as well
    train = [
        *launcher(ranks, "gloo"),
        BIN / "hvd-llm",
        *RESUME.split(),
        "--train.steps",
        30,
        "--trace.enabled",
        "false",
        "--reduce.share_memory",
        "false",
    ]
    done = run(*limited, *train, "--train.steps", 30, "--trace.enabled", "false", cwd=place)
    said = [line for line in done.stderr.splitlines() if "hvd-llm: " in line]
    assert len(said) == 1, done.stderr
    assert "cannot write the checkpoint" in said[0]
    if ranks == 1:  # horovodrun over Gloo has an exit code and a traceback of its own
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert run(BIN / "hvd-llm", "evaluate", "run", cwd=place).returncode == 0


def test_two_cannot_train_in_one_folder(place):
    with runfolder.claim(place / "run"):
        done = run(BIN / "hvd-llm", *RESUME.split(), "--train.steps", 20, cwd=place)
    assert done.returncode == 2
    assert done.stderr.startswith("hvd-llm: run.dir 'run' is in use"), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_number_of_ranks_that_does_not_suit_the_compressor(place):
    train = f"{TRAIN} --train.global_batch 3 --reduce.compressor adasum --out new"
    done = run(*launcher(3), BIN / "hvd-llm", *train.split(), cwd=place)
    text = re.sub(r"\[1,\d+\]<std\w+>: ?", "", done.stdout + done.stderr)  # mpirun's tags, wherever it puts them
    said = [line for line in text.splitlines() if "hvd-llm: " in line]
    assert len(said) == 1, text
    assert said[0].endswith("hvd-llm: adasum is for 2, 4, 8, … ranks (or hosts, if used across them), not 3")
    assert not (place / "new").exists()


def test_a_model_that_diverged_is_not_used(place):
    diverge = "--optimizer.lr 1e6 --optimizer.clip_norm 0 --out diverged --train.steps 14 --train.log_every 1"
    done = run(BIN / "hvd-llm", *TRAIN.split(), *diverge.split(), cwd=place)
    assert done.returncode == 0
    assert ": gradients not finite" in done.stderr
    done = run(BIN / "hvd-llm", "generate", "diverged", "--prompt", "a", cwd=place)
    assert done.returncode == 2
    assert done.stderr.endswith("not finite: its training diverged\n")


def test_torchrun_is_no_launcher_for_horovod(place):
    environment = ENVIRONMENT | {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}
    command = [str(BIN / "hvd-llm"), *TRAIN.split()]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "use horovodrun or mpirun" in done.stderr


@pytest.mark.slow
def test_missing_horovod_is_said(place):
    """Under a launcher without Horovod: which command builds it."""
    hidden = place / "sitecustomize.py"
    hidden.write_text(
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'horovod' else find(name, *rest)\n"
    )
    environment = ENVIRONMENT | {
        "PYTHONPATH": str(place),
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "2",
    }
    done = subprocess.run(
        [str(BIN / "hvd-llm"), *TRAIN.split()], env=environment, cwd=place, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "hvd-llm install-horovod" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_run_json_says_what_was_run(trained):
    record = json.loads((trained / "run.json").read_text())
    assert record["schema"] == "hvd_llm.run/1"
    assert record["config"]["train"]["steps"] == 14
    assert record["launches"][0]["size"] == 1
