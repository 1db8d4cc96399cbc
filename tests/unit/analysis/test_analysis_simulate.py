"""A simulated step: what must be true of any, and what is known of some."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import write_run

from analysis import network_lines, prices
from analysis.__main__ import main
from analysis.errors import AnalysisError
from analysis.network_lines import Network
from analysis.simulate import Work
from analysis.step_timeline import Exchange, pass_s
from hvd_llm.reduce import pricing
from hvd_llm.reduce.step_time import Cost, predict

seconds = st.floats(0, 10)
exchanges = st.lists(
    st.builds(Exchange, st.floats(0, 5), seconds, st.lists(seconds, max_size=3).map(tuple)), max_size=6
).map(lambda found: sorted(found, key=lambda exchange: exchange.ready_s))


@given(exchanges, st.booleans())
def test_a_pass_is_no_shorter_than_its_parts_and_no_longer_than_all(found, overlap):
    compute_s = 5.0
    took = pass_s(found, compute_s, overlap)
    kernels, network = sum(e.kernel_s for e in found), sum(sum(e.operation_s) for e in found)
    slack = 1e-9
    assert took >= compute_s + kernels - slack
    if found:
        assert took >= (min(e.ready_s for e in found) if overlap else compute_s) + network - slack
    assert took <= compute_s + kernels + network + slack


@given(exchanges)
def test_sending_inside_the_pass_costs_no_more_than_what_compressors_compute(found):
    assert pass_s(found, 5.0, True) <= pass_s(found, 5.0, False) + sum(e.kernel_s for e in found) + 1e-9


@given(exchanges, st.floats(1, 3))
def test_a_slower_network_makes_no_step_shorter(found, factor):
    slower = [Exchange(e.ready_s, 0.0, tuple(factor * each for each in e.operation_s)) for e in found]
    plain = [Exchange(e.ready_s, 0.0, e.operation_s) for e in found]
    assert pass_s(slower, 5.0) >= pass_s(plain, 5.0) - 1e-9


@given(st.lists(st.tuples(st.floats(0, 5), seconds), max_size=6))
def test_without_kernels_it_is_what_auto_expects(found):
    """`reduce.compressor = auto` plans with the same queue."""
    found = sorted(found)
    ours = pass_s([Exchange(ready, 0.0, (sending,)) for ready, sending in found], 5.0)
    theirs = predict([Cost(0.0, 0.0, sending) for _, sending in found], [ready for ready, _ in found], 5.0).step_s
    assert ours == pytest.approx(theirs)


def test_an_answer_is_taken_up_before_the_pass_goes_on():
    """Ready after 1 s; a kernel of 1 s before, between and after two operations of 1 s; 4 s to compute."""
    assert pass_s([Exchange(1.0, 3.0, (1.0, 1.0))], 4.0) == 7.0  # the network's work is hidden
    assert pass_s([Exchange(4.0, 3.0, (1.0, 1.0))], 4.0) == 9.0  # nothing hides it
    assert pass_s([Exchange(1.0, 3.0, (1.0, 1.0))], 4.0, overlap=False) == 9.0


@given(st.integers(1, 20_000))
def test_the_slowest_of_many_is_a_largest_draw(ranks):
    uneven = np.sort(np.random.default_rng(0).normal(1, 0.05, 500))
    slowest = Work(1, 1.0, 0.0, uneven, True).slowest(ranks)
    assert uneven.mean() - 1e-9 <= slowest <= uneven.max() + 1e-9
    if ranks == 1:
        assert slowest == pytest.approx(uneven.mean())


NETWORK = {"sum": (2e-3, 1e-8), "gather": (1e-3, 2e-8), "all_to_all": (1e-3, 1e-8)}


def write_network(folder, ranks=2):
    folder.mkdir()
    lines = {kind: {"latency_s": latency, "per_byte_s": per} for kind, (latency, per) in NETWORK.items()}
    about = {"schema": network_lines.SCHEMA, "kind": "bench", "lines": lines, "launches": [{"size": ranks}]}
    (folder / "run.json").write_text(json.dumps(about))
    return folder


def write_prices(folder, ranks=(2, 4, 8)):
    """Two buckets of 1 MB, ready at the middle and at the end of a pass of 0.1 s; by "half", half as much is sent."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"schema": prices.SCHEMA, "kind": "prices"}))
    rows = []
    for count in ranks:
        for name, share, kernel_s in (("none", 1.0, 0.0), ("half", 0.5, 0.01)):
            for bucket, ready_s in enumerate((0.05, 0.1)):
                sent = 2 * (count - 1) / count * 1e6 * share
                row = {"ranks": count, "compressor": name, "bucket_mb": 4.0, "bucket": bucket, "gradient_bytes": 10**6}
                row |= {"ready_s": ready_s, "pass_s": 0.1, "kernel_s": kernel_s, "sums": 1, "sum_bytes": sent}
                rows.append(row | dict.fromkeys(["gathers", "gather_bytes", "all_to_alls", "all_to_all_bytes"], 0))
    pd.DataFrame(rows).to_csv(folder / "prices.csv", index=False)
    return folder


def simulate(tmp_path, *words):
    run = write_run(tmp_path / "run", 1, noise=0)
    folders = [
        "--prices",
        str(write_prices(tmp_path / "prices")),
        "--network",
        str(write_network(tmp_path / "network")),
    ]
    code = main(["simulate", str(run), *folders, "--out", str(tmp_path / "out"), *words])
    return code, tmp_path / "out"


