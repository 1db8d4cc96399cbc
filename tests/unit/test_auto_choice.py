"""The choice of compressors from costs: pure logic, no ranks."""

import argparse
from importlib.metadata import EntryPoint

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_llm.compress import command, registry
from hvd_llm.compress.base import compressor
from hvd_llm.errors import UserError
from hvd_llm.reduce.step_time import Cost, predict, search

seconds = st.floats(0, 1)
rows = st.lists(st.lists(st.builds(Cost, seconds, seconds, seconds), min_size=1, max_size=4), min_size=1, max_size=6)


def test_buckets_share_the_network_and_kernels_hold_up_backward():
    costs = [Cost(kernel_s=1, latency_s=0.5, sending_s=4), Cost(kernel_s=2, latency_s=0.5, sending_s=1)]
    found = predict(costs, ready_s=[2, 3], compute_s=4)
    # The first is sent from 3 to 7. The second is ready at 4, packed at 6, sent from 7 to 8, and seen 0.5 later.
    assert found.step_s == 8.5
    assert found.exchange_s == (5.5, 4.5)


def test_a_step_is_no_shorter_than_what_is_computed():
    assert predict([Cost(1, 0, 0)], ready_s=[2], compute_s=4).step_s == 5


def test_sending_holds_up_what_is_computed_meanwhile():
    """Backward hides either, but what sends less leaves it the processor."""
    much, little = Cost(0, 0, 0.5, burden_s=0.2), Cost(0.1, 0, 0.05, burden_s=0.02)
    assert predict([much], ready_s=[1], compute_s=3).step_s == pytest.approx(3.2)
    assert search([[much, little]] * 2, ready_s=[1, 2], compute_s=3) == [1, 1]
    assert search([[Cost(0, 0, 0.5), little]] * 2, ready_s=[1, 2], compute_s=3) == [0, 0]


@given(rows, st.floats(0.1, 2))
def test_the_choice_is_as_good_as_one_for_all(costs, compute_s):
    ready_s = [compute_s * (bucket + 1) / len(costs) for bucket in range(len(costs))]

    def step_s(chosen):
        return predict([row[at] for row, at in zip(costs, chosen, strict=True)], ready_s, compute_s).step_s

    best = min(step_s([min(at, len(row) - 1) for row in costs]) for at in range(max(map(len, costs))))
    # every bucket that loses less instead may cost two percent of the best, all of them together
    assert step_s(search(costs, ready_s, compute_s)) <= best * 1.02 + 1e-12


@pytest.mark.parametrize(("sending_s", "expected"), [(0.001, [0, 0]), (5.0, [1, 1])])
def test_it_compresses_where_that_pays(sending_s, expected):
    row = [Cost(0, 0.01, sending_s), Cost(0.2, 0.02, sending_s / 16)]
    assert search([row, row], ready_s=[0.5, 1], compute_s=1) == expected


def test_what_backward_hides_is_left_alone():
    """The first bucket travels under backward in any case; only the last one holds up the step."""
    row = [Cost(0, 0, 0.5), Cost(0.01, 0, 0.05)]
    assert search([row, row], ready_s=[0.2, 1], compute_s=1) == [0, 1]


def test_with_forward_overlap_a_whole_step_hides_what_two_at_a_time_take():
    def step_s(latency_s, sending_s):
        return predict([Cost(0, latency_s, sending_s)] * 4, [1, 2, 3, 4], 4, whole_step=True).step_s

    assert step_s(latency_s=0.1, sending_s=0.9) == 4  # backward alone hides but three of them
    assert step_s(latency_s=0.1, sending_s=2) == 8
    assert step_s(latency_s=5, sending_s=1) == 12


def test_candidates():
    assert [found.name for found in registry.candidates("int8")] == ["int8"]
    automatic = [found.name for found in registry.candidates("auto")]
    assert automatic[0] == "none"
    assert len(automatic) > 3
    named = registry.candidates("auto(among='topk(keep=8, feedback=0.5) none')")
    assert [found.text for found in named] == ["none", "topk(keep=8, feedback=0.5)"]
    doubled = registry.candidates("auto(among='none topk(keep=8)', hierarchical=true)")
    assert [found.text for found in doubled] == [
        "none",
        "hierarchical(across=none)",
        "topk(keep=8, feedback=1.0)",
        "hierarchical(across=topk(keep=8, feedback=1.0), feedback=1.0)",
    ]


def test_a_broken_package_does_not_hide_the_others(monkeypatch, capsys, tmp_path):
    (tmp_path / "half_written.py").write_text("def compress(\n")
    monkeypatch.syspath_prepend(tmp_path)
    broken = {"broken": "nowhere:compressor", "unfinished": "half_written:compress"}
    found = registry._installed() | {name: EntryPoint(name, where, registry.GROUP) for name, where in broken.items()}
    monkeypatch.setattr(registry, "_installed", lambda: found)
    command.run(argparse.Namespace())
    listed = {line.split("(")[0].split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert listed.keys() == {*registry.names(), "auto"}
    assert "cannot be loaded: No module named 'nowhere'" in listed["broken"]
    assert "cannot be loaded: '(' was never closed" in listed["unfinished"]


@pytest.mark.parametrize(("momentum", "own"), [("no number", 0), (None, 0), (0.5, 0.5), (1, 1), (True, 0)])
def test_momentum_of_a_plug_in_may_be_anything(momentum, own):
    """A number is momentum of its own, which an optimizer's would add to; with others it has nothing to do."""

    @compressor
    def odd(gradient, state, at, momentum=0.0):
        yield

    assert odd.with_options(momentum=momentum).own_momentum == own


@pytest.mark.parametrize(
    "text",
    [
        "auto(within='int8')",
        "auto(hierarchical=3)",
        "auto(among=3)",
        "auto(among='nome')",
        "auto(among='topk(')",
        "auto(among='none rows')",
        "hierarchical(across=auto)",
        "topk(keep={[]: 1})",
        f"topk(keep={'-' * 5000}8)",
        "dgc(keep=30, warmup=100)",
        "dgc(keep=-8, warmup=2)",
    ],
)
def test_what_cannot_be_is_said_before_training(text):
    with pytest.raises(UserError, match=r"reduce\.compressor is"):
        registry.candidates(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [("none(feedback=1)", "no option 'feedback'; it has none"), ("PowerSGD", "did you mean 'powersgd'")],
)
def test_what_is_said_of_options_and_names(text, said):
    with pytest.raises(UserError, match=said):
        registry.candidates(text)
