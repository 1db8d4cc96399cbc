"""The tables of the page: the columns a reader needs, in words and round numbers. Everything else is in the CSV."""

import pandas as pd


def number(value) -> str:
    """A table cell as text: at most two decimals, a dash for what is not there."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percent(value: float) -> str:
    """A share as text."""
    return "–" if value != value else f"{value * 100:.1f} %"


def _with_variant(shown: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Add a column that says which variant a row is of, first, if there are several."""
    if table["variant"].any():
        shown.insert(0, "variant", table["variant"])
    return shown


def efficiency(table: pd.DataFrame) -> pd.DataFrame:
    low, high = table["efficiency_low"].map(percent), table["efficiency_high"].map(percent)
    interval = (low + " to " + high).where(table["efficiency_low"].notna(), "baseline")
    return pd.DataFrame(
        {
            "scaling": table["series"].str.replace(" scaling", "").str.replace(" sequences", ""),
            "ranks": table["ranks"],
            "efficiency": table["efficiency"].map(percent) + table["above_100"].map({True: " ⚠", False: ""}),
            "95 % interval": interval,
            "speed-up": table["speedup"].map("{:.2f}".format),
            "serial fraction": table["serial_fraction"].map(percent),
            "tokens/s": table["tokens_per_s"].map(number),
            "repeats": table["repeats"],
            "steps": table["steps"],
        }
    )


def laws(table: pd.DataFrame) -> pd.DataFrame:
    """With the believed law of a series first."""
    table = table.sort_values(["series", "believed"], ascending=[True, False], kind="stable")
    found = table[["a", "b"]].map(lambda value: "–" if value != value else f"{value:.3g}")
    ahead = [name for name in table if name.startswith("efficiency_at_")]
    return pd.DataFrame(
        {
            "scaling": table["series"].str.replace(" scaling", "").str.replace(" sequences", ""),
            "law": table["law"] + table["believed"].map({True: " ✓", False: ""}),
            "speed-up": table["formula"],
            "a": found["a"],
            "b": found["b"],
            "ranks": table["most_ranks"],
            "predicted": table["predicted"].map("{:.2f}".format),
            "measured": table["measured"].map("{:.2f}".format),
            "error": table["error"].map(lambda share: f"{share * 100:+.1f} %"),
        }
        | {f"at {name.removeprefix('efficiency_at_')}": table[name].map(percent) for name in ahead}
    )


def throughput(table: pd.DataFrame) -> pd.DataFrame:
    low, high = table["tokens_per_s_low"].map(number), table["tokens_per_s_high"].map(number)
    shown = table[["ranks", "hosts", "global_batch"]].rename(columns={"global_batch": "batch"})
    return _with_variant(shown, table).assign(
        **{
            "tokens/s": table["tokens_per_s"].map(number),
            "95 % interval": low + " to " + high,
            "step ms: mean": table["step_ms_mean"].map(number),
            "median": table["step_ms_median"].map(number),
            "95th percentile": table["step_ms_p95"].map(number),
            "repeats": table["repeats"],
            "steps": table["steps"],
            "block": table["block_steps"],
        }
    )