def test_a_step_is_its_parts(tmp_path):
    """Of 189 ms, passes take 180: the first bucket is ready after 90; a sum of 1 MB takes 2 + 10 ms for two ranks."""
    code, out = simulate(tmp_path, "--ranks", "2", "16", "4096")
    assert code == 0
    table = pd.read_csv(out / "simulate.csv").set_index(["ranks", "compressor"])
    assert table.loc[(2, "none"), "step_s"] == pytest.approx(0.189 + 0.012, rel=1e-6)
    assert table.loc[(2, "half"), "step_s"] == pytest.approx(0.189 + 0.02 + 0.007, rel=1e-6)
    sent = 2 * 15 / 16 * 1e6
    assert table.loc[(16, "none"), "sent_mb"] == pytest.approx(2 * sent / 1e6)
    assert table.loc[(16, "none"), "step_s"] == pytest.approx(0.189 + 15 * 0.002 + sent * 1e-8, rel=1e-6)
    assert table.loc[(4096, "none"), "sent_mb"] == pytest.approx(4 * 4095 / 4096, rel=1e-6)
    assert (table["efficiency"] * table["step_s"]).to_numpy() == pytest.approx(0.189, rel=1e-6)
    assert table.groupby("ranks")["best"].sum().eq(1).all()
    assert (out / "simulate.png").read_bytes().startswith(b"\x89PNG")


def test_another_rate_is_of_frames(tmp_path):
    code, out = simulate(tmp_path, "--ranks", "2", "--rates", "8", "1000")
    assert code == 0
    table = pd.read_csv(out / "simulate.csv").set_index(["network", "compressor"])
    sum_s = 0.002 + 1e6 / 1e6 * network_lines.FRAMING  # 1 MB at 1 MB/s
    assert table.loc[("8 Mb/s", "none"), "step_s"] == pytest.approx(0.09 + 2 * sum_s + 0.009, rel=1e-6)
    assert table.loc[("1000 Mb/s", "none"), "best"]
    assert table.loc[("8 Mb/s", "half"), "best"]


def test_frames_are_those_that_benchmarks_count():
    assert network_lines.FRAMING == pricing.FRAMING


def test_a_network_is_passed_along():
    network = Network(3, {"sum": 0.004}, {"sum": 1e-6})
    assert network.seconds("sum", 1e3, 3) == pytest.approx(0.005)
    assert network.seconds("sum", 1e3, 9) == pytest.approx(0.017)


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("prices/run.json", lambda text: "{}", "has schema None; this reads 'hvd_llm.prices/1'"),
        ("prices/prices.csv", lambda text: "", "cannot read"),
        ("prices/prices.csv", lambda text: text.replace("kernel_s", "kernels"), "has no column 'kernel_s'"),
        ("prices/prices.csv", lambda text: text.replace("0.05", "-1"), "must hold numbers from 0"),
        ("prices/prices.csv", lambda text: text.replace("0.05", "0.5"), "is ready after its pass"),
        ("prices/prices.csv", lambda text: text.replace(",1,1", ",1000000000,1"), "more than 1000 operations"),
        ("network/run.json", lambda text: text.replace("collectives", "run"), "this reads 'hvd_llm.collectives/1'"),
        ("network/run.json", lambda text: text.replace("0.002", "-1"), "it must be a number of seconds"),
        ("network/run.json", lambda text: text.replace('"size": 2', '"size": 1'), "one rank exchanges nothing"),
        ("run/run.json", lambda text: text.replace('"overlap": "backward"', '"overlap": "forward"'), "are forward, 1"),
    ],
)
def test_what_cannot_be_simulated_is_one_sentence(tmp_path, capsys, file, spoil, said):
    write_run(tmp_path / "run", 1)
    write_prices(tmp_path / "prices")
    write_network(tmp_path / "network")
    text = (tmp_path / file).read_text()
    assert spoil(text) != text
    (tmp_path / file).write_text(spoil(text))
    words = ["--prices", str(tmp_path / "prices"), "--network", str(tmp_path / "network")]
    assert main(["simulate", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_ranks_that_were_not_priced_need_three_that_were_cut_alike(tmp_path):
    """Among few ranks, embeddings may go by rows, in buckets of their own."""
    folder = write_prices(tmp_path / "prices", ranks=(2, 4, 8, 16))
    table = pd.read_csv(folder / "prices.csv")
    table[(table["ranks"] != 2) | (table["bucket"] != 1)].to_csv(folder / "prices.csv", index=False)
    found = prices.read(folder)
    assert [len(found.buckets("none", 4.0, ranks)) for ranks in (2, 4, 32)] == [1, 2, 2]
    assert found.buckets("none", 4.0, 32)[0].operations == (("sum", pytest.approx(2 * 31 / 32 * 1e6)),)
    table[(table["ranks"] != 4) | (table["bucket"] != 1)].to_csv(folder / "prices.csv", index=False)
    assert prices.read(folder).buckets("none", 4.0, 32)
    table[(table["ranks"] > 4) | (table["bucket"] != 1)].to_csv(folder / "prices.csv", index=False)
    with pytest.raises(AnalysisError, match="2 numbers of ranks with the same buckets; 3 are needed to say what 32"):
        prices.read(folder).buckets("none", 4.0, 32)
    with pytest.raises(AnalysisError, match="no prices of int8"):
        found.buckets("int8", 4.0, 16)
