import pytest

from hvd_llm import config
from hvd_llm.errors import UserError
from hvd_llm.train_command import overrides

STEPS = {"train": {"steps": 10}}


def test_resolving_what_was_saved_gives_the_same():
    resolved = config.load("gpt-tiny", {"optimizer.lr": "0.5", "train.compile": "true"})
    assert resolved.optimizer.lr == 0.5
    assert resolved.train.compile is True
    assert config.resolve(config.to_dict(resolved)) == resolved


def test_a_file_is_read_and_overridden(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nsteps = 3\nglobal_batch = 4\n")
    resolved = config.load(str(path), {"train.steps": "5"})
    assert (resolved.train.steps, resolved.train.global_batch) == (5, 4)


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"trian": {}}, "there is no section 'trian'; did you mean 'train'?"),
        ({"train": {"step": 1}}, "there is no setting 'train.step'; did you mean 'steps'?"),
        ({"train": {"steps": "ten"}}, "train.steps is 'ten': "),
        ({"train": {"steps": 1.5}}, "train.steps is 1.5: "),
        ({"train": {"steps": 1}, "model": {"dropout": 1}}, "model.dropout is 1: "),
        ({"train": {"steps": 1}, "optimizer": {"lr": float("inf")}}, "optimizer.lr is inf: "),
        ({"train": {"steps": 1}, "run": {"device": "gpu"}}, "run.device is 'gpu': "),
        ({}, "give one of train.steps and train.epochs"),
        (STEPS | {"data": {"whole_word": True}}, "data.whole_word needs"),
        (STEPS | {"model": {"kv_heads": 2}}, "model.kv_heads is 2"),
        (STEPS | {"optimizer": {"schedule": "wsd", "warmup": 0.9, "decay": 0.2}}, "optimizer.warmup + optimizer.decay"),
        (STEPS | {"optimizer": {"name": "zero_one_adam"}, "sync": {"every": 4}}, "optimizer.name is 'zero_one_adam'"),
        (STEPS | {"sync": {"every": 4, "late": "add"}}, "sync.late is 'add'"),
        (STEPS | {"trace": {"enabled": False, "horovod_timeline": True}}, "trace.horovod_timeline needs"),
    ],
)
def test_what_is_wrong_is_named(tree, sentence):
    with pytest.raises(UserError) as caught:
        config.resolve(tree)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_every_setting_is_explained():
    text = config.help_text()
    for section, values in config.to_dict(config.Config()).items():
        for key in values:
            line = text.index(f"  --{section}.{key} ")
            explanation = text[line:].splitlines()[1].strip()
            assert len(explanation) > 10, f"{section}.{key} is not explained"
            assert explanation != "None"


def test_overrides():
    words = ["--train.steps", "3", "--optimizer.lr=1e-3", "--resume", "auto", "--out", "runs/x", "--data", "d"]
    expected = {"train.steps": "3", "optimizer.lr": "1e-3", "run.resume": "auto", "run.dir": "runs/x", "data.path": "d"}
    assert overrides(words) == expected
