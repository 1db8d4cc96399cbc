"""A label for every token, from columns to a score: what no shipped configuration does."""

import pytest
from commands import launcher, run
from small_corpus import make, sentences


@pytest.mark.slow
def test_tags_are_learnt(folder):
    """Numbers, of which each sentence has one, are tagged; the others are O."""
    blocks = [
        "\n".join(f"{word} {'B-NUM' if word.rstrip('.').isdigit() else 'O'}" for word in text.split())
        for text in sentences(300, 7)
    ]
    (folder / "rows.conll").write_text("\n\n".join(blocks) + "\n")
    tagged = {"kind": "tag", "tokenizer": "wordpiece", "vocabulary": 300, "validation": 0.1}
    make(folder / "data", folder / "rows.conll", **tagged)
    shape = ["--data.task", "tag", "--data.sequence_length", 32, "--model.layers", 1, "--model.hidden", 64]
    length = ["--train.steps", 40, "--train.global_batch", 16, "--optimizer.lr", "5e-3", "--run.threads", 1]
    train = ["hvd-llm", "train", "bert-tiny", "--data.path", folder / "data", *shape, *length, "--out", folder / "run"]
    done = run(*launcher(2), *train)
    assert done.returncode == 0, done.stderr
    scored = run("hvd-llm", "evaluate", folder / "run", "--device", "cpu")
    assert scored.returncode == 0, scored.stderr
    measures = dict(line.split() for line in scored.stdout.splitlines()[1:])
    assert float(measures["accuracy"]) > 0.95
    assert float(measures["f1"]) > 0.9
