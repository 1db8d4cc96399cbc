"""What a run says of itself before it starts, if it is not as its user may think."""

from types import SimpleNamespace

import pytest

from hvd_llm import cores
from hvd_llm.config import resolve
from hvd_llm.hints import hints

CASES = {
    "nothing": ({}, {}, 1, ""),
    "threads for two": ({}, {}, 2, "2 ranks with 2 threads each share 2 cores"),
    "no timeline of shared memory": ({"trace": {"horovod_timeline": True}}, {}, 1, "timeline will have no gradients"),
    "no shared memory": ({}, {"shares_memory": False}, 1, "cannot share memory, and sum gradients through mpi"),
    "a batch of all": ({"train": {"steps": 1, "global_batch": 2000}}, {}, 1, "1000 sequences: a step takes all"),
    "signs in memory": ({"reduce": {"compressor": "hierarchical(across=adasum)"}}, {}, 1, ""),
    "a compressor in memory": ({"reduce": {"compressor": "powersgd"}}, {}, 1, "faster than powersgd"),
    "adasum in memory": ({"reduce": {"compressor": "adasum"}}, {}, 1, ""),
    "less than a round": ({"sync": {"every": 4}, "train": {"steps": 3, "global_batch": 4}}, {}, 1, "will meet once"),
    "never compressed": (
        {"reduce": {"compressor": "int8", "warmup_steps": 3}, "train": {"steps": 3, "global_batch": 4}},
        {"shares_memory": False, "size": 4},
        1,
        "nothing will go through int8",
    ),
    "compressed from some step on": (
        {"reduce": {"compressor": "int8", "warmup_steps": 3}, "train": {"epochs": 1, "global_batch": 4}},
        {"shares_memory": False, "size": 4},
        1,
        "",
    ),
    "never apart in an epoch": (
        {"sync": {"every": 8, "after": 20}, "train": {"epochs": 1, "global_batch": 4}},
        {},
        1,
        "sync.after is 20, of 20 steps",
    ),
    "never apart": (
        {"sync": {"every": 8, "after": 4}, "train": {"steps": 3, "global_batch": 4}},
        {},
        1,
        "sync.after is 4, of 3 steps",
    ),
    "signs": (
        {"reduce": {"compressor": "onebit"}},
        {"shares_memory": False, "size": 4},
        1,
        "zero_one_adam can bear that",
    ),
    "several hosts of several ranks": (
        {"reduce": {"compressor": "auto"}},
        {"size": 4, "shares_memory": False},
        1,
        "auto(hierarchical=true) may also",
    ),
    "rounds of one step": ({"sync": {"outer_lr": 0.5}}, {}, 1, "do nothing while sync.every is 1"),
    "part of the split": ({"evaluate": {"batches": 2}}, {}, 1, "are of 8 of 233 validation sequences"),
}


@pytest.mark.parametrize(("settings", "world", "threads", "said"), CASES.values(), ids=CASES)
def test_it_is_said(settings, world, threads, said, monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: 2)
    tree = {"train": {"steps": 1, "global_batch": 4}, "evaluate": {"batches": 0}} | settings
    comm = SimpleNamespace(**{"size": 2, "local_size": 2, "shares_memory": True, "controller": "mpi"} | world)
    config = resolve(tree)
    found = list(hints(config, config.train.steps or 20, comm, "cpu", threads, 2, 1000, 233))
    assert [said in line for line in found] == ([True] if said else [])
