"""What leaves a run: a folder for plain transformers, and text."""

import argparse
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from hvd_llm import export as export_command
from hvd_llm import generate as generate_command
from hvd_llm import models
from hvd_llm.config import resolve
from hvd_llm.errors import UserError
from hvd_llm.export import export
from hvd_llm.generate import generate

T = 24


@pytest.fixture(scope="module")
def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {letter: 1 + number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def word_tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, "red", "green", "blue", "sky", "is", "the"])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{word.strip('[]').lower()}_token": word for word in special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def build(family: str, task: str, tokenizer):
    tree = {
        "data": {"task": task, "sequence_length": T},
        "model": {"family": family, "hidden": 32, "layers": 2, "heads": 2},
        "train": {"steps": 1},
    }
    return models.build(resolve(tree), len(tokenizer), ["no", "yes"], tokenizer).eval()


@pytest.fixture(scope="module")
def gpt(byte_tokenizer):
    return build("gpt2", "causal", byte_tokenizer)


@pytest.fixture(scope="module")
def bert(word_tokenizer):
    return build("bert", "masked", word_tokenizer)


@pytest.mark.parametrize(
    ("family", "task", "auto"),
    [
        ("gpt2", "causal", AutoModelForCausalLM),
        ("llama", "causal", AutoModelForCausalLM),
        ("bert", "masked", AutoModelForMaskedLM),
        ("bert", "classify", AutoModelForSequenceClassification),
    ],
)
def test_plain_transformers_loads_an_export_with_the_same_logits(family, task, auto, request, tmp_path):
    tokenizer = request.getfixturevalue("byte_tokenizer" if task == "causal" else "word_tokenizer")
    model = build(family, task, tokenizer)
    export(model, tokenizer, tmp_path / "out")
    theirs, their_tokenizer = auto.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the sky is blue"
    assert their_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    inputs = their_tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    with torch.no_grad():  # not always bit for bit: it maps the file, and products depend on alignment in memory
        torch.testing.assert_close(model(**inputs).logits, theirs(**inputs).logits, rtol=0, atol=1e-6)
    assert not list((tmp_path / "out").glob("*.bin"))


def test_an_export_never_mixes_with_what_is_there(gpt, byte_tokenizer, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        export(gpt, byte_tokenizer, tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        export(gpt, byte_tokenizer, tmp_path / "mine.txt")


def test_the_same_seed_gives_the_same_text(gpt, byte_tokenizer):
    one, again, other = (generate(gpt, byte_tokenizer, "def ", 16, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert one.startswith("def ")


def test_generating_leaves_the_random_numbers_alone(gpt, byte_tokenizer):
    before = torch.get_rng_state()
    generate(gpt, byte_tokenizer, "x", 4)
    assert torch.equal(before, torch.get_rng_state())


def test_greedy_text_is_the_likeliest_token_each_time(gpt, byte_tokenizer):
    ids = byte_tokenizer("ab")["input_ids"]
    for _ in range(5):
        ids.append(int(gpt(torch.tensor([ids])).logits[0, -1].argmax()))
    text = generate(gpt, byte_tokenizer, "ab", 5, temperature=0)
    assert text == byte_tokenizer.decode(ids, skip_special_tokens=True)
    assert text == generate(gpt, byte_tokenizer, "ab", 5, temperature=1.0, top_k=1), "top_k is ignored"


def test_text_ends_where_the_positions_do(gpt, byte_tokenizer):
    text = generate(gpt, byte_tokenizer, "a" * (T - 2), max_new_tokens=100, temperature=0)
    assert len(byte_tokenizer(text)["input_ids"]) <= T


def test_masks_are_filled_with_words(bert, word_tokenizer):
    prompt = "the [MASK] is [MASK]"
    one, again = (generate(bert, word_tokenizer, prompt, seed=3) for _ in range(2))
    assert one == again
    words = one.split()
    assert (words[0], words[2], len(words)) == ("the", "is", 4)
    assert set(words) <= {"red", "green", "blue", "sky", "is", "the"}
    assert len({generate(bert, word_tokenizer, prompt, temperature=5.0, seed=seed) for seed in range(8)}) > 1


def test_the_first_mask_takes_the_likeliest_word_at_temperature_0(bert, word_tokenizer):
    inputs = word_tokenizer("the [MASK]", return_tensors="pt", return_token_type_ids=False)
    logits_V = bert(**inputs).logits[0, 2].detach()
    logits_V[:5] = -torch.inf  # special tokens
    assert generate(bert, word_tokenizer, "the [MASK]", temperature=0).split()[1] == word_tokenizer.decode(
        logits_V.argmax()
    )


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ("", {}, "--prompt has 0 tokens"),
        ("a" * T, {}, f"--prompt has {T} tokens; allowed: 1 to {T - 1}"),
        ("a", {"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ("a", {"temperature": -0.1}, "--temperature is -0.1"),
        ("a", {"temperature": float("nan")}, "--temperature is nan"),
        ("a", {"temperature": float("inf")}, "--temperature is inf"),
        ("a", {"top_k": -1}, "--top-k is -1"),
        ("a", {"seed": -1}, "--seed is -1"),
    ],
)
def test_a_bad_request_is_refused(prompt, options, says, gpt, byte_tokenizer):
    with pytest.raises(UserError, match=says):
        generate(gpt, byte_tokenizer, prompt, **options)


def test_a_masked_model_wants_a_mask(bert, word_tokenizer):
    with pytest.raises(UserError, match=r"no \[MASK\]"):
        generate(bert, word_tokenizer, "the sky")


def test_a_classifier_generates_nothing(word_tokenizer):
    with pytest.raises(UserError, match="BertForSequenceClassification, which labels text"):
        generate(build("bert", "classify", word_tokenizer), word_tokenizer, "the sky")


def parse(command, *argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize("command", [export_command, generate_command])
def test_commands_refuse_what_is_not_a_run(command, tmp_path):
    more = ["--out", str(tmp_path / "out")] if command is export_command else ["--prompt", "x"]
    with pytest.raises(UserError, match="not a run folder"):
        command.run(parse(command, str(tmp_path), *more))
    assert not Path(tmp_path / "out").exists()


def test_commands_use_the_checkpoint_that_was_asked_for(gpt, byte_tokenizer, tmp_path, monkeypatch, capsys):
    asked = []

    def load_model(run, step):
        asked.append((run, step))
        return gpt, byte_tokenizer, None

    for command in (export_command, generate_command):
        monkeypatch.setattr(command, "load_model", load_model)
    export_command.run(parse(export_command, "RUN", "--out", str(tmp_path / "out"), "--step", "best"))
    generate_command.run(
        parse(generate_command, "RUN", "--prompt", "ab", "--max-new-tokens", "3", "--temperature", "0")
    )
    assert asked == [(Path("RUN"), "best"), (Path("RUN"), "latest")]
    assert capsys.readouterr().out.splitlines()[-1] == generate(gpt, byte_tokenizer, "ab", 3, temperature=0)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "out").lm_head.weight, gpt.lm_head.weight)
