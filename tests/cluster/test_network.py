"""The benchmark between hosts: who takes part, and that its numbers are those of the network."""

import argparse
import json
import sys

import pandas as pd
import pytest
from commands import run

from benchmarks import contenders, network, sandbox


def test_a_name_may_bring_settings():
    contender = contenders.find("ours:none,reduce.bucket_mb=8")
    assert contender.prepare is contenders.ours
    assert contender.changes == {"reduce.compressor": "none", "reduce.bucket_mb": "8"}
    several = contenders.find("ours:topk(keep=32, chunk=64),sync.every=2")
    assert several.changes == {"reduce.compressor": "topk(keep=32, chunk=64)", "sync.every": "2"}
    with pytest.raises(argparse.ArgumentTypeError, match="there is no contender 'hours'"):
        contenders.find("hours:none")


@pytest.mark.skipif(bool(sandbox.obstacle()), reason=f"there can be no hosts here: {sandbox.obstacle()}")
def test_numbers_are_those_of_the_network(tmp_path, data):
    out = tmp_path / "bench"
    few = [
        "--hosts",
        "2",
        "--rates",
        "100mbit",
        "unlimited",
        "--rounds",
        "1",
        "--turn",
        "1",
        "--steps",
        "3",
        "--warm-up",
        "1",
        "--contenders",
        "ours",
        "ddp",
        "floor_in_step",
    ]
    model = ["--data.sequence_length", "16", "--model.layers", "2", "--model.hidden", "128"]
    done = run(sys.executable, "-m", "benchmarks.network", *few, *model, "--data", data, "--out", out)
    assert done.returncode == 0, done.stderr
    about = json.loads((out / "bench.json").read_text())
    assert (about["kind"], about["hosts"], about["rates"]) == ("network", 2, ["100mbit", "unlimited"])
    assert about["did_not_complete"] == {"gloo": {}}
    all_times = pd.read_csv(out / "times.csv").set_index(["rate", "contender"]).sort_index()
    names = ["ddp", "floor_in_step", "ours"]
    assert list(all_times.index) == [(rate, name) for rate in ("100mbit", "unlimited") for name in names]
    assert (all_times.xs("floor_in_step", level="contender")["sent_bytes"] < 10_000).all()
    times, fast = (all_times.loc[rate].drop("floor_in_step") for rate in ("100mbit", "unlimited"))
    assert (fast["seconds"] < times["seconds"]).all()
    ideal = 4 * (128 * (300 + 16) + 2 * 12 * 128**2)  # bytes of the gradients, but for biases and norms
    for row in times.itertuples():
        assert ideal < row.sent_bytes < 1.3 * ideal
        assert row.seconds > 0.9 * row.sent_bytes * 8 / 100e6
        assert row.steps >= 2
    assert 1 < times.loc["ours", "sent_bytes"] / times.loc["ours", "priced_bytes"] < 1.2  # small buckets
    assert all_times["priced_bytes"].isna().tolist() == [True, True, False] * 2
    ratios = pd.read_csv(out / "ratios.csv").set_index(["rate", "contender"]).loc["100mbit"]
    assert ratios.loc["ddp", "ratio"] == 1
    assert ratios.loc["ours", "ratio"] == pytest.approx(times.loc["ours", "seconds"] / times.loc["ddp", "seconds"])
    assert (out / "step_times.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [["--contenders", "ours:auto"], ["--contenders", "ours", "--reduce.compressor=auto"]])
def test_auto_sees_one_network(words, monkeypatch, capsys):
    """It looks when it starts; a setting for all contenders is one of each."""
    monkeypatch.setattr(sys, "argv", ["network", "--rates", "50mbit", "200mbit", *words])
    with pytest.raises(SystemExit):
        network._arguments()
    assert "give one of --rates at a time" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["network", "--rates", "50mbit", *words])
    network._arguments()


@pytest.mark.skipif(bool(sandbox.obstacle()), reason=f"there can be no hosts here: {sandbox.obstacle()}")
def test_losses_are_compared(tmp_path, data):
    out = tmp_path / "bench"
    few = ["--hosts", "2", "--steps", "8", "--contenders", "ours", "ours:bf16", "ours:sync.every=8"]
    model = ["--data.sequence_length", "16", "--model.layers", "2", "--model.hidden", "64"]
    done = run(sys.executable, "-m", "benchmarks.loss", *few, *model, "--data", data, "--out", out)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "bench.json").read_text())["did_not_complete"] == {"gloo": {}}
    curves = pd.read_csv(out / "times.csv")
    assert curves.groupby("contender")["step"].apply(list).to_dict() == {name: [2, 4, 6, 8] for name in few[-3:]}
    assert curves["tokens"].tolist() == [step * 2 * 4 * 16 for step in curves["step"]]  # also while ranks are apart
    assert (curves.groupby("contender")["seconds"].diff().dropna() > 0).all()
    table = pd.read_csv(out / "ratios.csv").set_index("contender")
    assert table.loc["ours", "over_first"] == 1
    assert abs(table.loc["ours:bf16", "over_first"] - 1) < 0.01
    fastest = table.loc[table["seconds"].idxmin()]
    assert fastest["loss_then"] == pytest.approx(fastest["validation_loss"])
    untested = curves.groupby("contender")["seconds"].first().reindex(table.index) > fastest["seconds"]
    assert table["loss_then"].isna().equals(untested)
    assert (table["loss_then"] >= table["validation_loss"] - 1e-6)[~untested].all()  # losses fall
    assert table.loc["ours:sync.every=8", "megabytes"] < table.loc["ours", "megabytes"]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
