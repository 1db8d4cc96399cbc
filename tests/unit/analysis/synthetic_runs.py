"""Writes run folders whose true step times, parts and efficiency are known, with the real trace writer."""

import json
from pathlib import Path

import numpy as np

from hvd_llm import config
from hvd_llm.trace import Trace

CORES = 2


def write_run(
    path: Path,
    ranks: int = 1,
    batch_per_rank: int = 8,
    steps: int = 120,
    *,
    forward_ms: float = 60.0,
    backward_ms: float = 120.0,
    exposed_ms: float = 20.0,
    noise: float = 0.02,
    seed: int = 0,
    settings: dict | None = None,
    facts: dict | None = None,
    about: dict | None = None,
    slow: dict[int, float] | None = None,
    hosts: list[str] | None = None,
    clock_error_ms: dict[int, float] | None = None,
) -> Path:
    """A training run. `slow` multiplies a rank's own work; the others wait for it in `exposed`. `clock_error_ms` is by
    how much the offset of a rank's clock to rank 0's is wrong.

    The true mean step is 2 (input) + forward + backward + exposed (0 with one rank) + 6 (optimizer) + 1 (residual) ms;
    autocorrelated noise (0.7) of relative size `noise` multiplies the whole step.
    """
    path.mkdir(parents=True)
    launch = {"size": ranks, "hosts": hosts or ["node-a"] * ranks} | (facts or {})
    trained = {"train.global_batch": batch_per_rank * ranks, "train.steps": steps} | (settings or {})
    (path / "run.json").write_text(json.dumps(_description(trained, launch) | (about or {})))

    random = np.random.default_rng(seed)
    factor = 1 + noise * _autocorrelated(steps, 0.7, random)
    slow = slow or {}
    longest = max(slow.get(rank, 1.0) for rank in range(ranks))
    work = {"input": 2.0, "forward": forward_ms, "backward": backward_ms}
    for rank in range(ranks):
        own = {name: value * slow.get(rank, 1.0) for name, value in work.items()}
        waiting = (longest - slow.get(rank, 1.0)) * sum(work.values())
        write_trace(
            path / "trace" / "launch-0" / f"rank-{rank:05d}.trace",
            (rank, ranks),
            own,
            exposed_ms + waiting if ranks > 1 else 0.0,
            factor,
            tokens=batch_per_rank * 128,
            clock_error_ms=(clock_error_ms or {}).get(rank, 0.0),
        )
    write_metrics(path, steps, random)
    return path


def _description(settings: dict, launch: dict) -> dict:
    """What run.json says of a run of `settings` (section.name → value), started once, as `launch` says."""
    tree = config.to_dict(config.Config())
    for key, value in ({"train.micro_batch": 8} | settings).items():
        section, name = key.split(".")
        tree[section][name] = value
    launch = {
        "started": "2026-01-31T12:00:00+00:00",
        "first_step": 0,
        "argv": ["hvd-llm", "train", "gpt2-tiny", "--train.steps", str(tree["train"]["steps"])],
        "controller": "mpi",
        "shares_memory": False,
        "cpu": "A CPU",
        "cores": CORES,
        "threads": 1,
        "device": "cpu",
        "memory_bytes": 2**33,
        "slurm": {},
        "environment": {"HOROVOD_CYCLE_TIME": "1.0", "HOROVOD_RANK": "0"},
    } | launch
    return {
        "schema": "hvd_llm.run/1",
        "kind": "train",
        "config": tree,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "horovod": "0.28.1", "hvd_llm": "0.1.0"},
        "git": {"commit": "c0ffee" * 6 + "c0ff", "dirty": False},
        "model": {"parameters": 5_300_000, "flops_per_token": 31_800_000},
        "data": {"fingerprint": "f00d", "path": "data/embedded", "kind": "tokens", "vocabulary": 8192},
        "launches": [launch],
    }


def write_trace(
    path: Path,
    place: tuple[int, int],
    own: dict,
    exposed_ms: float,
    factor: np.ndarray,
    tokens: int,
    expected_ms: dict[str, list[float]] | None = None,
    clock_error_ms: float = 0.0,
):
    """One rank's trace: two buckets, the first summed under the last half of backward, the second gathered after it."""
    trace = Trace(path, *place)
    now = 10**9 * (place[0] + 1)
    for kind, values in (expected_ms or {}).items():
        for index, milliseconds in enumerate(values):
            trace.add(kind, now, now, index, round(milliseconds * 1e6))

    def add(kind, milliseconds, index=0, amount=0):
        nonlocal now
        start, now = now, now + round(milliseconds * 1e6)
        trace.add(kind, start, now, index, amount)
        return start, now

    for step, scale in enumerate(factor):
        trace.step = step
        began = now
        for name in ("input", "forward"):
            add(name, own[name] * scale)
        start, end = add("backward", own["backward"] * scale)
        if place[1] > 1:
            middle = (start + end) // 2
            trace.add("bucket_queue", middle - 2_000_000, middle, 0)
            end = middle + (end - middle) // 2
            trace.add("bucket_exchange", middle, end, 0, 4_000_000)
            trace.add("bucket_sent", middle, end, 0, 8_000_000 * (place[1] - 1) // place[1])
            start, end = add("exposed", exposed_ms * scale)
            trace.add("bucket_exchange", start, end, 1, 8_000_000)
            trace.add("bucket_sent", start, end, 1, 8_000_000 * (place[1] - 1))
        add("optimizer", 6.0 * scale)
        now += round(1e6 * scale)  # the residual
        trace.add("step", began, now, 0, tokens)
        if step % 50 == 49:
            add("checkpoint", 80.0, amount=21_000_000)
            add("evaluate", 400.0, amount=tokens)
        trace.flush()
    offset = round(clock_error_ms * 1e6) - 10**9 * place[0]
    trace.add("clock", now, now + 1000, 0, offset)
    trace.close()


def write_metrics(path: Path, steps: int, random: np.random.Generator) -> None:
    lines = [
        "step,time_s,loss,learning_rate,gradient_norm,tokens,tokens_per_s,mfu,skipped,score_name,score,validation_loss"
    ]
    for step in range(0, steps, 10):
        loss = 2.0 + 7.0 * np.exp(-step / 60) + 0.03 * random.standard_normal()
        validation = f"accuracy,0.5,{loss + 0.1!s}" if step % 50 == 40 else ",,"
        lines.append(f"{step},{step * 0.2},{loss!s},0.001,1.0,{step * 1024},5000.0,,0,{validation}")
    (path / "metrics.csv").write_text("\n".join(lines) + "\n")


def _autocorrelated(count: int, rho: float, random: np.random.Generator) -> np.ndarray:
    """A first-order autoregression of unit variance."""
    values = np.empty(count)
    values[0] = random.standard_normal()
    for at in range(1, count):
        values[at] = rho * values[at - 1] + np.sqrt(1 - rho**2) * random.standard_normal()
    return values
