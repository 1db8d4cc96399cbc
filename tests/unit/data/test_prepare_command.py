"""The command line of `hvd-llm prepare`."""

import argparse
import subprocess
import sys

import pytest

from hvd_llm.data import command, open_dataset
from hvd_llm.errors import UserError


def prepare(*arguments):
    parser = argparse.ArgumentParser(prog="hvd-llm prepare")
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_prepare_again_verify_and_replace(texts, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [texts, "--out", out, "--vocabulary", 300, "--shards", 2, "--workers", 1]
    prepare(*arguments)
    said = capsys.readouterr().out
    assert "train: " in said
    assert "in 2 shards, which differ by 0." in said
    first = open_dataset(out).fingerprint
    prepare(*arguments)
    assert "already prepared" in capsys.readouterr().out
    prepare("--verify", out)
    assert first in capsys.readouterr().out
    with pytest.raises(UserError, match="--force"):
        prepare(*arguments, "--lowercase")
    prepare(*arguments, "--lowercase", "--force")
    assert open_dataset(out).fingerprint != first
    assert open_dataset(out).index.settings["lowercase"] is True


def test_a_truncated_shard_is_prepared_again(texts, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [texts, "--out", out, "--vocabulary", 300, "--shards", 2, "--workers", 1]
    prepare(*arguments)
    whole = (out / "train-00001.tokens").read_bytes()
    (out / "train-00001.tokens").write_bytes(whole[:-1])
    capsys.readouterr()
    prepare(*arguments)
    assert f"{len(whole) - 1} bytes where its index says {len(whole)}" in capsys.readouterr().out
    assert (out / "train-00001.tokens").read_bytes() == whole


def test_defaults_follow_the_kind(tmp_path):
    (tmp_path / "a.tsv").write_text("".join(f"text {n}\t{n % 2}\n" for n in range(20)))
    prepare(tmp_path / "a.tsv", "--kind", "classify", "--out", tmp_path / "out", "--workers", 1)
    assert open_dataset(tmp_path / "out").index.settings["near_duplicates"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embedded"], "--out is missing"),
        (["embedded", "--out", "s3://bucket/x"], "must be a local folder"),
        (["--out", "x"], "at least one SOURCE"),
        (["embedded", "--out", "x", "--validation", "2"], "--validation is 2"),
        (["embedded", "--out", "x", "--workers", "-1"], "--workers is -1"),
        (["embedded", "--out", "x", "--kind", "tag"], "no labels for words"),
        (["embedded", "--out", "x", "--tokenizer", "gpt5"], "bpe, wordpiece, or a folder"),
        (["--verify", "nowhere"], "not a prepared folder"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        prepare(*arguments)
    assert not list(tmp_path.iterdir())


def test_out_is_a_file(texts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        prepare(texts, "--out", tmp_path / "file")


def test_help_shows_every_option(capsys):
    with pytest.raises(SystemExit):
        prepare("--help")
    said = capsys.readouterr().out
    for word in ("embedded", "--no-near-duplicates", "--text-field", "--validation-source", "s3://", "examples:"):
        assert word in said


def test_heavy_libraries_wait_until_they_are_needed():
    """A finished folder is recognised in well under two seconds because of this."""
    code = "import sys; from hvd_llm.data import command, plan; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "transformers", "datasets", "pyarrow", "pandas", "tokenizers"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