def breakdown(table: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds; checkpoints and evaluations are told as "how often × how long"."""
    shown = table.rename(columns=lambda name: name.removesuffix("_ms")).rename(columns={"global_batch": "batch"})
    for name in ("checkpoint", "evaluate"):
        each = shown.pop(f"{name}_ms_each").map(number)
        times = shown.pop(f"{name}_times")
        shown[name] = (times.astype(str) + " × " + each).where(times > 0, "–")
    return _with_variant(shown.drop(columns="variant"), table)


def communication(table: pd.DataFrame) -> pd.DataFrame:
    shown = pd.DataFrame(
        {
            "ranks": table["ranks"],
            "batch": table["global_batch"],
            "through": table["through"],
            "exchanges": table["exchanges"].map(number),
            "hidden ms": table["hidden_ms"].map(number),
            "exposed ms": table["exposed_ms"].map(number),
            "hidden": table["hidden_share"].map(percent),
            "payload MB": table["payload_mb"].map(number),
            "wire MB": table["wire_mb"].map(number),
            "bus MB/s": table["bus_mb_per_s"].map(number),
        }
    )
    return _with_variant(shown, table)


def variants(table: pd.DataFrame) -> pd.DataFrame:
    interval = table["ratio_low"].map("{:.2f}".format) + " to " + table["ratio_high"].map("{:.2f}".format)
    return pd.DataFrame(
        {
            "variant": table["variant"],
            "ranks": table["ranks"],
            "batch": table["global_batch"],
            "ms per step": table["ms"].map(number),
            "ratio": table["ratio"].map("{:.2f}".format),
            "95 % interval": interval.where(table["ratio_low"].notna(), "–"),
            "exposed ms": table["exposed_ms"].map(number),
            "wire MB": table["wire_mb"].map(number),
            "validation loss": table["validation_loss"].map(lambda loss: "–" if loss != loss else f"{loss:.3f}"),
            "repeats": table["repeats"],
        }
    )


def expectation(table: pd.DataFrame) -> pd.DataFrame:
    table = table.head(40)  # the CSV has all
    shown = table[["launch", "ranks", "what"]].copy()
    return shown.assign(
        **{
            "expected ms": table["expected_ms"].map(number),
            "measured ms": table["measured_ms"].map(number),
            "error": table["error"].map(lambda share: "–" if share != share else f"{share * 100:+.0f} %"),
        }
    )


def horovod(table: pd.DataFrame) -> pd.DataFrame:
    shown = table[["launch", "operation", "activity", "batches", "tensors"]].copy()
    return shown.assign(seconds=table["seconds"].map("{:.3f}".format), MB=table["mb"].map(number))


def replay(table: pd.DataFrame) -> pd.DataFrame:
    signed = table[["error", "trivial_error"]].map(lambda share: f"{share * 100:+.1f} %")
    return pd.DataFrame(
        {
            "table": table["table"].str.slice(0, 60),
            "from": table["calibrated_on"],
            "devices": table["devices"],
            "measured s": table["measured_s"].map("{:.3f}".format),
            "predicted s": table["predicted_s"].map("{:.3f}".format),
            "error": signed["error"],
            "trivial": signed["trivial_error"],
        }
    )


def simulate(table: pd.DataFrame) -> pd.DataFrame:
    shown = pd.DataFrame(
        {
            "network": table["network"],
            "ranks": table["ranks"],
            "compressor": table["compressor"].str.slice(0, 40) + table["best"].map({True: " ✓", False: ""}),
            "MiB": table["bucket_mb"].map("{:g}".format),
            "ms per step": (table["step_s"] * 1e3).map(number),
            "efficiency": table["efficiency"].map(percent),
            "MB sent": table["sent_mb"].map(number),
            "kernels ms": (table["kernel_s"] * 1e3).map(number),
        }
    )
    return shown if table["bucket_mb"].nunique() > 1 else shown.drop(columns="MiB")


def clocks(table: pd.DataFrame) -> pd.DataFrame:
    table = table.sort_values("off_by_ms", ascending=False, kind="stable").head(40)  # the CSV has all
    shown = table[["launch", "rank", "host"]].copy()
    return shown.assign(
        **{
            "offset ms": table["offset_ms"].map(number),
            "± ms": table["uncertainty_ms"].map("{:.3f}".format),
            "off by at least ms": table["off_by_ms"].map(lambda value: number(value) if value else "–"),
        }
    )


def ranks(table: pd.DataFrame) -> pd.DataFrame:
    shown = table[["launch", "rank", "host"]].copy()
    for name in ("step", "input", "forward", "backward", "exposed", "optimizer", "own"):
        shown[f"{name} ms" if name in ("step", "own") else name] = table[f"{name}_ms"].map(number)
    shown["own over median"] = (table["own_over_median"] - 1).map(lambda share: f"{share * 100:+.1f} %")
    shown["slowest in"] = table["slowest_share"].map(lambda share: f"{share * 100:.0f} % of steps")
    return shown
