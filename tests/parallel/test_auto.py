"""reduce.compressor = auto among real ranks: one plan for all, in the trace, and the same after a resume."""

from contextlib import closing

import pytest
from small_training import settings, trainer

from analysis.trace_file import open_trace
from hvd_llm import checkpoint
from hvd_llm.trace import Trace

AUTO = {"compressor": "auto(among='int8 onebit')", "bucket_mb": 0.02}


@pytest.fixture(autouse=True)
def _several(comm):
    if comm.size == 1:
        pytest.skip("one rank exchanges nothing: there is nothing to choose")


@pytest.mark.parametrize("options", ["", ", hierarchical=true"])
def test_all_ranks_choose_the_same(comm, folders, options):
    chosen = AUTO | {"compressor": f"auto(among='int8 onebit'{options})"}
    together = trainer(comm, settings(folders, "causal", reduce=chosen))
    comm.require_same("choice", together.state.progress.choice)
    assert together.plan.why.startswith("reduce.compressor auto takes")
    assert len(together.state.progress.choice["exchange_s"]) == len(together.reducer.buckets)
    losses = [together.step()[0]["loss"] for _ in range(8)]
    together.check_drift()
    assert losses[-1] < losses[0]


def test_what_it_expects_is_in_the_trace(comm, folders, tmp_path):
    path = tmp_path / "rank.trace"
    with closing(Trace(path, comm.rank, comm.size)) as trace:
        together = trainer(comm, settings(folders, "causal", reduce=AUTO), trace=trace)
        together.step()
    written = open_trace(path)
    (records,) = written.chunks()
    expected, choice = records[records["kind"] == written.kinds["expected_exchange"]], together.state.progress.choice
    assert (expected["amount"] / 1e9).tolist() == pytest.approx(choice["exchange_s"], abs=1e-9)
    assert expected["index"].tolist() == list(range(len(together.reducer.buckets)))
    step = records[records["kind"] == written.kinds["expected_step"]]
    assert (step["amount"] / 1e9).tolist() == pytest.approx([choice["step_s"]], abs=1e-9)


@pytest.mark.usefixtures("few_worlds")
@pytest.mark.parametrize("chosen", ["onebit(block=1024, feedback=1.0)", "none"])
def test_a_resumed_run_keeps_its_choice(comm, folders, tmp_path_factory, monkeypatch, chosen):
    """Also one that the probe would not make, as if the network had been another one.

    Between hosts, embeddings are sent by rows if it is none, as if that had been asked for.
    """
    monkeypatch.setattr(comm, "_memory", None)
    config = settings(folders, "causal", reduce=AUTO)
    straight = trainer(comm, config)
    straight.step()
    straight.remember()
    saved = straight.state.snapshot()
    for planned in saved.progress["choice"]["plan"]:
        planned[1] = chosen
    run = tmp_path_factory.mktemp("run")
    run = type(run)(comm.broadcast_object("folder", str(run)))
    checkpoint.save(run, saved, lambda folder: None, comm)
    resumed = trainer(comm, config, restore=checkpoint.folder(run, 1))
    assert resumed.plan.why == ""
    found = {bucket.segments[0].compressor.name for bucket in resumed.reducer.buckets}
    assert found == ({"none", "rows"} if chosen == "none" else {"onebit"})
    resumed.step()
    resumed.check_drift()
