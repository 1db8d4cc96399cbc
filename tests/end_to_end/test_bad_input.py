"""What users get wrong, over every command: one sentence, exit code 2, no traceback, nobody left behind."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from commands import BIN, ENVIRONMENT, launcher, run

from analysis import __main__ as analysis
from hvd_llm import __main__ as hvd_llm
from hvd_llm import runfolder


@pytest.fixture(scope="session")
def trained(config, tmp_path_factory):
    """A finished run that every test may copy."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    done = run("hvd-llm", "train", config, "--out", folder, "--train.steps", 14)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def place(folder, data, config, trained, monkeypatch):
    """A folder to be in, with its own copies of good data, a good run and a good configuration."""
    shutil.copytree(data, folder / "data")
    shutil.copytree(trained, folder / "run")
    (folder / "good.toml").write_text(config.read_text().replace(str(data), "data"))
    (folder / "text.txt").write_text("some text\n\nand more\n" * 50)
    monkeypatch.chdir(folder)
    return folder


def replace_in(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def truncate(path, share: float = 0.5) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def flip(path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap_tokens(path) -> None:
    """Let two tokens of a tokenizer.json change places."""
    tree = json.loads(path.read_text())
    numbers = tree["model"]["vocab"]
    (one, first), (other, second) = list(numbers.items())[100:102]
    numbers |= {one: second, other: first}
    path.write_text(json.dumps(tree))


def last(place):
    return place / "run" / "checkpoints" / "step-00000014"


def toml(text: str):
    return lambda place: (place / "bad.toml").write_text(text)


def nothing(place):
    pass


TRAIN = "train good.toml --out new"
RESUME = "train good.toml --out run --resume auto"

# what is typed, what is done to the folder first, what the sentence must name
CASES = {
    "no such command": ("trian", nothing, "did you mean 'train'"),
    "no such configuration": ("train gpt-tinny", nothing, "did you mean 'gpt-tiny'"),
    "no configuration": ("train", nothing, "config"),
    "configuration file absent": ("train absent.toml", nothing, "absent.toml"),
    "malformed TOML": ("train bad.toml", toml("[train\nsteps = 1"), "bad.toml"),
    "TOML of bytes": ("train bad.toml", lambda p: (p / "bad.toml").write_bytes(b"\xff\xfe\x00"), "bad.toml"),
    "unknown section": ("train bad.toml", toml("[trian]\nsteps = 1"), "did you mean 'train'"),
    "unknown key": ("train bad.toml", toml("[train]\nstep = 1"), "did you mean 'steps'"),
    "section is a number": ("train bad.toml", toml("train = 3"), "train"),
    "text for a number": (f"{TRAIN} --train.steps many", nothing, "train.steps"),
    "negative": (f"{TRAIN} --train.global_batch -4", nothing, "train.global_batch"),
    "not a number": (f"{TRAIN} --optimizer.lr nan", nothing, "optimizer.lr"),
    "unknown choice": (f"{TRAIN} --optimizer.name adam", nothing, "optimizer.name"),
    "override without value": (f"{TRAIN} --train.steps", nothing, "--train.steps"),
    "stray word": (f"{TRAIN} steps=3", nothing, "steps=3"),
    "unknown override": (f"{TRAIN} --train.stepz 3", nothing, "did you mean 'steps'"),
    "steps and epochs": (f"{TRAIN} --train.epochs 2", nothing, "train.epochs"),
    "heads do not divide": (f"{TRAIN} --model.heads 3", nothing, "model.heads"),
    "task needs another family": (f"{TRAIN} --data.task masked", nothing, "model.family"),
    "sequence longer than positions": (f"{TRAIN} --model.positions 8", nothing, "model.positions"),
    "compile and recompute": (
        f"{TRAIN} --train.compile true --train.activation_checkpointing true",
        nothing,
        "train.compile",
    ),
    "no such compressor": (f"{TRAIN} --reduce.compressor nome", nothing, "did you mean 'none'"),
    "no such option of a compressor": (f"{TRAIN} --reduce.compressor topk(kepe=3)", nothing, "did you mean 'keep'"),
    "option of another type": (f"{TRAIN} --reduce.compressor topk(keep=0.5)", nothing, "keep is 0.5"),
    "option out of range": (f"{TRAIN} --reduce.compressor topk(keep=33)", nothing, "multiple of 8"),
    "no such compressor in another": (f"{TRAIN} --reduce.compressor hierarchical(across=tokp)", nothing, "mean 'topk'"),
    "option that the other has not": (
        f"{TRAIN} --reduce.compressor hierarchical(feedback=1,across='dgc(keep=8)')",
        nothing,
        "no option 'feedback'",
    ),
    "compressor in another that knows hosts": (
        f"{TRAIN} --reduce.compressor hierarchical(across=hierarchical)",
        nothing,
        "cannot be used across nodes",
    ),
    "compressor that is no name": (f"{TRAIN} --reduce.compressor topk(", nothing, "write a name"),
    "delay as long as a round": (f"{TRAIN} --sync.every 4 --sync.delay 4", nothing, "sync.delay is 4"),
    "warm-up of ranks apart": (f"{TRAIN} --sync.every 4 --reduce.warmup_steps 3", nothing, "sync.after"),
    "two ways to be late": (
        f"{TRAIN} --reduce.delay 1 --reduce.overlap forward --optimizer.clip_norm 0",
        nothing,
        "cannot be 'forward' besides",
    ),
    "late gradients of ranks apart": (f"{TRAIN} --reduce.delay 1 --sync.every 4", nothing, "it is sync.delay that"),
    "late gradients and auto": (f"{TRAIN} --reduce.delay 1 --reduce.compressor auto", nothing, "name a compressor"),
    "late gradients in fp16": (f"{TRAIN} --reduce.delay 1 --train.precision fp16", nothing, "take 'bf16'"),
    "late gradients, compiled": (f"{TRAIN} --reduce.delay 1 --train.compile true", nothing, "train.compile cannot"),
    "late updates and this step's norm": (f"{TRAIN} --reduce.overlap forward", nothing, "optimizer.clip_by to 'last'"),
    "late updates of ranks apart": (
        f"{TRAIN} --reduce.overlap forward --optimizer.clip_norm 0 --sync.every 4",
        nothing,
        "sync.delay hides",
    ),
    "late updates in fp16": (
        f"{TRAIN} --reduce.overlap forward --optimizer.clip_norm 0 --train.precision fp16",
        nothing,
        "take 'bf16'",
    ),
    "auto with another option": (f"{TRAIN} --reduce.compressor auto(of=2)", nothing, "auto has one option"),
    "auto among nothing known": (f"{TRAIN} --reduce.compressor auto(among='nome')", nothing, "did you mean 'none'"),
    "apart in fp16": (f"{TRAIN} --sync.every 4 --train.precision fp16", nothing, "take 'bf16'"),
    "resume which run": ("train good.toml --resume auto", nothing, "--out"),
    "patience without evaluations": (f"{TRAIN} --evaluate.every 0 --evaluate.patience 2", nothing, "evaluate.patience"),
    "half of a short setting": (f"{TRAIN} --lr 3", nothing, "did you mean --optimizer.lr"),
    "setting of another section": (f"{TRAIN} --model.lr 3", nothing, "did you mean 'optimizer.lr'"),
    "share that is not a number": (f"{TRAIN} --optimizer.warmup nan", nothing, "optimizer.warmup"),
    "batch larger than memory": (f"{TRAIN} --model.positions 1000000000000", nothing, "out of memory"),
    "name that is too long": (f"train good.toml --out {'x' * 300}", nothing, "name too long"),
    "model of a name that is too long": (f"{TRAIN} --model.pretrained {'x' * 300}", nothing, "name too long"),
    "no GPU": (f"{TRAIN} --run.device cuda", nothing, "run.device"),
    "data absent": (f"{TRAIN} --data.path nowhere", nothing, "nowhere"),
    "data of another kind": (f"{TRAIN} --data.task classify --model.family bert", nothing, "classify"),
    "index is not JSON": (TRAIN, lambda p: (p / "data/index.json").write_text("{"), "index.json"),
    "index edited": (TRAIN, lambda p: replace_in(p / "data/index.json", '"dtype"', '"type"'), "index.json"),
    "shard missing": (TRAIN, lambda p: (p / "data/train-00000.tokens").unlink(), "train-00000.tokens"),
    "shard truncated": (TRAIN, lambda p: truncate(p / "data/train-00000.tokens"), "train-00000.tokens"),
    "tokenizer missing": (TRAIN, lambda p: shutil.rmtree(p / "data/tokenizer"), "tokenizer"),
    "shard altered": ("prepare --verify data", lambda p: flip(p / "data/train-00000.tokens"), "train-00000.tokens"),
    "batch larger than the data": (f"{TRAIN} --data.sequence_length 1000000", nothing, "data.sequence_length"),
    "pretrained folder absent": (f"{TRAIN} --model.pretrained nowhere", nothing, "nowhere"),
    "pretrained is no model": (f"{TRAIN} --model.pretrained data", nothing, "config.json"),
    "pretrained has a smaller vocabulary": (
        f"{TRAIN} --model.pretrained run/checkpoints/step-00000014",
        lambda p: replace_in(last(p) / "config.json", '"vocab_size": 300', '"vocab_size": 200'),
        "vocabulary",
    ),
    "pretrained with another tokenizer": (
        f"{TRAIN} --model.pretrained run/checkpoints/step-00000014",
        lambda p: swap_tokens(last(p) / "tokenizer/tokenizer.json"),
        "whose tokenizer is not that of data",
    ),
    "run folder is taken": ("train good.toml --out run", nothing, "--resume auto"),
    "run folder cannot be made": ("train good.toml --out good.toml/run", nothing, "good.toml/run"),
    "resume as another model": (f"{RESUME} --model.layers 3", nothing, "model.layers"),
    "resume to fewer steps than done": (f"{RESUME} --train.steps 10", nothing, "has trained 14 steps already"),
    "resume with another seed": (f"{RESUME} --run.seed 9", nothing, "run.seed"),
    "resume from other data": (
        RESUME,
        lambda p: replace_in(p / "run/run.json", '"fingerprint": "', '"fingerprint": "0'),
        "fingerprint",
    ),
    "run.json is not JSON": (RESUME, lambda p: truncate(p / "run/run.json"), "run.json"),
    "every checkpoint damaged": (
        f"{RESUME} --train.steps 20",
        lambda p: [flip(path) for path in (p / "run").rglob("model.safetensors")],
        "model.safetensors",
    ),
    "evaluate what is no run": ("evaluate data", nothing, "run.json"),
    "evaluate an unknown split": ("evaluate run --split tset", nothing, "tset"),
    "evaluate an unknown step": ("evaluate run --step 5", nothing, "latest"),
    "evaluate a damaged checkpoint": ("evaluate run", lambda p: flip(last(p) / "model.safetensors"), "SHA-256"),
    "evaluate on data of another tokenizer": (
        "evaluate run --data data",
        lambda p: swap_tokens(p / "data/tokenizer/tokenizer.json"),
        "another tokenizer",
    ),
    "generate from a damaged state": (
        "generate run --prompt x",
        lambda p: truncate(last(p) / "state.json"),
        "state.json",
    ),
    "generate without a prompt": ("generate run", nothing, "--prompt"),
    "generate from an unfinished folder": (
        "generate run --prompt x",
        lambda p: (last(p) / "model.safetensors").unlink(),
        "model.safetensors",
    ),
    "export onto something": ("export run --out data", nothing, "not empty"),
    "export a run without checkpoints": (
        "export run --out model",
        lambda p: shutil.rmtree(p / "run/checkpoints"),
        "no checkpoint",
    ),
    "prepare nothing": ("prepare --out new", nothing, "SOURCE"),
    "prepare an absent file": ("prepare absent.txt --out new", nothing, "absent.txt"),
    "prepare without a folder": ("prepare text.txt", nothing, "--out"),
    "prepare unknown option": ("prepare text.txt --out new --vocab-size 9", nothing, "--vocab-size"),
    "prepare undecodable text": (
        "prepare bad.txt --out new",
        lambda p: (p / "bad.txt").write_bytes(b"abc \xff\xfe"),
        "bad.txt",
    ),
    "prepare malformed JSONL": (
        "prepare bad.jsonl --out new",
        lambda p: (p / "bad.jsonl").write_text('{"text": "a"}\n{"text'),
        "bad.jsonl",
    ),
    "prepare a missing column": (
        "prepare rows.csv --kind classify --text-column body --out new",
        lambda p: (p / "rows.csv").write_text("a,b\n1,2\n"),
        "rows.csv",
    ),
    "prepare over other data": ("prepare text.txt --out data", nothing, "--force"),
    "prepare an unknown scheme": ("prepare gopher://x/y --out new", nothing, "gopher"),
    "bench of nothing": ("bench --sizes 4 0", nothing, "--sizes has 0"),
    "bench of one size": ("bench --sizes 4 4", nothing, "two sizes or more"),
    "bench of a size that is none": ("bench --sizes 4 many", nothing, "--sizes"),
    "bench without repeats": ("bench --repeats 0", nothing, "--repeats is 0"),
    "bench of one rank": ("bench --out new", nothing, "nothing to exchange"),
    "doctor with an argument": ("doctor now", nothing, "now"),
    "install-horovod unknown option": ("install-horovod --fast", nothing, "--fast"),
}


def outcome(main, words, capsys, monkeypatch) -> tuple[int, str]:
    """Run a command's own entry point in this process; returns exit code and what it said."""

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["command", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("typed", "mishap", "named"), CASES.values(), ids=CASES.keys())
def test_one_sentence(place, capsys, monkeypatch, typed, mishap, named):
    mishap(place)
    before = {path: path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()}
    code, said = outcome(hvd_llm.main, typed.split(), capsys, monkeypatch)
    complaint = [line for line in said.splitlines() if line and not line.startswith("warning: ")]
    assert code == 2
    assert len(complaint) == 1, said
    assert named in complaint[0]
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in before} == before, "something that was there is gone"


REPORTS = {
    "no runs": ("report data --out new", nothing, "data"),
    "absent run": ("report nowhere --out new", nothing, "nowhere"),
    "no trace": ("report run --out new", lambda p: shutil.rmtree(p / "run/trace"), "trace"),
    "trace of text": (
        "report run --out new",
        lambda p: (p / "run/trace/launch-0/rank-00000.trace").write_text("hello" * 2000),
        "rank-00000.trace",
    ),
    "run.json of a list": ("report run --out new", lambda p: (p / "run/run.json").write_text("[]"), "run.json"),
    "compare with nothing": ("compare run", nothing, "B"),
    "unknown command": ("reprot run", nothing, "report"),
}


@pytest.mark.parametrize(("typed", "mishap", "named"), REPORTS.values(), ids=REPORTS.keys())
def test_one_sentence_of_the_analysis(place, capsys, monkeypatch, typed, mishap, named):
    mishap(place)
    code, said = outcome(lambda: sys.exit(analysis.main()), typed.split(), capsys, monkeypatch)
    assert code == 2
    assert len(said.strip().splitlines()) == 1, said
    assert named in said


SENTENCE = "hvd-llm: rank 1: data is not a prepared folder"


@pytest.mark.slow
@pytest.mark.parametrize("controller", ["mpi", "gloo"])
def test_no_rank_is_left_behind(place, controller):
    """Only rank 1 has the trouble; both ranks end, with its sentence, within ten seconds."""
    script = place / "rank.py"
    script.write_text(
        "import os, shutil, sys\n"
        "rank = os.environ.get('HOROVOD_RANK') or os.environ['OMPI_COMM_WORLD_RANK']\n"
        "if rank == '1':\n"
        "    os.chdir(sys.argv.pop())\n"
        "else:\n"
        "    sys.argv.pop()\n"
        "from hvd_llm.__main__ main\n".replace("__main__ main", "__main__ import main")
        + "main()\n"
    )
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(place / "good.toml", elsewhere)
    mark = f"mark-{os.getpid()}-{controller}"
    command = [*launcher(2, controller), "python", str(script), "train", "good.toml", "--out", mark, str(elsewhere)]
    options = {"env": ENVIRONMENT, "cwd": place, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:
        said = []
        while not said or SENTENCE not in said[-1]:
            said.append(process.stdout.readline())
            assert said[-1], "".join(said)
        began = time.monotonic()
        while ranks := [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]:
            assert time.monotonic() - began < 10, f"left behind: {ranks}"
            time.sleep(0.1)
        said += process.stdout.readlines()
    assert process.returncode != 0
    assert sum(SENTENCE in line for line in said) == 1, "".join(said)
    assert not any("rank.py" in line for line in said), "a rank printed a traceback"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_full_disk_loses_nothing(place, ranks):
    """A checkpoint that does not fit: one sentence, and the older checkpoints still load."""
    limited = ["bash", "-c", 'ulimit -f 150; trap "" XFSZ; exec "$@"', "limited"]
    # Shared memory counts as a file, MPI's own too: the limit would hit it as well
    train = [
        *launcher(ranks, "gloo"),
        BIN / "hvd-llm",
        *RESUME.split(),
        "--train.steps",
        30,
        "--trace.enabled",
        "false",
        "--reduce.share_memory",
        "false",
    ]
    done = run(*limited, *train, "--train.steps", 30, "--trace.enabled", "false", cwd=place)
    said = [line for line in done.stderr.splitlines() if "hvd-llm: " in line]
    assert len(said) == 1, done.stderr
    assert "cannot write the checkpoint" in said[0]
    if ranks == 1:  # horovodrun over Gloo has an exit code and a traceback of its own
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert run(BIN / "hvd-llm", "evaluate", "run", cwd=place).returncode == 0


def test_two_cannot_train_in_one_folder(place):
    with runfolder.claim(place / "run"):
        done = run(BIN / "hvd-llm", *RESUME.split(), "--train.steps", 20, cwd=place)
    assert done.returncode == 2
    assert done.stderr.startswith("hvd-llm: run.dir 'run' is in use"), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_number_of_ranks_that_does_not_suit_the_compressor(place):
    train = f"{TRAIN} --train.global_batch 3 --reduce.compressor adasum --out new"
    done = run(*launcher(3), BIN / "hvd-llm", *train.split(), cwd=place)
    text = re.sub(r"\[1,\d+\]<std\w+>: ?", "", done.stdout + done.stderr)  # mpirun's tags, wherever it puts them
    said = [line for line in text.splitlines() if "hvd-llm: " in line]
    assert len(said) == 1, text
    assert said[0].endswith("hvd-llm: adasum is for 2, 4, 8, … ranks (or hosts, if used across them), not 3")
    assert not (place / "new").exists()


def test_a_model_that_diverged_is_not_used(place):
    diverge = "--optimizer.lr 1e6 --optimizer.clip_norm 0 --out diverged --train.steps 14 --train.log_every 1"
    done = run(BIN / "hvd-llm", *TRAIN.split(), *diverge.split(), cwd=place)
    assert done.returncode == 0
    assert ": gradients not finite" in done.stderr
    done = run(BIN / "hvd-llm", "generate", "diverged", "--prompt", "a", cwd=place)
    assert done.returncode == 2
    assert done.stderr.endswith("not finite: its training diverged\n")


def test_torchrun_is_no_launcher_for_horovod(place):
    environment = ENVIRONMENT | {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}
    command = [str(BIN / "hvd-llm"), *TRAIN.split()]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "use horovodrun or mpirun" in done.stderr


@pytest.mark.slow
def test_missing_horovod_is_said(place):
    """Under a launcher without Horovod: which command builds it."""
    hidden = place / "sitecustomize.py"
    hidden.write_text(
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'horovod' else find(name, *rest)\n"
    )
    environment = ENVIRONMENT | {
        "PYTHONPATH": str(place),
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "2",
    }
    done = subprocess.run(
        [str(BIN / "hvd-llm"), *TRAIN.split()], env=environment, cwd=place, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "hvd-llm install-horovod" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_run_json_says_what_was_run(trained):
    record = json.loads((trained / "run.json").read_text())
    assert record["schema"] == "hvd_llm.run/1"
    assert record["config"]["train"]["steps"] == 14
    assert record["launches"][0]["size"] == 1
