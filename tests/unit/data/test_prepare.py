"""The whole pipeline: the same result with any number of workers, after any interruption, and only once."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
import small_corpus
from small_corpus import make, paragraphs

from hvd_llm.data import index, open_dataset, plan
from hvd_llm.data.files import only_one
from hvd_llm.data.plan import Settings, finished, make_plan
from hvd_llm.errors import UserError


@pytest.fixture
def small_parts(monkeypatch):
    """Units of work so small that little text makes many."""
    monkeypatch.setattr(plan, "_PART_BYTES", (8_000, 8_000))


def content(folder):
    """Name and bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tokenizer", ["bpe", "wordpiece"])
def test_workers_do_not_change_a_byte(texts, tmp_path, small_parts, tokenizer):
    one = make(tmp_path / "one", texts, workers=1, tokenizer=tokenizer, near_duplicates=True)
    two = make(tmp_path / "two", texts, workers=2, tokenizer=tokenizer, near_duplicates=True)
    assert one == two
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert not (tmp_path / "two" / ".work").exists()
    assert not (tmp_path / "two" / ".lock").exists()


# Children die by SIGKILL just before their n-th rename, the moment at which something becomes finished.
DIE_EVERYWHERE = """
import os, signal, sys
from pathlib import Path
import tokenizers, torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from hvd_llm.data import files, plan, prepare
plan._PART_BYTES = (30_000, 30_000)
source, out = sys.argv[1:3]
settings = plan.Settings(vocabulary=300, shards=2)

def run(deadline):
    count = 0
    def counting(rename):
        def renamed(*paths):
            nonlocal count
            count += 1
            if count == deadline:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*paths)
        return renamed
    files.os.rename, files.os.replace = counting(os.rename), counting(os.replace)
    prepare.prepare(plan.make_plan({"train": [source]}, settings), Path(out), 1)

for deadline in range(100):
    child = os.fork()
    if not child:
        run(1 + deadline % 6)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        assert status == 0
        print(deadline)
        break
"""


