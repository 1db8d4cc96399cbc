"""Every shipped configuration trains: two real steps, with the large ones narrowed."""

import pytest
from commands import run
from small_corpus import make, paragraphs, sentences

from hvd_llm import models
from hvd_llm.config import load, shipped
from hvd_llm.data import open_dataset

# What makes two steps take seconds; everything else is as shipped.
BRIEF = {"train.global_batch": 4, "train.micro_batch": 2, "data.sequence_length": 32}
STEPS = {"train.steps": 2, "train.epochs": 0}
NARROW = {"model.layers": 2, "model.hidden": 64, "model.heads": 4, "model.intermediate": 128}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    (folder / "text.txt").write_text("\n\n".join(paragraphs(20)))
    rows = [f"{text}\t{'long' if len(text) > 60 else 'short'}" for text in sentences(300, 5)]
    (folder / "rows.tsv").write_text("\n".join(rows))
    make(folder / "causal", folder / "text.txt", vocabulary=300, validation=0.1)
    make(folder / "masked", folder / "text.txt", tokenizer="wordpiece", vocabulary=300, validation=0.1)
    make(
        folder / "classify", folder / "rows.tsv", kind="classify", tokenizer="wordpiece", vocabulary=300, validation=0.1
    )
    return folder


@pytest.fixture(scope="module")
def pretrained(folders):
    """A local folder as a fine-tuning recipe wants it."""
    dataset = open_dataset(folders / "classify")
    small = {name: str(value) for name, value in NARROW.items()} | {"model.pretrained": ""}
    model = models.build(load("bert-finetune", small), dataset.vocabulary, dataset.labels, dataset.tokenizer())
    model.save_pretrained(folders / "bert")
    return folders / "bert"


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
def test_it_trains(name, folders, pretrained, folder):
    config = load(name)
    settings = BRIEF | STEPS | {"data.path": folders / config.data.task}
    if config.model.pretrained:
        settings["model.pretrained"] = pretrained
    elif "tiny" not in name:
        settings |= NARROW
    options = [word for key, value in settings.items() for word in (f"--{key}", value)]
    done = run("hvd-llm", "train", name, "--out", folder / "run", *options)
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stderr
    assert (folder / "run/checkpoints/step-00000002/model.safetensors").exists()
