"""What sending less costs in loss: `python -m benchmarks.loss`.

Every contender is a whole run of `hvd-llm train` between the hosts of `benchmarks.hosts`, one after the other, with the
same data, batches and first weights. What is compared is the validation loss after as many tokens, and after as much
time. The first contender is what the others are compared with.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks import record, sandbox
from benchmarks.contenders import find, known
from benchmarks.hosts import launch
from benchmarks.jobs import options
from benchmarks.netns import UNLIMITED, Hosts
from benchmarks.network import MODELS
from hvd_llm.errors import UserError


def train(name: str, hosts: Hosts, args: argparse.Namespace, run: Path) -> str:
    """One contender's run into folder `run`; returns what it said last if it did not complete."""
    settings = {
        "data.path": args.data,
        "data.sequence_length": 128,
        **MODELS[args.model],
        "train.steps": args.steps,
        "train.global_batch": 4 * args.hosts * args.ranks_per_host,
        "train.micro_batch": 4,
        "evaluate.every": max(1, args.steps // 4),
        "train.log_every": max(1, args.steps // 4),
        "evaluate.batches": 0,
        "checkpoint.best": "false",
        "run.threads": 1,
    }
    words = options(settings) + args.settings + options(find(name).changes)
    with open(run.with_suffix(".log"), "w+") as log:
        command = ["hvd-llm", "train", args.config, *words, "--run.dir", str(run)]
        code = launch(hosts, command, args.controller, args.ranks_per_host, find(name).environment, log).wait()
        log.seek(0)
        return (log.read().strip().splitlines() or ["it said nothing"])[-1] if code else ""


def losses(run: Path) -> pd.DataFrame:
    """Columns step, tokens, seconds of training until then, validation_loss."""
    rows = pd.read_csv(run / "metrics.csv")
    trained = rows[rows["loss"].notna()].set_index("step")
    tokens = trained["tokens"].iloc[-1] / trained.index[-1]  # of a step; some rows lack what is not summed yet
    steps = trained.index.to_series()
    seconds = (steps.diff().fillna(steps) * tokens / trained["tokens_per_s"]).cumsum()  # a row's rate: since the last
    tested = rows[rows["validation_loss"].notna()].drop_duplicates("step", keep="last").set_index("step")
    loss = tested["validation_loss"]
    table = pd.DataFrame({"tokens": loss.index * tokens, "validation_loss": loss})
    table.insert(1, "seconds", seconds.reindex(loss.index))
    return table.reset_index()


def summary(curves: pd.DataFrame, sent: dict[str, float], first: str) -> pd.DataFrame:
    """A row per contender: its last loss, that over that of `first`, seconds, MB that a host sent in all; and its loss
    when the fastest of them was through, between two of its tests by a straight line; unknown before the first.
    """
    last = curves.groupby("contender", sort=False).last()
    table = last[["validation_loss", "seconds"]].copy()
    table.insert(1, "over_first", last["validation_loss"] / last["validation_loss"].get(first, float("nan")))
    tests = curves.groupby("contender", sort=False)[["seconds", "validation_loss"]]
    then = last["seconds"].min()
    table["loss_then"] = tests.apply(lambda rows: np.interp(then, *rows.dropna().T.to_numpy(), left=np.nan))
    table["megabytes"] = pd.Series(sent) / 1e6
    return table.reset_index()


def figure(curves: pd.DataFrame, path: Path) -> None:
    """Validation loss by tokens, and by time."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    for name, rows in curves.groupby("contender", sort=False):
        for ax, column, scale in ((axes[0], "tokens", 1e6), (axes[1], "seconds", 1)):
            ax.plot(rows[column] / scale, rows["validation_loss"], marker=".", label=name)
    axes[0].set(xlabel="million tokens", ylabel="validation loss")
    axes[1].set(xlabel="seconds of training")
    axes[1].legend(fontsize="small")
    drawing.savefig(path, dpi=120)
    plt.close(drawing)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--hosts", type=int, default=4, help="default: %(default)s")
    add("--ranks-per-host", type=int, default=1, help="default: %(default)s")
    add("--rate", default=UNLIMITED, help="of each host, such as 50mbit (default: %(default)s)")
    add("--controller", default="gloo", choices=["gloo", "mpi"], help="default: %(default)s")
    add("--contenders", nargs="+", type=known, default=["ours", "ours:powersgd"], help="default: %(default)s")
    add("--steps", type=int, default=1000, help="default: %(default)s")
    add("--model", default="5m", choices=list(MODELS), help="GPT-2 of so many parameters (default: %(default)s)")
    add("--config", default="gpt-tiny", help="configuration to start from (default: %(default)s)")
    add("--data", default="data/embedded", help="prepared data (default: %(default)s)")
    add("--out", type=Path, help="folder for the runs, times.csv, ratios.csv, loss.png (default: runs/bench-TIME)")
    args, args.settings = parser.parse_known_args()
    args.contenders = list(dict.fromkeys(args.contenders))
    others = [name for name in args.contenders if name.partition(":")[0] != "ours"]
    if others:
        parser.error(f"{others[0]} is no way of training with hvd_llm; its losses are those of ours")
    return args


def main() -> None:
    args = _arguments()
    out = (args.out or record.default_folder()).absolute()
    curves, sent, incomplete = [], {}, {}
    try:
        sandbox.enter()
        out.mkdir(parents=True)
        with Hosts(args.hosts, args.rate) as hosts:
            for number, name in enumerate(tqdm(args.contenders, unit="run")):
                before = hosts.sent_bytes()
                run = out / f"run-{number}"
                trouble = train(name, hosts, args, run)
                if trouble:
                    incomplete[name] = trouble
                else:
                    sent[name] = (sum(hosts.sent_bytes()) - sum(before)) / args.hosts
                    curves.append(losses(run).assign(contender=name))
                if curves:
                    _write(out, pd.concat(curves), sent, args, incomplete)
    except (UserError, FileExistsError) as error:
        print(f"benchmarks.loss: {error}", file=sys.stderr)
        sys.exit(2)
    for name, trouble in incomplete.items():
        print(f"{name} did not complete: {trouble}")
    if not curves:
        sys.exit("no contender completed")
    print(summary(pd.concat(curves), sent, args.contenders[0]).to_string(index=False, float_format="{:.4f}".format))
    print(f"\nThe runs, their losses and a figure are in {out}.")
    sys.exit(bool(incomplete))


def _write(out: Path, curves: pd.DataFrame, sent: dict, args: argparse.Namespace, incomplete: dict[str, str]) -> None:
    settings = {"config": args.config, "model": args.model, "steps": args.steps, "also": args.settings}
    about = {"kind": "loss", "hosts": args.hosts, "rate": args.rate, "ranks": args.hosts * args.ranks_per_host}
    about |= {"settings": settings, "did_not_complete": {args.controller: incomplete}}
    record.write(out, curves, summary(curves, sent, args.contenders[0]), about)
    figure(curves, out / "loss.png")


if __name__ == "__main__":
    main()
