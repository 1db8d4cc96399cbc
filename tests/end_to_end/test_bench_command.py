"""`hvd-llm bench` among real ranks."""

import json
import re

import pandas as pd
import pytest
from commands import BIN, launcher, run


def bench(controller, folder) -> tuple[int, str]:
    """Exit code and what two ranks say of a few small messages, without the launcher's tags."""
    few = ["--sizes", 1, 64, "--repeats", 3]
    seldom = ["env", "HOROVOD_CYCLE_TIME=1000"]
    done = run(*seldom, *launcher(2, controller), BIN / "hvd-llm", "bench", *few, "--out", folder)
    return done.returncode, re.sub(r"\[(1,)?\d+\]<std\w+>: ?", "", done.stdout + done.stderr)


@pytest.mark.parametrize("controller", ["mpi", "gloo"])
def test_every_operation_is_timed(controller, tmp_path):
    out = tmp_path / "network"
    code, said = bench(controller, out)
    assert code == 0, said
    kinds = ["sum", "gather", "all_to_all", "bucket"]
    table = pd.read_csv(out / "collectives.csv").set_index(["operation", "payload_bytes"])
    assert list(table.index) == [(kind, size) for kind in kinds for size in (1 << 10, 64 << 10)]
    assert table.loc[("sum", 1024), "sent_bytes"] == table.loc[("bucket", 1024), "sent_bytes"] == 1024
    assert table.loc[("gather", 1024), "sent_bytes"] == table.loc[("all_to_all", 1024), "sent_bytes"] == 512
    assert (table["repeats"] == 3).all()
    assert (table["median_s"] < 0.3).all(), "Horovod looked once a second, not when there was something to do"
    assert (table["lower_quartile_s"] > 0).all()
    assert (table["lower_quartile_s"] <= table["median_s"]).all()
    assert (table["median_s"] <= table["upper_quartile_s"]).all()
    record = json.loads((out / "run.json").read_text())
    assert (record["schema"], record["kind"]) == ("hvd_llm.collectives/1", "bench")
    assert list(record["lines"]) == kinds
    (launch,) = record["launches"]
    assert (launch["size"], launch["controller"], launch["shares_memory"]) == (2, controller, True)
    assert (out / "collectives.png").read_bytes().startswith(b"\x89PNG")
    (sentence,) = (line for line in said.splitlines() if line.startswith("Latency and bandwidth"))
    assert all(re.search(rf"{kind} \S+ ms and .*?MB/s[,.]", sentence) for kind in kinds), sentence


def test_a_folder_in_use_is_refused_by_all_ranks(tmp_path):
    (tmp_path / "kept").touch()
    code, said = bench("gloo", tmp_path)
    assert code != 0  # horovodrun over Gloo has an exit code of its own
    sentences = [line for line in said.splitlines() if "hvd-llm: " in line]
    assert len(sentences) == 1, said
    assert sentences[0].endswith(f"--out is '{tmp_path}', which is not empty: give a new folder")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
