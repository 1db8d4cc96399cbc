"""Horovod's timeline: written here as horovod/common/timeline.cc writes it; a real one is read in test_resume.py."""

import json

import pytest

from analysis.errors import AnalysisError
from analysis.horovod_timeline import Timeline

SHAPES = {1: ("float32", "[1000]", 4000), 2: ("float16", "[10, 100]", 2000), 3: ("int64", "[]", 8)}


def negotiation(begin: int, pid: int, ready: dict[int, int], end: int) -> list[dict]:
    """Of one tensor: `ready` says when which rank was."""
    ticks = [{"ph": "X", "name": str(rank), "ts": when, "pid": pid, "dur": 0} for rank, when in ready.items()]
    return [
        {"ph": "B", "name": "NEGOTIATE_ALLREDUCE", "ts": begin, "pid": pid},
        *ticks,
        {"ph": "E", "ts": end, "pid": pid},
    ]


def fused(pids: list[int], begin: int, *activities: tuple[str, int]) -> list[dict]:
    """A batch: each activity takes so many microseconds, and is begun and ended for one tensor after the other."""
    events = [{"ph": "B", "name": "ALLREDUCE", "ts": begin + i, "pid": pid} for i, pid in enumerate(pids)]
    now = begin + 10
    for name, micros in activities:
        events += [{"ph": "B", "name": name, "ts": now + (i > 0), "pid": pid} for i, pid in enumerate(pids)]
        now += micros
        events += [{"ph": "E", "ts": now, "pid": pid} for pid in pids]
    for pid in pids:
        dtype, shape, _ = SHAPES[pid]
        events.append({"ph": "E", "ts": now + 5, "pid": pid, "args": {"dtype": dtype, "shape": shape}})
    return events


def write(path, events):
    names = [{"name": "process_name", "ph": "M", "pid": pid, "args": {"name": f"bucket.{pid}"}} for pid in (1, 2, 3)]
    lines = [json.dumps(event) + ",\n" for event in names]  # a line each; all others share one
    path.write_text("[\n" + "".join(lines) + ",".join(map(json.dumps, events)) + "]")
    return path


EVENTS = [
    *sorted(
        negotiation(0, 1, {0: 0, 1: 300}, 310) + negotiation(100, 2, {1: 100, 0: 250}, 320), key=lambda each: each["ts"]
    ),
    {"ph": "i", "name": "CYCLE_START", "ts": 400, "s": "g"},
    *fused([1, 2], 500, ("MEMCPY_IN_FUSION_BUFFER", 20), ("GLOO_ALLREDUCE", 200)),
    *negotiation(900, 3, {}, 950),
    *fused([3], 1000, ("GLOO_ALLREDUCE", 70)),
    *fused([3], 1200, ("GLOO_ALLREDUCE", 30)),
]


@pytest.mark.parametrize("piece", [64, 1000, 2**22])
def test_a_fused_batch_counts_once(tmp_path, monkeypatch, piece):
    monkeypatch.setattr("analysis.horovod_timeline._PIECE", piece)
    found = Timeline(write(tmp_path / "timeline.json", EVENTS))
    activity = found.activities["ALLREDUCE", "GLOO_ALLREDUCE"]
    assert (activity.batches, activity.tensors, activity.time_us) == (3, 4, 300)
    assert found.activities["ALLREDUCE", "MEMCPY_IN_FUSION_BUFFER"].time_us == 20
    operation = found.operations["ALLREDUCE"]
    assert (operation.tensors, operation.bytes) == (4, 4000 + 2000 + 8 + 8)
    assert (operation.negotiations, operation.negotiation_us) == (3, 320 + 50)
    assert {rank: (late.times, late.wait_us) for rank, late in found.late.items()} == {1: (1, 300), 0: (1, 150)}
    assert not found.cut
    assert (found.moving_s, found.waiting_s) == (300e-6, 370e-6)
    longest = found.table().iloc[0]
    assert (longest["activity"], longest["seconds"]) == ("negotiation", 370e-6)


def test_what_was_written_before_a_kill_is_read(tmp_path):
    """Whatever the byte at which the file ends."""
    whole = write(tmp_path / "timeline.json", EVENTS).read_text()
    begin = whole.index("int64")
    for end in range(begin, len(whole) - 2):
        (tmp_path / "cut.json").write_text(whole[:end])
        found = Timeline(tmp_path / "cut.json")
        assert found.activities["ALLREDUCE", "GLOO_ALLREDUCE"].time_us in (270, 300)
    assert begin < end


def test_it_may_begin_in_the_middle_of_things(tmp_path):
    """A timeline can be started while tensors are under way."""
    found = Timeline(write(tmp_path / "timeline.json", [{"ph": "E", "ts": 1, "pid": 1}, *EVENTS]))
    assert found.activities["ALLREDUCE", "GLOO_ALLREDUCE"].time_us == 300


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no array"),
        ("[", "no operation"),
        ("[]", "no operation"),
        ('{"traceEvents": []}', "no array"),
        ("[1, 2]", "not a timeline"),
        ('[{"ph": "B", "name": "NEGOTIATE_ALLREDUCE", "pid": 1}]', "'ts'"),
        ('[{"ph": "X", "name": "kernel", "ts": 1, "pid": 1}]', "invalid literal"),
        ("[" + "x" * 10_000_000, "more than"),
        ("[" * 100_000, "not a timeline"),
        ('[{"ph": "B", "name": "ALLREDUCE", "ts": 1, "pid": []}]', "not a timeline"),
        (
            '[{"ph": "B", "name": "ALLREDUCE", "ts": "x", "pid": 1}, {"ph": "E", "ts": 2, "pid": 1, "args": 3}]',
            "not a timeline",
        ),
        ('[{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "bucket.1"}}]', "no operation"),
    ],
)
def test_what_is_none_is_refused(tmp_path, text, reason):
    (tmp_path / "timeline.json").write_text(text)
    with pytest.raises(AnalysisError, match=reason):
        Timeline(tmp_path / "timeline.json")
