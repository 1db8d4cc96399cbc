"""What compressors compute, on one core, beside a plain copy of the same gradient: `python -m benchmarks.kernels`.

A round is one copy, one exchange of every compressor as the pricing driver runs it (rank 0 of 2: encode, decode, add,
and keep the error where it is kept), and of those that have a codec one encode and one decode of the whole gradient.
Throughput is the gradient's bytes over the seconds, and so a share of the copy is its seconds over these seconds.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import record
from hvd_llm import device
from hvd_llm.compress import registry, two_phase
from hvd_llm.compress.fp8 import Fp8
from hvd_llm.compress.half import Bf16, Fp16
from hvd_llm.compress.int4 import Int4
from hvd_llm.compress.int8 import Int8
from hvd_llm.compress.onebit import OneBit
from hvd_llm.compress.twobit import TwoBit
from hvd_llm.reduce.pricing import price

MIB = 2**20
PARTS = ("encode", "decode")
CODECS = {
    "fp16": Fp16(),
    "bf16": Bf16(),
    "int8": Int8(),
    "fp8": Fp8(),
    "int4": Int4(),
    "twobit": TwoBit(),
    "onebit": OneBit(),
}


def measure(mib: float, rounds: int) -> pd.DataFrame:
    """Columns mib, kernel, part (exchange, encode or decode), round, seconds, wire_bytes; "copy" is a kernel."""
    elements = int(mib * MIB / 4)
    gradient = torch.randn(elements) * torch.rand(elements).pow(4)
    out, rows = torch.empty_like(gradient), []
    found = {name: registry.find(name) for name in registry.names()}
    payloads = {name: two_phase.encode(codec, gradient) for name, codec in CODECS.items()}
    states: dict[str, list[dict]] = {name: [{}] for name in found}
    for number in tqdm(range(rounds + 2), desc=f"{mib:g} MiB", unit="round"):
        turn = [("copy", "exchange", _seconds(lambda: out.copy_(gradient)), 0.0)]
        for name, compressor in found.items():
            given = gradient.view(-1, 1024, 256) if compressor.takes == "matrices" else gradient
            cost = price(compressor, [given], 2, states[name])
            turn.append((name, "exchange", cost.kernel_s, cost.wire_bytes))
        for name, codec in CODECS.items():
            turn.append((name, "encode", _seconds(lambda codec=codec: two_phase.encode(codec, gradient)), 0.0))
            payload = payloads[name]
            turn.append((name, "decode", _seconds(lambda c=codec, p=payload: two_phase.decode(c, p, out)), 0.0))
        if number >= 2:  # the first two warm up
            rows += [(mib, name, part, number - 2, seconds, wire) for name, part, seconds, wire in turn]
    return pd.DataFrame(rows, columns=["mib", "kernel", "part", "round", "seconds", "wire_bytes"])


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def summary(times: pd.DataFrame) -> pd.DataFrame:
    """A row per size and kernel: median GB/s, shares of the copy within a round, bytes saved."""
    rows = []
    for mib, group in times.groupby("mib"):
        seconds = group.pivot(index="round", columns=["kernel", "part"], values="seconds")
        shares = seconds.rdiv(seconds["copy", "exchange"], axis=0)
        wire = group[group["part"] == "exchange"].groupby("kernel")["wire_bytes"].median()
        for kernel in group["kernel"].unique():
            low, share, high = shares[kernel, "exchange"].quantile([0.25, 0.5, 0.75])
            parts = [shares[kernel, part].median() if kernel in CODECS else float("nan") for part in PARTS]
            smaller = mib * MIB / wire[kernel] if wire[kernel] else float("nan")
            speed = mib * MIB / seconds[kernel, "exchange"].median() / 1e9
            rows.append((mib, kernel, speed, low, share, high, *parts, smaller))
    columns = "mib kernel GB/s lower_quartile share_of_copy upper_quartile encode decode times_smaller"
    return pd.DataFrame(rows, columns=columns.split())


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
    print(table.to_string(index=False, float_format="{:.2f}".format, na_rep=""))
    print(f"\nThe times are in {out}.")


if __name__ == "__main__":
    main()
