"""Killed at any moment, a run continues as if nothing had happened."""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import time

import psutil
import pytest
import torch
from commands import ENVIRONMENT, launcher, run

from hvd_llm import checkpoint
from hvd_llm.comm.solo import Solo

STEPS = 40


def weights(folder) -> bytes:
    return (checkpoint.folder(folder, STEPS) / "model.safetensors").read_bytes()


def rows(folder) -> list[str]:
    """Lines of metrics.csv without what time decides."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    timed = [lines[0].split(",").index(name) for name in ("time_s", "tokens_per_s", "mfu")]
    return [",".join(cell for i, cell in enumerate(line.split(",")) if i not in timed) for line in lines]


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher and to every rank, and wait until they are gone."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=20)


def train_until_killed(command: list, folder, after_rows: int, rng: random.Random) -> bool:
    """Start training, kill it without warning once metrics.csv has so many rows; False if it ended before."""
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    metrics = folder / "metrics.csv"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") > after_rows:
            time.sleep(rng.uniform(0, 0.05))
            kill(process)
            return True
        time.sleep(0.005)
    assert process.returncode == 0
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "kills"), [(1, 7), (2, 3)])
def test_kill_and_resume_gives_the_same_bits(config, folder, ranks, kills):
    train = [*launcher(ranks), "hvd-llm", "train", str(config), "--run.threads", "1"]
    whole = run(*train, "--out", folder / "whole")
    assert whole.returncode == 0, whole.stderr

    rng = random.Random(ranks)
    command = [*train, "--resume", "auto", "--out", str(folder / "killed")]
    moments = sorted(rng.sample(range(2, STEPS - 5), kills))
    for moment in moments:
        assert train_until_killed(command, folder / "killed", moment, rng)
        assert STEPS not in checkpoint.steps(folder / "killed"), "the kill came after the end"
    assert not train_until_killed(command, folder / "killed", 10 * STEPS, rng)

    assert weights(folder / "killed") == weights(folder / "whole")
    assert rows(folder / "killed") == rows(folder / "whole")


def write_forever(folder, first: int):
    """A child process: one checkpoint after the other, as fast as it can."""
    for step in range(first, 10**6):
        tensors = {f"weight{i}": torch.full((50, 1000), float(step)) for i in range(5)}
        snapshot = checkpoint.Snapshot({"step": step, "best_step": 0}, tensors, tensors, {})
        checkpoint.save(folder, snapshot, lambda path: None, Solo())
        checkpoint.retain(folder, keep=2, always=set())


def test_killed_while_writing_there_is_always_a_loadable_checkpoint(folder):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hvd_llm.checkpoint"])
    rng = random.Random(0)
    newest, unfinished = 0, 0
    for _ in range(20):
        child = context.Process(target=write_forever, args=(folder, newest + 1))
        child.start()
        while not any(step > newest for step in checkpoint.steps(folder)):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        unfinished += any((folder / "checkpoints").glob(".writing-*"))
        warnings = []
        path = checkpoint.newest_whole(folder, warnings.append)
        assert not warnings
        snapshot = checkpoint.load(path, rank=0, size=1)
        assert snapshot.progress["step"] > newest
        newest = snapshot.progress["step"]
        assert all(tensor.eq(newest).all() for tensor in snapshot.model.values())
    assert unfinished > 0, "no kill came while a checkpoint was being written: the test proves nothing"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_does_not(config, folder):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = run(*launcher(2), "hvd-llm", "train", config, "--out", folder / name, "--seed", seed, "--run.threads", 1)
        assert done.returncode == 0, done.stderr
    assert weights(folder / "a") == weights(folder / "b")
    assert rows(folder / "a") == rows(folder / "b")
    assert weights(folder / "a") != weights(folder / "c")


@pytest.mark.slow
def test_horovods_own_timeline_is_recorded_on_request_and_in_the_report(config, folder):
    timeline = ["--trace.horovod_timeline", "true", "--reduce.share_memory", "false"]
    train = ["hvd-llm", "train", config, "--train.steps", 10, *timeline]
    done = run(*launcher(2), *train, "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    assert "bucket.0" in (folder / "run/trace/launch-0/horovod_timeline.json").read_text()
    done = run("python", "-m", "analysis", "report", folder / "run", "--out", folder / "report", "--warmup", 0)
    assert done.returncode == 0, done.stderr
    assert "ALLREDUCE" in (folder / "report/horovod.csv").read_text()
    assert "Inside Horovod" in (folder / "report/report.html").read_text()


@pytest.mark.slow
def test_patience_stops_a_run_that_no_longer_improves(config, folder):
    hopeless = ["--optimizer.lr", "1e-12", "--evaluate.every", 2, "--evaluate.patience", 2]
    done = run("hvd-llm", "train", config, "--out", folder / "run", *hopeless)
    assert done.returncode == 0, done.stderr
    assert "no better score in 2 evaluations, stopping" in done.stderr
    assert checkpoint.steps(folder / "run")[-1] < STEPS
