"""What compressors compute, on one core, beside a plain copy of the same gradient: `python -m benchmarks.kernels`.

A round is one exchange of every compressor as the pricing driver runs it (rank 0 of 2: encode, decode, add, and keep
the error where it is kept), and one copy. Throughput is the gradient's bytes over the seconds.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import record
from hvd_llm import device
from hvd_llm.compress import registry
from hvd_llm.reduce.pricing import price

MIB = 2**20


def measure(mib: float, rounds: int) -> pd.DataFrame:
    """Columns mib, kernel, round, seconds, wire_bytes; "copy" is a kernel."""
    elements = int(mib * MIB / 4)
    gradient = torch.randn(elements) * torch.rand(elements).pow(4)
    copy, rows = torch.empty_like(gradient), []
    found = {name: registry.find(name) for name in registry.names()}
    states: dict[str, dict] = {name: {} for name in found}
    for number in tqdm(range(rounds + 2), desc=f"{mib:g} MiB", unit="round"):
        began = time.perf_counter()
        copy.copy_(gradient)
        turn = [("copy", time.perf_counter() - began, 0.0)]
        for name, compressor in found.items():
            given = gradient.view(-1, 1024, 256) if compressor.takes == "matrices" else gradient
            cost = price(compressor, given, 2, states[name])
            turn.append((name, cost.kernel_s, cost.wire_bytes))
        if number >= 2:  # the first two warm up
            rows += [(mib, name, number - 2, seconds, wire) for name, seconds, wire in turn]
    return pd.DataFrame(rows, columns=["mib", "kernel", "round", "seconds", "wire_bytes"])


def summary(times: pd.DataFrame) -> pd.DataFrame:
    """A row per size and kernel: median GB/s, its quotient with that of the copy within a round, bytes saved."""
    rows = []
    for mib, group in times.groupby("mib"):
        seconds = group.pivot(index="round", columns="kernel", values="seconds")
        wire = group.groupby("kernel")["wire_bytes"].median()
        for kernel in group["kernel"].unique():
            low, share, high = (seconds["copy"] / seconds[kernel]).quantile([0.25, 0.5, 0.75])
            smaller = mib * MIB / wire[kernel] if wire[kernel] else float("nan")
            rows.append((mib, kernel, mib * MIB / seconds[kernel].median() / 1e9, low, share, high, smaller))
    columns = ["mib", "kernel", "GB/s", "lower_quartile", "share_of_copy", "upper_quartile", "times_smaller"]
    return pd.DataFrame(rows, columns=columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, nargs="+", default=[4, 64], help="sizes of the gradient (default: 4 64)")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--out", type=Path, default=None, help="folder for times and table (default: runs/bench-TIME)")
    args = parser.parse_args()
    out = args.out or record.default_folder()
    torch.set_num_threads(1)
    device.keep_freed_memory()  # as in training
    times = pd.concat([measure(mib, args.rounds) for mib in args.mib])
    table = summary(times)
    record.write(out, times, table, {"kind": "kernels", "ranks": 1, "settings": {"mib": args.mib}})
    print(table.to_string(index=False, float_format="{:.2f}".format))
    print(f"\nThe times are in {out}.")


if __name__ == "__main__":
    main()
