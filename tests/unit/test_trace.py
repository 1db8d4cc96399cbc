import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hvd_llm.comm import WORLD
from hvd_llm.comm.solo import Done, Solo
from hvd_llm.compress.base import AllToAll, Gather, Sum, compressor
from hvd_llm.reduce import policy
from hvd_llm.reduce.sender import Route, Sender
from hvd_llm.trace import FIELDS, HEADER_BYTES, KINDS, RECORD, NoTrace, Trace

DOCUMENT = (Path(__file__).parents[2] / "docs/run_folder.md").read_text()


def read(path):
    content = path.read_bytes()
    header = json.loads(content[:HEADER_BYTES])
    record = np.dtype([tuple(field) for field in header["record"]])
    whole = (len(content) - HEADER_BYTES) // record.itemsize
    return header, np.frombuffer(content, record, whole, HEADER_BYTES)


def test_what_is_written_is_read_from_the_header_alone(tmp_path):
    trace = Trace(tmp_path / "trace" / "rank-00003.trace", 3, 8)
    trace.step = 7
    trace.add("forward", 100, 250, index=2)
    trace.add("checkpoint", 300, 400, amount=12)
    trace.close()
    header, records = read(tmp_path / "trace" / "rank-00003.trace")
    assert (header["rank"], header["size"]) == (3, 8)
    names = [header["kinds"][str(kind)]["name"] for kind in records["kind"]]
    assert names == ["forward", "checkpoint"]
    assert records[0][["start_ns", "end_ns", "step", "index"]].tolist() == (100, 250, 7, 2)
    assert records["amount"].tolist() == [0, 12]


def test_a_span_inside_another_interrupts_it(tmp_path):
    trace = Trace(tmp_path / "a.trace", 0, 1)
    trace.begin(0)
    with trace.span("forward", 3):
        with trace.span("exposed"):
            pass
        with trace.span("optimizer"):
            pass
    trace.close()
    header, records = read(tmp_path / "a.trace")
    names = [header["kinds"][str(kind)]["name"] for kind in records["kind"]]
    assert names == ["forward", "exposed", "forward", "optimizer", "forward"]
    assert all(records["index"][::2] == 3)
    assert (records["end_ns"][:-1] <= records["start_ns"][1:]).all()


def test_a_span_is_recorded_when_its_body_raises(tmp_path):
    trace = Trace(tmp_path / "a.trace", 0, 1)
    trace.begin(0)
    with pytest.raises(ZeroDivisionError), trace.span("forward"):
        raise ZeroDivisionError
    trace.close()
    assert len(read(tmp_path / "a.trace")[1]) == 1


def test_between_steps_no_part_of_a_step_is_recorded(tmp_path):
    trace = Trace(tmp_path / "a.trace", 0, 1)
    for step in range(2):
        trace.begin(step)
        with trace.span("forward"):
            pass
        trace.end(amount=5)
        with trace.span("optimizer"):
            pass
    trace.close()
    header, records = read(tmp_path / "a.trace")
    names = [header["kinds"][str(kind)]["name"] for kind in records["kind"]]
    assert names == 2 * ["forward", "step"]
    assert records["step"].tolist() == [0, 0, 1, 1]
    assert records["amount"].tolist() == [0, 5, 0, 5]


def test_a_file_cut_short_keeps_its_whole_records(tmp_path):
    path = tmp_path / "a.trace"
    trace = Trace(path, 0, 1)
    for _ in range(5):
        trace.add("input", 1, 2)
    trace.close()
    path.write_bytes(path.read_bytes()[:-10])
    assert len(read(path)[1]) == 4


def test_a_trace_is_never_overwritten(tmp_path):
    Trace(tmp_path / "a.trace", 0, 1).close()
    with pytest.raises(FileExistsError):
        Trace(tmp_path / "a.trace", 0, 1)


class Alike(Solo):
    """Rank 1 of 4 that all have the same."""

    rank, size = 1, 4

    def ranks(self, group):
        return tuple(range(self.size))

    def gather_async(self, name, tensor, group=WORLD, lengths=None):
        return Done([tensor] * self.size)


@compressor(dense=True)
def asks_everything(gradient, state, at):
    yield Gather(gradient)
    yield AllToAll(gradient.split([1, 2, 3, 4]))
    yield Sum(gradient, "node")
    return (yield Sum(gradient))


def test_what_an_exchange_sends_is_recorded_by_operation(tmp_path):
    """Of 40 bytes: all 3 times in a gather, all but its own 8 in an all-to-all, 3/2 of all in a sum; none in a node."""
    trace = Trace(tmp_path / "a.trace", 1, 4)
    parameters = {"weight": torch.zeros(10)}
    plan = policy.plan(parameters, ["weight"], 1000, asks_everything)
    sender = Sender("test", parameters, plan, Route(Alike(), {"world": WORLD, "node": WORLD}, trace), {})
    sender.send(sender.buckets[0], 0)
    sender.finish(sender.buckets)
    trace.close()
    header, records = read(tmp_path / "a.trace")
    amounts = {header["kinds"][str(record["kind"])]["name"]: record["amount"] for record in records}
    assert amounts == {"bucket_queue": 0, "bucket_exchange": 40 + 40 + 40, "bucket_sent": 120 + 32 + 60}


def test_no_trace_takes_the_same_calls():
    trace = NoTrace()
    trace.begin(0)
    with trace.span("forward"):
        trace.add("input", 1, 2)
    trace.end(amount=5)
    trace.flush()
    trace.close()


def test_the_document_names_every_kind_and_field():
    assert RECORD.size == np.dtype([tuple(field) for field in FIELDS]).itemsize == 32
    table = DOCUMENT[DOCUMENT.index("| kind | span") :]
    rows = [line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|")]
    documented = {name.strip() for row in rows for name in row.split(",")}
    assert documented >= KINDS.keys()
    for name, _ in FIELDS:
        assert name in DOCUMENT