def test_killed_at_every_moment_it_still_ends_the_same(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_PART_BYTES", (30_000, 30_000))
    whole = make(tmp_path / "whole", texts, vocabulary=300, shards=2, near_duplicates=True)
    command = [sys.executable, "-c", DIE_EVERYWHERE, str(texts), str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5, "it was not killed often enough to mean something"
    assert index.read(tmp_path / "killed").fingerprint == whole.fingerprint
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_killed_with_workers(texts, tmp_path, monkeypatch):
    """No worker outlives a killed parent, and the next run finishes its work."""
    script = textwrap.dedent("""
        import sys
        from small_corpus import make
        from hvd_llm.data import plan
        if __name__ == "__main__":
            plan._PART_BYTES = (8_000, 8_000)
            make(sys.argv[2], sys.argv[1], workers=2)
    """)
    (tmp_path / "script.py").write_text(script.replace("sys.argv[2]", "__import__('pathlib').Path(sys.argv[2])"))
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": os.path.dirname(small_corpus.__file__)}
    process = subprocess.Popen([sys.executable, tmp_path / "script.py", texts, out], env=environment)
    while not list((out / ".work").glob("texts-*")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert gone
    assert not alive
    assert not (out / "index.json").exists()

    monkeypatch.setattr(plan, "_PART_BYTES", (8_000, 8_000))
    left = {path: path.stat().st_mtime_ns for path in (out / ".work").glob("texts-*/text")}
    assert left
    again = make(out, texts)
    assert again == make(tmp_path / "whole", texts)


def test_finished_parts_are_used_again(texts, tmp_path, small_parts, monkeypatch):
    from hvd_llm.data import spool

    class StopError(Exception):
        pass

    calls = []

    def read_some(*args):
        if len(calls) == 5:
            raise StopError
        calls.append(args[0])
        return real(*args)

    real = spool.write_texts
    monkeypatch.setattr(spool, "write_texts", read_some)
    with pytest.raises(StopError):
        make(tmp_path / "out", texts)
    marks = {path: path.stat().st_mtime_ns for path in calls}
    seen = {}

    def look(*args):
        before = args[0].exists() and args[0].stat().st_mtime_ns
        real(*args)
        seen[args[0]] = before

    monkeypatch.setattr(spool, "write_texts", look)
    make(tmp_path / "out", texts)
    assert {path: stamp for path, stamp in seen.items() if stamp} == marks


def test_other_settings_start_anew(texts, tmp_path):
    """What an interrupted run left is of no use to another one, and does not stay."""
    (tmp_path / "out" / ".work" / "texts-00000").mkdir(parents=True)
    (tmp_path / "out" / ".work" / "plan.json").write_text("{}")
    (tmp_path / "out" / "train-00077.tokens").write_text("old")
    assert make(tmp_path / "out", texts) == make(tmp_path / "whole", texts)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_what_is_finished_is_recognised(texts, tmp_path):
    out = tmp_path / "out"
    settings = Settings(vocabulary=300, near_duplicates=False)
    assert finished(make_plan({"train": [str(texts)]}, settings), out) is None
    made = make(out, texts, vocabulary=300)
    assert finished(make_plan({"train": [str(texts)]}, settings), out) == made
    with pytest.raises(UserError, match="--vocabulary 300, not 301"):
        finished(make_plan({"train": [str(texts)]}, Settings(vocabulary=301)), out)
    with pytest.raises(UserError, match="other sources"):
        finished(make_plan({"train": [str(texts / "01.txt")]}, settings), out)


def test_a_folder_of_somebody_else_is_left_alone(texts, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not an empty folder \(it has thesis\.tex\)"):
        finished(make_plan({"train": [str(texts)]}, Settings()), tmp_path)
    make(tmp_path, texts)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_only_one_at_a_time(texts, tmp_path):
    with only_one(tmp_path), pytest.raises(UserError, match="another `hvd-llm prepare`"):
        make(tmp_path, texts)


def test_three_splits_and_their_order(tmp_path):
    """Given evaluation text keeps its order, so that its windows read on from one document to the next."""
    for name, count, seed in (("train", 20, 1), ("dev", 5, 2), ("test", 4, 3)):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(paragraphs(count, seed)))
    given = {"validation_source": [tmp_path / "dev.txt"], "test_source": [tmp_path / "test.txt"]}
    made = make(tmp_path / "out", tmp_path / "train.txt", **given)
    assert list(made.splits) == ["train", "validation", "test"]
    dataset = open_dataset(tmp_path / "out")
    for name, file in (("validation", "dev.txt"), ("test", "test.txt")):
        split = dataset.split(name)
        text = dataset.tokenizer().decode(split.stream(0, split.tokens), skip_special_tokens=True)
        assert text == (tmp_path / file).read_text()


def test_nothing_to_read(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n ")
    with pytest.raises(UserError, match="no document for training"):
        make(tmp_path / "out", tmp_path / "empty.txt")
    (tmp_path / "full.txt").write_text("text")
    with pytest.raises(UserError, match="--test-source holds no document"):
        make(tmp_path / "out", tmp_path / "full.txt", test_source=[tmp_path / "empty.txt"])
    for settings, message in [({"validation": 0.0}, "between 0 and 1"), ({"shards": 0}, "--shards is 0")]:
        with pytest.raises(UserError, match=message):
            make(tmp_path / "out", tmp_path / "full.txt", **settings)


def test_large_vocabularies_need_wider_tokens(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"</s>": 0} | {f"w{number}": number for number in range(1, 70_000)}
    wide = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    wide.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=wide, eos_token="</s>").save_pretrained(tmp_path / "wide")
    (tmp_path / "a.csv").write_text("w65534 w65535 w65536 w69999\nw69998\n")
    assert make(tmp_path / "out", tmp_path / "a.csv", tokenizer=str(tmp_path / "wide")).dtype == "uint32"
    dataset = open_dataset(tmp_path / "out")
    found = [dataset.split(name).document(0).tolist() for name in ("train", "validation")]
    assert sorted(found) == [[65534, 65535, 65536, 69999, 0], [69998, 0]]
