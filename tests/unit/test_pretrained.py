"""Models from folders: what loads, what is fresh, and what is refused."""

import json
import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd_llm import models
from hvd_llm.config import resolve
from hvd_llm.errors import UserError

TOKENIZER = SimpleNamespace(pad_token_id=0, bos_token_id=1, eos_token_id=2)
V, T = 67, 16


def config_of(task, family="gpt2", pretrained="", seed=1, dropout=0.0, sequence_length=T):
    model = {"family": family, "hidden": 16, "layers": 2, "heads": 2, "pretrained": str(pretrained), "dropout": dropout}
    return resolve(
        {
            "run": {"seed": seed},
            "data": {"task": task, "sequence_length": sequence_length},
            "model": model,
            "train": {"steps": 1},
        }
    )


def build(task, labels=("no", "yes"), vocabulary=V, **which):
    return models.build(config_of(task, **which), vocabulary, list(labels), TOKENIZER)


def weights(model) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def same(a, b, only="") -> bool:
    return all(torch.equal(tensor, weights(b)[name]) for name, tensor in weights(a).items() if only in name)


LANGUAGE = [("gpt2", "causal"), ("bert", "masked"), ("llama", "causal")]


@pytest.mark.parametrize(("family", "task"), LANGUAGE)
def test_a_saved_model_comes_back_bit_for_bit(family, task, tmp_path):
    first = build(task, family=family, seed=5)
    first.save_pretrained(tmp_path)
    again = build(task, pretrained=tmp_path, seed=6)
    assert again.training
    assert weights(first).keys() == weights(again).keys()
    assert same(first, again)


