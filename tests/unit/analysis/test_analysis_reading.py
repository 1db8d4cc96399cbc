"""Reading traces and run folders: what is there is read exactly, what cannot be true is refused in a sentence."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_runs import write_run

from analysis.__main__ import main
from analysis.errors import AnalysisError
from analysis.run_folder import find_runs
from analysis.steps import rank_steps
from analysis.trace_file import HEADER_BYTES, TraceFile, open_trace
from hvd_llm.trace import FIELDS, RECORD, Trace

SPAN = struct.Struct("<qqqIHH")


@pytest.fixture
def trace_path(tmp_path):
    return write_run(tmp_path / "run", ranks=2, steps=30) / "trace" / "launch-0" / "rank-00001.trace"


def test_reads_what_the_writer_wrote(tmp_path):
    trace = Trace(tmp_path / "rank-00000.trace", 0, 1)
    trace.step = 7
    for name, start, end in [("input", 0, 1), ("forward", 1, 3), ("backward", 3, 10), ("optimizer", 11, 12)]:
        trace.add(name, start * 10**9, end * 10**9)
    # Two exchanges that overlap each other; the second goes on after backward.
    trace.add("bucket_exchange", 4 * 10**9, 6 * 10**9, 0, 100)
    trace.add("bucket_exchange", 5 * 10**9, 11 * 10**9, 1, 200)
    trace.add("bucket_sent", 4 * 10**9, 6 * 10**9, 0, 150)
    trace.add("bucket_sent", 5 * 10**9, 11 * 10**9, 1, 600)
    trace.add("exposed", 10 * 10**9, 11 * 10**9)
    trace.add("step", 0, 125 * 10**8, 0, 4096)
    trace.close()

    steps = rank_steps(open_trace(tmp_path / "rank-00000.trace"))

    assert steps.step.tolist() == [7]
    assert steps.span_s.tolist() == [12.5]
    assert steps.tokens.tolist() == [4096]
    assert {name: values.tolist() for name, values in steps.parts_s.items()} == {
        "input": [1],
        "forward": [2],
        "backward": [7],
        "exposed": [1],
        "optimizer": [1],
    }
    assert steps.exchange_s.tolist() == [7]  # 4 to 11, not 2 + 6
    assert steps.hidden_s.tolist() == [6]  # 4 to 10
    assert steps.payload_bytes.tolist() == [300]
    assert steps.sent_bytes.tolist() == [750]


def test_an_exchange_that_goes_on_in_the_next_step(tmp_path):
    """Under its forward pass it is hidden, but for what that waits; between steps nothing is."""
    trace = Trace(tmp_path / "rank-00000.trace", 0, 1)
    spans = [
        (0, "backward", 0, 10), (0, "step", 0, 10), (1, "forward", 20, 24), (1, "exposed", 24, 25),
        (1, "forward", 25, 30), (1, "step", 20, 30), (1, "bucket_exchange", 8, 25),
    ]  # fmt: skip
    for step, name, start, end in spans:
        trace.step = step
        trace.add(name, start * 10**9, end * 10**9)
    trace.close()
    steps = rank_steps(open_trace(tmp_path / "rank-00000.trace"))
    assert steps.exchange_s.tolist() == [0, 17]
    assert steps.hidden_s.tolist() == [0, 6]  # 8 to 10, 20 to 24
    assert steps.parts_s["forward"].tolist() == [0, 9]


def test_pieces_do_not_change_the_result(trace_path, monkeypatch):
    whole = rank_steps(open_trace(trace_path))
    monkeypatch.setattr(TraceFile.chunks, "__defaults__", (25,))
    pieces = rank_steps(open_trace(trace_path))
    for name in ("step", "span_s", "exchange_s", "hidden_s", "payload_bytes", "sent_bytes"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), rtol=1e-12)
    for name, values in whole.parts_s.items():
        np.testing.assert_allclose(pieces.parts_s[name], values, rtol=1e-12)
    assert pieces.between == whole.between


@pytest.mark.parametrize("lost", [1, 31, 33, 200])
def test_a_cut_trace_loses_only_what_was_cut(trace_path, lost):
    whole = rank_steps(open_trace(trace_path))
    trace_path.write_bytes(trace_path.read_bytes()[:-lost])
    cut = rank_steps(open_trace(trace_path))
    assert len(whole.step) - 1 <= len(cut.step) <= len(whole.step)
    np.testing.assert_array_equal(cut.span_s, whole.span_s[: len(cut.step)])


def test_accepts_more_fields_and_kinds_than_it_knows(trace_path):
    head, records = trace_path.read_bytes()[:HEADER_BYTES], trace_path.read_bytes()[HEADER_BYTES:]
    old = np.frombuffer(records, np.dtype([tuple(field) for field in FIELDS]))
    new = np.zeros(len(old), [*old.dtype.descr, ("stream", "<u4")])
    for name in old.dtype.names:
        new[name] = old[name]
    header = json.loads(head)
    header["record"] = [*FIELDS, ["stream", "<u4"]]
    header["kinds"]["77"] = {"name": "teleport", "index": None, "amount": None}
    trace_path.write_bytes(json.dumps(header).encode().ljust(HEADER_BYTES - 1) + b"\n" + new.tobytes())
    assert len(rank_steps(open_trace(trace_path)).step) == 30


def test_a_trace_from_before_bytes_sent_were_recorded(trace_path):
    kinds = json.loads(trace_path.read_bytes()[:HEADER_BYTES])["kinds"]
    number = next(number for number, kind in kinds.items() if kind["name"] == "bucket_sent")
    edit_header(trace_path, kinds=kinds | {number: {"name": "unknown"}})
    steps = rank_steps(open_trace(trace_path))
    assert np.isnan(steps.sent_bytes).all()
    assert (steps.payload_bytes == 12_000_000).all()


def edit_header(path, **changes):
    data = path.read_bytes()
    header = json.loads(data[:HEADER_BYTES]) | changes
    path.write_bytes(json.dumps(header).encode().ljust(HEADER_BYTES - 1) + b"\n" + data[HEADER_BYTES:])


def append(path, **changes):
    values = {"start": 10**9, "end": 2 * 10**9, "amount": 0, "step": 0, "index": 0, "kind": 2} | changes
    with open(path, "ab") as file:
        file.write(SPAN.pack(*values.values()))


def object_field(path):
    edit_header(path, record=[["start_ns", "|O"], *FIELDS[1:]])


HOSTILE_TRACES = {
    "empty": (lambda path: path.write_bytes(b""), "0 bytes"),
    "header cut": (lambda path: path.write_bytes(path.read_bytes()[:100]), "100 bytes"),
    "foreign": (lambda path: path.write_bytes(b"\x89PNG" * 3000), "not a trace"),
    "chrome trace": (lambda path: path.write_bytes(b'[{"ph": "B"}]'.ljust(9000)), "not a trace"),
    "broken json": (lambda path: path.write_bytes(b"{" * 9000), "not JSON"),
    "binary header": (lambda path: path.write_bytes(b"{\xff\xfe" * 3000), "not JSON"),
    "NaN in header": (lambda path: edit_header(path, rank=float("nan")), "NaN is not a number"),
    "other schema": (lambda path: edit_header(path, schema="hvd_llm.trace/9"), "hvd_llm.trace/9"),
    "no schema": (lambda path: edit_header(path, schema=None), "schema None"),
    "huge size": (lambda path: edit_header(path, size=10**30), "'size'"),
    "size is true": (lambda path: edit_header(path, size=True), "'size'"),
    "rank beyond size": (lambda path: edit_header(path, rank=5), "rank 5 of size 2"),
    "another size": (lambda path: edit_header(path, size=3), "run.json says 2"),
    "another rank": (lambda path: edit_header(path, rank=0), "one trace for each"),
    "objects in records": (object_field, "'record' must list"),
    "records of strings": (lambda path: edit_header(path, record=[["start_ns", "<U99999999"]]), "'record' must list"),
    "record of one field": (lambda path: edit_header(path, record=[["start_ns", "<i8"]]), "'record' must list"),
    "record is text": (lambda path: edit_header(path, record="i8"), "'record' must be a list"),
    "kinds of numbers": (lambda path: edit_header(path, kinds={"1": 2}), "of 'kinds'"),
    "no step kind": (lambda path: edit_header(path, kinds={"2": {"name": "input"}}), "no 'step'"),
    "unknown kind": (lambda path: append(path, kind=99), "kind = 99"),
    "end before start": (lambda path: append(path, end=0), "end_ns = 0 lies before"),
    "negative time": (lambda path: append(path, start=-5), "start_ns = -5"),
    "time beyond clocks": (lambda path: append(path, end=2**63 - 1), "not a time"),
    "negative amount": (lambda path: append(path, amount=-1), "amount = -1"),
    "huge amount": (lambda path: append(path, amount=2**62, kind=6), "not a possible amount"),
    "a step twice": (lambda path: append(path, kind=1), "step 0 twice"),
    "a part longer than its step": (lambda path: append(path, end=10**18, kind=3), "longer than the step"),
    "only a header": (lambda path: path.write_bytes(path.read_bytes()[:HEADER_BYTES]), "no complete step"),
    "missing": (lambda path: path.unlink(), "missing: [1]"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot read"),
}


@pytest.mark.parametrize("name", HOSTILE_TRACES)
def test_hostile_traces_end_in_one_sentence(name, trace_path, tmp_path, capsys):
    spoil, expected = HOSTILE_TRACES[name]
    spoil(trace_path)
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report")]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not (tmp_path / "report").exists()


def edit_run(path, **changes):
    (path / "run.json").write_text(json.dumps(json.loads((path / "run.json").read_text()) | changes))


def edit_launch(path, **changes):
    launch = json.loads((path / "run.json").read_text())["launches"][0]
    edit_run(path, launches=[launch | changes])


HOSTILE_RUNS = {
    "empty run.json": (lambda path: (path / "run.json").write_text(""), "not JSON"),
    "a list": (lambda path: (path / "run.json").write_text("[]"), "must hold a JSON object"),
    "deep": (lambda path: (path / "run.json").write_text('{"a":' + "[" * 200_000), "not JSON"),
    "other schema": (lambda path: edit_run(path, schema="x"), "has schema 'x'"),
    "no config": (lambda path: edit_run(path, config=None), "'config' must be an object"),
    "a section of text": (lambda path: edit_run(path, config={"train": "fast"}), "section 'train'"),
    "no batch": (lambda path: edit_run(path, config={"train": {}}), "'global_batch'"),
    "batch of zero": (lambda path: edit_run(path, config={"train": {"global_batch": 0}}), "at least 1"),
    "huge batch": (lambda path: edit_run(path, config={"train": {"global_batch": 10**400}}), "'global_batch'"),
    "no launches": (lambda path: edit_run(path, launches=[]), "'launches' is empty"),
    "launch of text": (lambda path: edit_run(path, launches=["x"]), "must be an object"),
    "host missing": (lambda path: edit_launch(path, hosts=["a"]), "the host of each of 2 ranks"),
    "no cpu": (lambda path: edit_launch(path, cpu=None), "'cpu' must be a string"),
    "a launch too many": (lambda path: (path / "trace/launch-1").mkdir(), "launch-1 belongs to none"),
    "not traced": (lambda path: (path / "trace/launch-0").rename(path / "gone"), "holds no trace"),
    "metrics of text": (
        lambda path: (path / "metrics.csv").write_text("step,loss,validation_loss\na,b,c\n"),
        "not a table",
    ),
    "metrics empty": (lambda path: (path / "metrics.csv").write_text(""), "not a table"),
    "metrics binary": (lambda path: (path / "metrics.csv").write_bytes(b"\xff\x00" * 99), "metrics.csv"),
    "step is NaN": (
        lambda path: (path / "metrics.csv").write_text("step,loss,validation_loss\nnan,1,\n"),
        "a whole number",
    ),
    "huge step": (
        lambda path: (path / "metrics.csv").write_text("step,loss,validation_loss\n1e300,1,\n"),
        "a whole number",
    ),
    "no loss": (lambda path: (path / "metrics.csv").write_text("step\n1\n"), "no column 'loss'"),
}


@pytest.mark.parametrize("name", HOSTILE_RUNS)
def test_hostile_runs_end_in_one_sentence(name, tmp_path, capsys):
    spoil, expected = HOSTILE_RUNS[name]
    spoil(write_run(tmp_path / "run", ranks=2, steps=30))
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report")]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_read_or_refused(trace_path, data):
    good = trace_path.read_bytes()
    sentence = str(trace_path)
    try:
        bad = bytearray(good)
        for _ in range(data.draw(st.integers(1, 5))):
            bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
        trace_path.write_bytes(bad)
        steps = rank_steps(open_trace(trace_path))
        assert np.isfinite(steps.span_s).all()
    except AnalysisError as error:
        sentence = str(error)
    finally:
        trace_path.write_bytes(good)
    assert str(trace_path) in sentence


def test_a_folder_stands_for_the_training_runs_in_it(tmp_path):
    for folder in ("a/run", "b/run"):
        write_run(tmp_path / folder, steps=12)
    (tmp_path / "a" / "bench").mkdir()
    (tmp_path / "a" / "bench" / "run.json").write_text('{"schema": "hvd_llm.collectives/1", "kind": "bench"}')
    assert [run.name for run in find_runs([tmp_path / "a", tmp_path / "b" / "run"])] == ["a/run", "b/run"]
    assert len(find_runs([tmp_path / "a", tmp_path / "a" / "run"])) == 1
    with pytest.raises(AnalysisError, match="holds no run"):
        find_runs([tmp_path])
    with pytest.raises(AnalysisError, match="is not a folder"):
        find_runs([tmp_path / "c"])


def test_record_layout_is_the_writers():
    assert SPAN.format == RECORD.format
