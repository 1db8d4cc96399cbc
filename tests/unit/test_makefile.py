"""The Makefile parses, and its targets run the commands that the README names."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

if shutil.which("make") is None:
    pytest.skip("make is not installed", allow_module_level=True)


def dry_run(*words: str) -> str:
    """What make would do from a fresh start, without doing it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--dry-run", "--always-make", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_train_makes_the_environment_the_corpus_two_runs_and_the_report():
    lines = dry_run("train").splitlines()
    wanted = ["-m venv", "constraints.txt", "install-horovod", "prepare embedded", "-np 1", "-np 2", "analysis report"]
    places = [next(i for i, line in enumerate(lines) if words in line) for words in wanted]
    assert places == sorted(places)
    assert "report.html" in lines[-1]


def test_test_checks_style_and_imports_first():
    lines = dry_run("test").splitlines()
    tests = [line for line in lines if line.startswith("pytest")]
    places = [lines.index(line) for line in ("ruff check .", "ruff format --check .", "lint-imports", *tests)]
    tested = {word for line in tests for word in line.split() if word.startswith("tests/")}
    folders = {f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if [*path.rglob("test_*.py")]}
    apart = {word.removeprefix("--ignore=") for line in tests for word in line.split() if "--ignore=" in word}
    assert tested == folders | apart
    assert places == sorted(places)


def test_help_names_every_target():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("train", "test", "bench", "bench-network", "lint", "clean", "env"):
        assert f"make {target} " in said


def test_cuda_or_cpu_torch_can_be_asked_for():
    assert "--extra-index-url https://example.org/cpu" in dry_run("env", "TORCH_INDEX=https://example.org/cpu")
    assert "--extra-index-url" not in dry_run("env")
