"""reduce.compressor = auto among real ranks: one plan for all, in the trace, and the same after a resume."""

import itertools
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from small_training import resumed, saved, settings, trainer

from analysis.trace_file import open_trace
from hvd_llm import checkpoint, models
from hvd_llm.comm import WORLD
from hvd_llm.reduce import auto
from hvd_llm.reduce.network import Line, burden
from hvd_llm.reduce.probe import Work, probe
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


def test_the_choice_is_that_of_rank_0(comm, folders, monkeypatch):
    """Ranks may round unlike each other."""
    choose = auto.choose

    def unlike(*args, **options):
        found = choose(*args, **options)
        return replace(found, prediction=replace(found.prediction, step_s=float(comm.rank)))

    monkeypatch.setattr(auto, "choose", unlike)
    together = trainer(comm, settings(folders, "causal", reduce=AUTO))
    assert together.state.progress.choice["step_s"] == 0


def force(monkeypatch, comm, compresses):
    """Have auto compress all that it may, or nothing, as if the network had been another one, between hosts."""
    monkeypatch.setattr(comm, "_memory", None)
    monkeypatch.setattr(auto, "NEAR", 0.0 if compresses else 1e9)
    monkeypatch.setattr(auto, "search", lambda costs, *rest: [len(row) - 1 for row in costs])


def used(trainer):
    return {bucket.segments[0].compressor.name for bucket in trainer.reducer.buckets}


@pytest.mark.parametrize("compresses", [False, True])
def test_embeddings_go_by_rows_if_nothing_is_compressed(comm, folders, monkeypatch, compresses):
    """As without auto; and that is what compressing is weighed against."""
    force(monkeypatch, comm, compresses)
    together = trainer(comm, settings(folders, "causal", reduce=AUTO))
    buckets = together.reducer.buckets
    assert used(together) == ({"none", "onebit"} if compresses else {"none", "rows"})
    assert any(name.endswith(".lookup") for bucket in buckets for name in bucket.views) != compresses
    assert len(together.state.progress.choice["exchange_s"]) == len(buckets)
    losses = [together.step()[0]["loss"] for _ in range(8)]
    together.check_drift()
    assert losses[-1] < losses[0]


def test_hosts_that_are_unlike_resume_alike(comm, folders, tmp_path_factory, monkeypatch):
    """If one rank chose again and another did not, they would wait for each other."""
    place = comm.place
    monkeypatch.setattr(
        comm, "place", lambda group: (0, 1 + (comm.rank == 0)) if group.name.startswith("node") else place(group)
    )
    straight = trainer(comm, settings(folders, "causal", reduce=AUTO))
    straight.step()
    again = resumed(straight, tmp_path_factory)
    assert again.plan.why == ""
    assert again.state.progress.choice == straight.state.progress.choice


@pytest.mark.usefixtures("few_worlds")
@pytest.mark.parametrize(
    "changed", [{"micro_batch": 2}, {"activation_checkpointing": True}, {"compile": True}, {"threads": 3}]
)
def test_a_resumed_run_that_computes_otherwise_chooses_again(comm, folders, tmp_path_factory, monkeypatch, changed):
    """How long a pass takes decides what is worth compressing."""
    straight = trainer(comm, settings(folders, "causal", reduce=AUTO))
    straight.step()
    path = checkpoint.folder(saved(straight, tmp_path_factory), 1)
    train = {name: value for name, value in changed.items() if name != "threads"}
    monkeypatch.setattr(torch, "get_num_threads", lambda: changed.get("threads", 1))
    monkeypatch.setattr(models, "compile_blocks", lambda model: None)
    again = trainer(comm, settings(folders, "causal", reduce=AUTO, train=train), restore=path)
    assert again.plan.why.startswith("reduce.compressor auto takes")
    assert again.state.progress.choice["asked"] != straight.state.progress.choice["asked"]


def test_what_sending_holds_up_is_what_it_adds(comm):
    """Per byte, of work that a sum is sent under."""

    def worker(*seconds):
        given = itertools.chain(seconds[:1], itertools.cycle(seconds))

        def work() -> float:
            took = next(given)
            time.sleep(took)
            return took

        return work

    line, cpu = Line(0, 0.1 / 8 / 1000), torch.device("cpu")  # so that a thousand numbers are sent
    assert burden(comm, cpu, line, worker(0.1, 0.1)) == 0
    sent = 2 * (comm.size - 1) / comm.size * 4000
    assert burden(comm, cpu, line, worker(0.1, 0.3)) == pytest.approx(0.2 / sent, rel=0.2)


@pytest.mark.parametrize("loaded_s", [0.05, 0.4])
def test_the_probe_is_the_mean_over_ranks(comm, monkeypatch, loaded_s):
    """Chance may have ranks compute faster while they send: that is no gain."""
    monkeypatch.setattr(comm, "_memory", None)
    # The first pass is slow; two alone, of which the shorter one counts; one to find out how much to send under it.
    given = iter([9, 0.1, 0.3, 0.1, *[0.1, loaded_s] * 5])

    def readiness():
        return {"weight": next(given) + comm.rank}

    work = Work({"weight": torch.nn.Parameter(torch.zeros(2))}, {}, readiness, tokens=1)
    found = probe(comm, {"world": WORLD}, work, "backward")
    assert found.ready_s["weight"] == pytest.approx(0.1 + (comm.size - 1) / 2)
    assert (found.burden > 0) == (loaded_s > 0.1)


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
@pytest.mark.parametrize("compresses", [False, True])
def test_a_resumed_run_keeps_its_choice(comm, folders, tmp_path_factory, monkeypatch, compresses):
    """Also one that the probe would not make now."""
    force(monkeypatch, comm, compresses)
    straight = trainer(comm, settings(folders, "causal", reduce=AUTO))
    straight.step()
    force(monkeypatch, comm, not compresses)
    again = resumed(straight, tmp_path_factory)
    assert again.plan.why == ""
    assert used(again) == used(straight)
    for _ in range(2):  # what was kept of the first exchange is in the second
        row, expected = again.step()[0], straight.step()[0]
        assert row["loss"] == expected["loss"]
    again.check_drift()
    for name, parameter in straight.state.parameters.items():
        assert torch.equal(again.state.parameters[name], parameter), name
