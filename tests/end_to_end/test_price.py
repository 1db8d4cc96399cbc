"""`hvd-llm price`, on one process; and `simulate` with what it says."""

import json

import pandas as pd
import pytest
from commands import BIN, run

SMALL = ["--data.sequence_length", 16, "--model.layers", 2, "--model.hidden", 32, "--model.heads", 2]


def price(data, out, *words):
    return run(BIN / "hvd-llm", "price", "gpt-tiny", "--data", data, *SMALL, "--run.threads", 1, "--out", out, *words)


def test_prices_are_those_of_rings(data, tmp_path):
    few = ["--ranks", 2, 3, "--compressors", "none", "int8", "--buckets", 0.05, 1]
    done = price(data, tmp_path / "prices", *few, "--reduce.rows", "false")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "prices/run.json").read_text())
    assert (record["schema"], record["kind"]) == ("hvd_llm.prices/1", "prices")
    table = pd.read_csv(tmp_path / "prices/prices.csv")
    assert list(table.groupby(["ranks", "compressor", "bucket_mb"]).groups) == [
        (ranks, name, size) for ranks in (2, 3) for name in ("int8", "none") for size in (0.05, 1)
    ]
    plain = table[table["compressor"] == "none"]
    assert plain["sum_bytes"].tolist() == pytest.approx(
        (2 * (plain["ranks"] - 1) / plain["ranks"] * plain["gradient_bytes"]).tolist()
    )
    assert plain["sums"].eq(1).all()
    whole = table.groupby(["compressor", "ranks", "bucket_mb"])["gradient_bytes"].sum()
    assert whole.nunique() == 1
    assert table[table["compressor"] == "int8"]["all_to_alls"].max() == 1
    assert (table["ready_s"] <= table["pass_s"]).all()
    assert (table["kernel_s"] > 0).all()
    buckets = table.groupby("bucket_mb")["bucket"].max()
    assert buckets[0.05] > buckets[1]
    assert price(data, tmp_path / "prices", *few).returncode == 2  # the folder is in use


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", 1], "--ranks has 1; it must be from 2 to 256"),
        (["--compressors", "auto"], "--compressors has auto"),
        (["--compressors", "nome"], "'nome' is not installed"),
        (["--buckets", -1], "reduce.bucket_mb"),
    ],
)
def test_what_has_no_price_is_one_sentence(data, tmp_path, words, said):
    done = price(data, tmp_path / "prices", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "prices/prices.csv").exists()


def test_a_step_is_simulated(data, tmp_path):
    """From a run, prices and a network."""
    train = ["train", "gpt-tiny", "--data", data, *SMALL, "--run.threads", 1, "--train.steps", 12]
    done = run(BIN / "hvd-llm", *train, "--out", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    assert price(data, tmp_path / "prices", "--ranks", 2, 3, 4, "--compressors", "none", "int8").returncode == 0
    (tmp_path / "network").mkdir()
    line = {"latency_s": 1e-3, "per_byte_s": 1e-8}
    lines = dict.fromkeys(("sum", "gather", "all_to_all"), line)
    about = {"schema": "hvd_llm.collectives/1", "kind": "bench", "lines": lines, "launches": [{"size": 2}]}
    (tmp_path / "network/run.json").write_text(json.dumps(about))
    words = ["simulate", tmp_path / "one", "--prices", tmp_path / "prices", "--network", tmp_path / "network"]
    done = run(
        BIN / "python", "-m", "analysis", *words, "--ranks", 2, 64, "--rates", 10, 10_000, "--out", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    steps = pd.read_csv(tmp_path / "out/simulate.csv").set_index(["network", "compressor", "ranks"])["step_s"]
    for name in ("none", "int8"):
        assert steps[("10 Mb/s", name, 64)] > steps[("10000 Mb/s", name, 64)] > 0
    sent = pd.read_csv(tmp_path / "out/simulate.csv").groupby("compressor")["sent_mb"].max()
    assert sent["int8"] < 0.4 * sent["none"]
