"""Every command of the README runs, in its order, in one place.

A block of commands starts with ```sh. Only its lengths are cut: training takes few steps, benchmarks few rounds of
small models.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ENVIRONMENT

from benchmarks import sandbox

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
SMALL = "--model.layers 1 --model.hidden 64"
BRIEF = {
    "make train": "TRAIN=--train.steps 12 --evaluate.batches 1",
    "make bench": f"BENCH=--rounds 2 --steps 1 --controllers gloo {SMALL}",
}
BETWEEN_HOSTS = {  # added to what the README gives: of two equal options the last counts
    "make bench-network": f"BENCH=--rounds 1 --hosts 2 --rates 200mbit --turn 1 --steps 2 --warm-up 1 {SMALL}",
    "make bench-loss": f"BENCH=--hosts 2 --steps 8 --evaluate.batches 1 {SMALL}",
}
ELSEWHERE = ("git clone", "cd ", "make test")  # what got us here


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def shortened(command: str) -> list[str]:
    words = shlex.split(command)
    if "hvd-llm train" in command:
        words += ["--train.steps", "12", "--train.epochs", "0", "--evaluate.batches", "1"]
    briefs = {start: brief for start, brief in BETWEEN_HOSTS.items() if command.startswith(start)} | {
        start: brief for start, brief in BRIEF.items() if command == start
    }
    for brief in briefs.values():
        variable, _, options = brief.partition("=")
        given = [word for word in words if word.startswith(f"{variable}=")]
        words = [word for word in words if word not in given] + [f"{(given or [variable + '='])[0]} {options}"]
    return words


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkout to run commands in: what they write must not land in the one that is tested."""
    ready = REPOSITORY / ".venv/.ready"
    if not ready.exists() or ready.stat().st_mtime < (REPOSITORY / "setup.cfg").stat().st_mtime:
        pytest.skip("needs an up-to-date environment: make env")  # else make would install it from the test's folder
    place = tmp_path_factory.mktemp("readme") / "checkout"
    place.mkdir()
    for path in REPOSITORY.iterdir():
        if path.name not in ("runs", "data"):
            (place / path.name).symlink_to(path)
    return place


def _run(lines, place):
    environment = ENVIRONMENT | {"PATH": f"{place / '.venv/bin'}:{os.environ['PATH']}"}
    for line in lines:
        began = time.monotonic()
        done = subprocess.run(shortened(line), cwd=place, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        print(f"{time.monotonic() - began:6.1f} s  {line}")  # pytest -rP shows it
    assert (place / "runs").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_runs(place):
    here = [line for line in commands() if not line.startswith(ELSEWHERE + tuple(BETWEEN_HOSTS))]
    assert len(here) > 8
    _run(here, place)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(bool(sandbox.obstacle()), reason=f"there can be no hosts here: {sandbox.obstacle()}")
def test_every_command_between_hosts_runs(place):
    here = [line for line in commands() if line.startswith(tuple(BETWEEN_HOSTS))]
    assert len(here) > 1
    _run(here, place)


def test_commands_within_the_text_are_understood(monkeypatch):
    modules = {"make bench": "side_by_side", "make bench-network": "network", "make bench-loss": "loss"}
    found = re.findall(r"`((?:python -m benchmarks|make bench\S* BENCH)[^`]*)`", README)
    assert len(found) > 2
    for line in (" ".join(each.split()) for each in found):
        start, _, options = line.partition(" BENCH=")
        words = shlex.split(line)
        name, words = (modules[start], shlex.split(shlex.split(options)[0])) if options else (words[2][11:], words[3:])
        if name == "hosts":
            continue  # its options end where a command begins
        monkeypatch.setattr(sys, "argv", [name, *words])
        assert importlib.import_module(f"benchmarks.{name}")._arguments().settings == [], line


def test_the_tree_is_the_tree():
    """Every file and folder that the annotated tree names is there."""
    tree = re.search(r"^```\n(hvd_llm/\n.*?)^```", README, re.DOTALL | re.MULTILINE)[1]
    parents: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        parents[depth:] = [name]
        assert (REPOSITORY / "".join(parents)).exists(), "".join(parents)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (REPOSITORY / target).exists(), target
