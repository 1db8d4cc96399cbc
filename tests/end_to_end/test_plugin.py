"""The example of a third party's compressor: installed as its page says, found by name, trained with, tested."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from commands import launcher, run

EXAMPLE = Path(__file__).parents[2] / "examples" / "compressor_plugin"


@pytest.fixture(scope="session")
def plugin(tmp_path_factory):
    """A folder into which the package was installed, to be put on PYTHONPATH."""
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("target")
    shutil.copytree(EXAMPLE, source)
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    done = run(*pip, "--target", target, source)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def installed(plugin, monkeypatch):
    import commands

    monkeypatch.setitem(commands.ENVIRONMENT, "PYTHONPATH", f"{plugin}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.usefixtures("installed")
def test_it_is_listed(capfd):
    assert "strongest(share=0.01, feedback=1.0)" in run("hvd-llm", "compressors").stdout


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("controller", ["mpi", "gloo"])
def test_it_trains(config, folder, controller):
    train = [
        "hvd-llm",
        "train",
        config,
        "--train.steps",
        "6",
        "--reduce.compressor",
        "strongest",
        "--out",
        folder / "run",
    ]
    done = run(*launcher(2, controller), *train)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("installed")
@pytest.mark.slow
def test_it_passes_the_suite_of_all_compressors():
    suite = Path(__file__).parents[1] / "parallel" / "test_compressors.py"
    done = run(sys.executable, "-m", "pytest", "-q", "-k", "strongest and not 64", suite, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
