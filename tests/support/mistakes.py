"""What users get wrong: what is typed, what is done to the folder first, what the one sentence must name."""

import json
import os
import shutil


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
    "auto with another option": (f"{TRAIN} --reduce.compressor auto(of=2)", nothing, "write auto(among="),
    "two momentums": (f"{TRAIN} --reduce.compressor dgc", nothing, "optimizer.beta1 is 0.9, which would be a second"),
    "two momentums in another": (
        f"{TRAIN} --reduce.compressor hierarchical(across=dgc) --sync.every 4 --sync.outer_momentum 0.9",
        nothing,
        "sync.outer_momentum is 0.9",
    ),
    "last norms of ranks apart": (f"{TRAIN} --sync.every 4 --optimizer.clip_by last", nothing, "set it to 'this'"),
    "more feedback than there was": (f"{TRAIN} --reduce.compressor topk(feedback=5)", nothing, "from 0 to 1"),
    "more than all": (f"{TRAIN} --reduce.compressor randomk(share=7)", nothing, "share is 7"),
    "momentum that grows": (f"{TRAIN} --reduce.compressor dgc(momentum=3)", nothing, "momentum is 3"),
    "auto among what sums not": (f"{TRAIN} --reduce.compressor auto(among='adasum')", nothing, "does not sum"),
    "zero_one_adam of no sums": (
        f"{TRAIN} --reduce.compressor adasum --optimizer.name zero_one_adam",
        nothing,
        "is for sums of gradients",
    ),
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
    "run among the data": ("train good.toml --out data", nothing, "holds prepared data"),
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


REPORTS = {
    "no runs": ("report data --out new", nothing, "data"),
    "name that is too long": (f"report {'x' * 300} --out new", nothing, "name too long"),
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
