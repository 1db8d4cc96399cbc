"""Every shipped configuration loads, builds, and is what its comment claims."""

import re
from types import SimpleNamespace

import pytest
import torch

from hvd_llm import models
from hvd_llm.config import load, shipped
from hvd_llm.errors import UserError

TOKENIZER = SimpleNamespace(pad_token_id=0, bos_token_id=0, eos_token_id=0)
FINE_TUNING = {"bert-finetune"}  # the pretrained folder decides the rest


def comment(name: str) -> str:
    lines = shipped()[name].read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines[: lines.index("")] if line.startswith("#"))


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_promised_configurations_are_there():
    small = {"gpt-tiny", "bert-tiny", "bert-tiny-classify", "llama-tiny"}
    assert shipped().keys() >= small | {"gpt2-124m", "bert-base", "bert-large", "llama-1b", "bert-finetune"}


@pytest.mark.parametrize("name", shipped())
def test_its_comment_says_how_it_is_launched_and_what_it_needs(name):
    text = comment(name)
    assert re.search(rf"hvd-llm train {name}\b", text)
    assert re.search(r"Memory: \d", text)
    assert f"--out {load(name).data.path}" in text, "the comment prepares other data than the settings read"


@pytest.mark.parametrize("name", sorted(set(shipped()) - FINE_TUNING))
def test_it_has_the_parameters_that_its_comment_claims(name):
    text = comment(name)
    claimed, vocabulary = re.search(r"# ([\d,]+) parameters with a vocabulary of ([\d,]+)", text).groups()
    labels = re.search(r" and (\d+) labels", text)
    names = [f"label {i}" for i in range(int(labels[1]))] if labels else []
    with torch.device("meta"):
        model = models.build(load(name), number(vocabulary), names, TOKENIZER)
    assert sum(parameter.numel() for parameter in model.parameters()) == number(claimed)
    state = re.search(r"([\d.]+) GB per rank for weights, gradients and AdamW", text)
    if state:
        assert float(state[1]) == pytest.approx(16 * number(claimed) / 1e9, abs=0.05)


@pytest.mark.parametrize("name", sorted(FINE_TUNING))
def test_fine_tuning_takes_its_body_from_a_folder(name, tmp_path):
    small = {
        "model.hidden": "16",
        "model.layers": "1",
        "model.heads": "2",
        "model.dropout": "0.3",
        "model.pretrained": "",
    }
    models.build(load(name, small), 50, ["a", "b"], TOKENIZER).save_pretrained(tmp_path)
    model = models.build(load(name, {"model.pretrained": str(tmp_path)}), 50, ["a", "b", "c"], TOKENIZER)
    assert model.config.hidden_size == 16
    assert model.config.num_labels == 3
    assert model.config.hidden_dropout_prob == load(name, {}).model.dropout


@pytest.mark.parametrize("name", sorted(FINE_TUNING))
def test_fine_tuning_never_starts_from_scratch_by_oversight(name):
    with pytest.raises(UserError, match=r"model\.pretrained .*no such folder"):
        models.build(load(name), 50, ["a", "b"], TOKENIZER)


@pytest.mark.parametrize("name", [name for name in shipped() if name.endswith("-tiny") or "-tiny-" in name])
def test_small_ones_take_a_step_downhill(name):
    config = load(name)
    labels = ["a", "b", "c"] if config.data.task == "classify" else []
    model = models.build(config, 256, labels, TOKENIZER)
    tokens_BT = torch.arange(2 * config.data.sequence_length).view(2, -1) % 256
    batch = {"input_ids": tokens_BT, "labels": torch.tensor([0, 1]) if labels else tokens_BT}
    optimizer = torch.optim.AdamW(models.decay_groups(model.eval(), config.optimizer.weight_decay), lr=1e-3)
    losses = []
    for _ in range(3):
        loss, count = models.loss_sum(model, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