@pytest.mark.parametrize(("family", "task"), LANGUAGE)
@pytest.mark.parametrize("new", ["classify", "tag"])
def test_a_new_task_keeps_the_body_and_seeds_the_head(family, task, new, tmp_path, caplog):
    pretrained = build(task, family=family)
    pretrained.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="hvd_llm.models"):
        one = build(new, pretrained=tmp_path, seed=1)
    (line,) = [record.getMessage() for record in caplog.records if "fresh weights" in record.getMessage()]
    head = [name for name in weights(one) if name not in weights(pretrained)]
    assert head
    assert all(name in line for name in head)
    for name, tensor in weights(one).items():
        assert name in head or torch.equal(tensor, weights(pretrained)[name])
    before = torch.get_rng_state()
    assert same(one, build(new, pretrained=tmp_path, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    matrix = next(name for name in head if weights(one)[name].dim() == 2)
    assert not torch.equal(weights(one)[matrix], weights(build(new, pretrained=tmp_path, seed=2))[matrix])


def test_a_head_for_other_labels_is_replaced(tmp_path):
    build("classify", family="bert", labels="ab").save_pretrained(tmp_path)
    model = build("classify", labels="abc", pretrained=tmp_path)
    assert model.classifier.weight.shape[0] == 3
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_head_for_the_same_labels_is_kept(tmp_path):
    first = build("classify", family="bert", labels="ab", seed=3)
    first.save_pretrained(tmp_path)
    assert same(first, build("classify", labels="ab", pretrained=tmp_path, seed=4))


def test_half_precision_weights_are_widened_and_dropout_is_ours(tmp_path):
    build("masked", family="bert").to(torch.bfloat16).save_pretrained(tmp_path)
    model = build("masked", pretrained=tmp_path, dropout=0.25)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    dropouts = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {0.25}


def test_weights_do_not_depend_on_the_file_after_loading(tmp_path):
    build("causal").save_pretrained(tmp_path)
    model = build("causal", pretrained=tmp_path)
    before = {name: tensor.clone() for name, tensor in weights(model).items()}
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * (tmp_path / "model.safetensors").stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_code_named_by_the_folder_is_not_run(tmp_path):
    build("causal").save_pretrained(tmp_path)
    edit(tmp_path, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}, custom="x")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: ...\nclass Config: ...\n")
    build("causal", pretrained=tmp_path)
    assert not (tmp_path / "ran").exists()


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def pickled(folder):
    no_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fewer_layers_in_file(folder):
    edit(folder, n_layer=4)


def narrower(folder):
    edit(folder, n_embd=32)


BROKEN = [
    (shutil.rmtree, "there is no such folder"),
    (no_weights, "there is no model.safetensors"),
    (pickled, r"pytorch_model.bin, a pickle"),
    (cut_short, "cannot load the model"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot load the model"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100), "cannot load the model"),
    (lambda folder: (folder / "config.json").unlink(), "cannot read .*config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot read .*config.json"),
    (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "cannot read .*config.json"),
    (lambda folder: (folder / "config.json").write_text("[" * 100_000), "cannot read .*config.json"),
    (lambda folder: (folder / "config.json").write_text("[1]"), "model_type None; allowed: gpt2, bert, llama"),
    (lambda folder: edit(folder, model_type="t5"), "model_type 't5'; allowed: gpt2, bert, llama"),
    (lambda folder: edit(folder, model_type=["gpt2"]), "model_type"),
    (lambda folder: edit(folder, n_layer="many"), "cannot use .*config.json"),
    (lambda folder: edit(folder, n_head=3), "cannot load the model"),
    (lambda folder: edit(folder, activation_function="evil"), "cannot load the model"),
    (lambda folder: edit(folder, quantization_config={"quant_method": "bitsandbytes"}), "quantised"),
    (fewer_layers_in_file, "lack .* first transformer.h.2"),
    (narrower, "lack .* other shapes"),
]


@pytest.mark.parametrize(("harm", "says"), BROKEN)
def test_an_unusable_folder_is_refused_in_one_sentence(harm, says, tmp_path):
    folder = tmp_path / "model"
    build("causal").save_pretrained(folder)
    harm(folder)
    with pytest.raises(UserError, match=says) as caught:
        build("causal", pretrained=folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ({"task": "masked"}, "gpt2 model, which cannot do data.task 'masked'"),
        ({"task": "causal", "vocabulary": V + 1}, f"vocabulary of {V}, but .* has {V + 1}"),
        (
            {"task": "causal", "sequence_length": T + 1},
            f"data.sequence_length is {T + 1}, longer than the {T} positions",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_run_is_refused(which, says, tmp_path):
    build("causal").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=says):
        build(pretrained=tmp_path, **which)


@given(
    place=st.integers(0, 10**6), byte=st.integers(0, 255), name=st.sampled_from(["config.json", "model.safetensors"])
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_wrong_byte_never_ends_in_a_traceback(place, byte, name, tmp_path):
    folder = tmp_path / "model"
    build("causal").save_pretrained(folder)
    path = folder / name
    data = bytearray(path.read_bytes())
    # The header decides; a flipped bit in a weight is another weight, and what hashes are for.
    data[place % min(len(data), 2000)] = byte
    path.write_bytes(data)
    tokens_BT = torch.ones(1, 4, dtype=torch.int64)
    try:
        model = build("causal", pretrained=folder)
    except UserError as error:
        sentence = str(error)
    else:
        models.loss_sum(model, {"input_ids": tokens_BT, "labels": tokens_BT})
        sentence = ""
    assert "\n" not in sentence


def checkpoint(model, folder):
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file({name: tensor.detach().clone() for name, tensor in weights(model).items()}, folder / "model.safetensors")
    model.config.save_pretrained(folder)


@pytest.mark.parametrize(("family", "task"), [*LANGUAGE, ("bert", "classify"), ("llama", "tag"), ("gpt2", "classify")])
def test_a_checkpoint_needs_no_settings_to_be_rebuilt(family, task, tmp_path):
    model = build(task, family=family, seed=9).eval()
    checkpoint(model, tmp_path)
    before = torch.get_rng_state()
    again = models.from_checkpoint(tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert type(again) is type(model)
    assert not again.training
    assert same(model, again)
    assert len(weights(model)) == len(weights(again)), "a tie was lost"
    tokens_BT = torch.arange(2 * T).view(2, T) + 3
    assert torch.equal(model(tokens_BT).logits, again(tokens_BT).logits)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda named: named.pop("transformer.ln_f.weight"), "first transformer.ln_f.weight"),
        (lambda named: named.update({"transformer.extra": torch.ones(2)}), "first transformer.extra"),
        (lambda named: named.update({"transformer.ln_f.weight": torch.ones(2)}), "first transformer.ln_f.weight"),
    ],
)
def test_a_checkpoint_with_other_weights_is_refused(change, says, tmp_path):
    from safetensors.torch import save_file

    model = build("causal")
    checkpoint(model, tmp_path)
    named = {name: tensor.detach().clone() for name, tensor in weights(model).items()}
    change(named)
    save_file(named, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=says):
        models.from_checkpoint(tmp_path)


def test_a_checkpoint_of_an_unknown_architecture_is_refused(tmp_path):
    checkpoint(build("causal"), tmp_path)
    edit(tmp_path, architectures=["GPT2DoubleHeadsModel"])
    with pytest.raises(UserError, match="architecture 'GPT2DoubleHeadsModel'; allowed: GPT2LMHeadModel"):
        models.from_checkpoint(tmp_path)
