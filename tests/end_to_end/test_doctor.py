"""`hvd-llm doctor` on this machine, as it is and with Horovod taken away."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def doctor(python: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [python, "-m", "hvd_llm", "doctor", *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def findings(done: subprocess.CompletedProcess) -> dict[str, dict]:
    report = json.loads(done.stdout)
    assert report["schema"] == "hvd_llm.doctor/1"
    assert report["ok"] == (done.returncode == 0)
    return {finding["name"]: finding for finding in report["findings"]}


@pytest.fixture(scope="module")
def without_horovod(tmp_path_factory) -> dict[str, str]:
    """PYTHONPATH on which everything of this environment is, except Horovod."""
    folder = tmp_path_factory.mktemp("site")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("horovod") and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return {"PYTHONPATH": f"{ROOT}:{folder}"}


@pytest.mark.timeout(300)
def test_both_controllers_work_and_are_measured():
    done = doctor(sys.executable, "--json")
    found = findings(done)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("mpi, 2 ranks", "gloo, 2 ranks"):
        assert found[name]["mark"] == "✓"
        assert 1 < found[name]["measured"]["latency_us"] < 1e6
        assert 0.001 < found[name]["measured"]["bandwidth_gb_s"] < 1000
        assert 0.001 < found[name]["measured"]["shared_gb_s"] < 1000
    assert found["controllers"]["value"] == "mpi, gloo"
    assert found["ranks wait"]["value"] == "by sleeping", "it is an older build; run: hvd-llm install-horovod"


@pytest.mark.timeout(300)
def test_without_horovod_it_tells_the_mend(without_horovod):
    done = doctor(sys._base_executable, **without_horovod)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "✗ horovod" in done.stdout
    assert "→ run: hvd-llm install-horovod" in done.stdout
    assert "run.threads = 0" in done.stdout  # it goes on to the end
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(300)
def test_a_launcher_that_hangs_is_given_up(tmp_path):
    mpirun = tmp_path / "mpirun"
    mpirun.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "mpirun (Open MPI) 5.0.0" && exit 0\nexec sleep 600\n')
    mpirun.chmod(0o755)
    hidden = "import sys; sys.prefix = sys.argv.pop(1); from hvd_llm.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden, str(tmp_path / "empty"), "doctor", "--json", "--timeout", "5"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = findings(done)
    assert done.returncode == 1
    assert found["mpi, 2 ranks"]["value"] == "no answer in 5 s"
    assert found["mpi, 2 ranks"]["mend"]
    assert found["horovodrun --mpi"]["mark"] == "!"
