"""The benchmark's arithmetic and what it leaves behind."""

import json

import pandas as pd
import pytest

from benchmarks import record


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


def test_a_folder_explains_itself(tmp_path):
    record.write(tmp_path / "bench", times(ours=[1.0, 1.1], peer=[2.0, 2.1]), {"train.micro_batch": 4}, ranks=2)
    about = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert about["schema"] == "hvd_llm.bench/1"
    assert about["settings"] == {"train.micro_batch": 4}
    assert about["machine"]["cores"] >= 1
    assert len(pd.read_csv(tmp_path / "bench" / "times.csv")) == 4
    assert pd.read_csv(tmp_path / "bench" / "ratios.csv")["ratio"].tolist()[0] == 1
    assert (tmp_path / "bench" / "ratios.png").read_bytes().startswith(b"\x89PNG")
