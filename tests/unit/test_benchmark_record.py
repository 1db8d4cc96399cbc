"""The benchmark's arithmetic and what it leaves behind."""

import json
import math

import pandas as pd
import pytest

from benchmarks import kernels, record


def times(**seconds: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"controller": "mpi", "contender": name, "round": number, "seconds": value}
        for name, values in seconds.items()
        for number, value in enumerate(values)
    )


def test_ratios_are_taken_within_a_round():
    table = record.ratios(times(ours=[1.0, 20.0, 3.0], peer=[2.0, 40.0, 4.0])).set_index("contender")
    assert table.loc["peer", "ratio"] == pytest.approx(0.5)  # medians over all rounds would say 3 / 4
    assert table.loc["peer", "upper_quartile"] == pytest.approx(0.625)
    assert table.loc["peer", "ms"] == pytest.approx(4000)
    assert table.loc["ours", "ratio"] == 1


def test_ratios_are_to_the_fastest_ddp_that_completed():
    rows = [
        {
            "controller": "gloo",
            "rate": rate,
            "contender": name,
            "round": number,
            "seconds": seconds * number,
            "sent_bytes": 8,
            "priced_bytes": 7 if name == "ours" else math.nan,
        }
        for rate, factor in (("50mbit", 4), ("200mbit", 1))
        for name, seconds in (("ours", 1.0), ("ddp", 2.0 * factor), ("ddp_fp16", 4.0), ("ddp_gone", 0.1))
        for number in (1, 2, 3)
    ]
    table = record.ratios_to_peer(pd.DataFrame(rows), {"gloo": ["ours", "ddp", "ddp_fp16"]})
    table = table.set_index(["rate", "contender"])
    assert table.loc["50mbit"]["over"].unique().tolist() == ["ddp_fp16"]
    assert table.loc["200mbit"]["over"].unique().tolist() == ["ddp"]
    assert table.loc["50mbit", "ours"]["ratio"] == pytest.approx(0.25)
    assert table.loc["200mbit", "ddp_fp16"]["ratio"] == pytest.approx(2)
    assert table.loc["200mbit", "ours"]["upper_ms"] == pytest.approx(2500)
    assert table.loc["200mbit", "ours"]["priced_bytes"] == 7
    assert table["priced_bytes"].isna().tolist() == [False, True, True] * 2


def test_without_a_ddp_ratios_are_to_the_first_contender(tmp_path):
    ours = "ours:int4,sync.every=64,sync.delay=12,sync.late=add,sync.outer_lr=1,sync.outer_momentum=0"
    same = {"controller": "gloo", "rate": "1gbit", "round": 1, "sent_bytes": 8, "priced_bytes": 8}
    times = pd.DataFrame([same | {"contender": ours, "seconds": 0.25}, same | {"contender": "floor", "seconds": 0.5}])
    table = record.ratios_to_peer(times, {"gloo": ["floor", ours]})
    assert table["ms"].tolist() == [500, 250]
    assert table["ratio"].tolist() == [1, 0.5]
    assert table["over"].tolist() == ["floor"] * 2
    record.time_figure(table, tmp_path / "times.png")
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_explains_itself(tmp_path):
    table = times(ours=[1.0, 1.1], peer=[2.0, 2.1])
    ratios = record.ratios(table)
    record.write(tmp_path / "bench", table, ratios, {"kind": "side_by_side", "settings": {"train.micro_batch": 4}})
    record.ratio_figure(ratios, tmp_path / "bench" / "ratios.png")
    about = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert about["schema"] == "hvd_llm.bench/2"
    assert about["settings"] == {"train.micro_batch": 4}
    assert about["machine"]["cores"] >= 1
    assert len(pd.read_csv(tmp_path / "bench" / "times.csv")) == 4
    assert pd.read_csv(tmp_path / "bench" / "ratios.csv")["ratio"].tolist()[0] == 1
    assert (tmp_path / "bench" / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_kernels_are_compared_with_a_copy():
    times = kernels.measure(0.0625 * 16, rounds=3)
    table = kernels.summary(times).set_index("kernel")
    assert table.loc["copy", "share_of_copy"] == 1
    assert table.loc["int8", "times_smaller"] > 3.5
    assert (table["GB/s"] > 0).all()
    assert set(table.index[table[["encode", "decode"]].notna().all(axis=1)]) == set(kernels.CODECS)
