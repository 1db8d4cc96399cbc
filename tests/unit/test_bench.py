"""What `hvd-llm bench` makes of its times."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_llm import bench
from hvd_llm.reduce.network import Line, fit

SENT = [2.0 ** (10 + 2 * power) for power in range(8)]


def curves() -> dict[str, list[bench.Row]]:
    """Two operations that follow a line, 1 ms and 100 MB/s, each payload sent whole."""
    rows = [
        [bench.row(kind, int(sent), sent, [1e-3 + sent / 100e6] * 3) for sent in SENT] for kind in ("sum", "gather")
    ]
    return dict(zip(("sum", "gather"), rows, strict=True))


def test_the_first_time_does_not_count_unless_it_is_the_only_one():
    row = bench.row("sum", 4096, 6144, [9.0, 1.0, 2.0, 3.0])
    assert (row.repeats, row.lower_quartile_s, row.median_s, row.upper_quartile_s) == (3, 1.5, 2, 2.5)
    assert row.bus_mb_per_s == pytest.approx(6144 / 2 / 1e6)
    assert bench.row("sum", 4096, 6144, [9.0]).median_s == 9


@given(st.floats(1e-6, 1), st.floats(1e-12, 1e-6))
def test_a_line_is_found_from_points_on_it(latency_s, per_byte_s):
    for sent in (SENT, SENT[::7]):
        line = fit(sent, [latency_s + per_byte_s * each for each in sent])
        assert line.latency_s == pytest.approx(latency_s, rel=1e-3, abs=1e-6 * per_byte_s * SENT[-1])
        assert line.per_byte_s == pytest.approx(per_byte_s, rel=1e-3, abs=1e-6 * latency_s / SENT[0])


def test_a_line_is_never_negative():
    assert fit([1024, 4096], [2.0, 1.0]).per_byte_s == 0
    assert fit([1024, 4096], [1.0, 8.0]).latency_s == 0
    assert str(Line(1e-3, 0.0)) == "1 ms and too short to tell MB/s"


def test_what_is_written_and_shown(tmp_path):
    found = curves()
    bench.write(tmp_path, found)
    rows = pd.read_csv(tmp_path / "collectives.csv")
    columns = "operation payload_bytes sent_bytes repeats lower_quartile_s median_s upper_quartile_s bus_mb_per_s"
    assert " ".join(rows.columns) == columns
    assert rows["operation"].tolist() == ["sum"] * 8 + ["gather"] * 8
    assert rows["bus_mb_per_s"][7] == pytest.approx(2**24 / (1e-3 + 2**24 / 100e6) / 1e6)
    lines = bench.table(found).splitlines()
    assert len(lines) == 2 + 8
    assert lines[-1].split()[:4] == ["16", "MiB", "168.77", "99.4"]
    lines = {
        kind: fit([row.sent_bytes for row in rows], [row.median_s for row in rows]) for kind, rows in found.items()
    }
    assert str(lines["sum"]) == "1 ms and 100.0 MB/s"
    bench.draw(tmp_path / "collectives.png", found, lines)
    assert (tmp_path / "collectives.png").read_bytes().startswith(b"\x89PNG")
