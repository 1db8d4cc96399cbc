import json
import shutil

import pytest
import torch

from hvd_llm import checkpoint
from hvd_llm.comm.solo import Solo
from hvd_llm.drift import fingerprint
from hvd_llm.errors import UserError


def save(run, step: int, value: float = 0.0, own=None):
    weights = {"weight": torch.full((4, 4), value + step)}
    snapshot = checkpoint.Snapshot(
        {"step": step, "best_step": 1}, weights, {"exp_avg/weight": torch.ones(4, 4)}, own or {}
    )
    return checkpoint.save(run, snapshot, lambda path: (path / "config.json").write_text("{}"), Solo())


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    for step in (1, 2, 3):
        save(tmp_path, step)
    return tmp_path


def test_what_is_saved_is_loaded(run):
    size = save(run, 4, own={"layer.weight": {"error": torch.arange(3.0)}})
    snapshot = checkpoint.load(checkpoint.folder(run, 4), rank=0, size=1)
    assert snapshot.progress["step"] == 4
    assert snapshot.model["weight"].eq(4).all()
    assert snapshot.optimizer["exp_avg/weight"].eq(1).all()
    assert snapshot.own["layer.weight"]["error"].tolist() == [0, 1, 2]
    assert size == sum(path.stat().st_size for path in checkpoint.folder(run, 4).iterdir())


def test_whoever_may_read_one_file_may_read_all(run):
    """The umask says who: safetensors' own files would be only their owner's."""
    modes = {path.stat().st_mode for path in checkpoint.folder(run, 3).iterdir()}
    assert len(modes) == 1


def test_retention_keeps_the_newest_and_the_best(run):
    (run / "checkpoints/.writing-step-00000009").mkdir()
    checkpoint.retain(run, keep=1, always={1})
    assert checkpoint.steps(run) == [1, 3]
    assert not list((run / "checkpoints").glob(".*"))


def test_a_step_written_again_is_whole_before_the_old_one_is_deleted(run, monkeypatch):
    """Killed while a large one is being deleted, a run has the new one."""
    real, seen = shutil.rmtree, []

    def rmtree(path, ignore_errors):
        if path.exists() and path.name.startswith(".deleting-"):
            checkpoint.verify(checkpoint.folder(run, 3))
            seen.append(path)
        real(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    save(run, 3, value=0.5)
    assert len(seen) == 1
    assert checkpoint.load(checkpoint.folder(run, 3), rank=0, size=1).model["weight"].eq(3.5).all()
    assert checkpoint.steps(run) == [1, 2, 3]
    assert not list((run / "checkpoints").glob(".*"))


def test_find(run):
    assert checkpoint.find(run, "latest").name == "step-00000003"
    assert checkpoint.find(run, "best").name == "step-00000001"
    assert checkpoint.find(run, "2").name == "step-00000002"
    with pytest.raises(UserError, match="there are latest, best, 1, 2, 3"):
        checkpoint.find(run, "7")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json"])
def test_any_changed_bit_is_found_and_the_one_before_is_taken(run, name):
    path = checkpoint.folder(run, 3) / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    warnings = []
    assert checkpoint.newest_whole(run, warnings.append) == checkpoint.folder(run, 2)
    assert name in warnings[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": "other/1"}',
        '{"schema": "hvd_llm.checkpoint/1"}',
        '{"schema": "hvd_llm.checkpoint/1", "sha256": 3}',
    ],
)
def test_a_strange_state_is_one_sentence(run, text):
    (checkpoint.folder(run, 3) / "state.json").write_text(text)
    with pytest.raises(UserError) as caught:
        checkpoint.load(checkpoint.folder(run, 3), rank=0, size=1)
    assert "step-00000003" in str(caught.value)


def test_a_state_may_not_point_outside(run):
    path = checkpoint.folder(run, 3) / "state.json"
    state = json.loads(path.read_text())
    state["sha256"]["../../run.json"] = "0" * 64
    path.write_text(json.dumps(state))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(checkpoint.folder(run, 3), rank=0, size=1)


def test_a_checkpoint_under_another_steps_name_is_refused(run):
    checkpoint.folder(run, 3).rename(checkpoint.folder(run, 8))
    with pytest.raises(UserError, match="it says it is of step 3"):
        checkpoint.load(checkpoint.folder(run, 8), rank=0, size=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fingerprint_sees_one_bit_and_where_it_is(dtype):
    tensors = {"a": torch.zeros(3, 5, dtype=dtype), "b": torch.zeros(7, dtype=dtype)}
    before = fingerprint(tensors)
    tensors["a"][1, 2] = 1
    in_a = fingerprint(tensors)
    tensors["a"][1, 2] = 0
    tensors["b"][2] = 1
    in_b = fingerprint(tensors)
    assert len({int(before), int(in_a), int(in_b)}) == 3


def test_a_changed_counter_is_found(run):
    path = checkpoint.folder(run, 3) / "state.json"
    path.write_text(path.read_text().replace('"best_step": 1', '"best_step": 2'))
    with pytest.raises(UserError, match="progress does not match"):
        checkpoint.load(checkpoint.folder(run, 3), rank=0, size=1)


def test_what_is_newer_than_the_one_resumed_is_set_aside_not_counted(run):
    checkpoint.set_aside(run, after=1)
    assert checkpoint.steps(run) == [1]
    assert len(list((run / "checkpoints").glob(".damaged-*"))) == 2
    save(run, 2)
    checkpoint.retain(run, keep=2, always=set())
    assert checkpoint.steps(run) == [1, 2]


def test_a_users_copy_of_a_checkpoint_is_left_alone(run):
    copy = run / "checkpoints/step-00000001.bak"
    copy.mkdir()
    checkpoint.retain(run, keep=1, always=set())
    assert checkpoint.steps(run) == [3]
    assert copy.is_dir()
