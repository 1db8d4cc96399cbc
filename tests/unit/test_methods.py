"""Methods against their papers' formulas, written out once more: on one rank, so that nothing else is in the way."""

import math

import pytest
import torch
from torch import nn

from hvd_llm.comm import WORLD
from hvd_llm.comm.solo import Solo
from hvd_llm.compress import demo, registry
from hvd_llm.compress.base import At, Sum, compressor
from hvd_llm.compress.fp8 import Fp8
from hvd_llm.compress.half import Fp16
from hvd_llm.compress.powersgd import orthonormal
from hvd_llm.compress.two_phase import decode, encode
from hvd_llm.config import Sync
from hvd_llm.reduce import lockstep, policy
from hvd_llm.reduce.outer import Outer
from hvd_llm.reduce.pricing import price
from hvd_llm.reduce.reducer import Reducer
from hvd_llm.reduce.sender import Route
from hvd_llm.reduce.turns import InTurn
from hvd_llm.trace import NoTrace

ROUTE = Route(Solo(), {"world": WORLD}, NoTrace())


def through(codec, values: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(values)
    decode(codec, encode(codec, values), out)
    return out


def test_every_code_of_fp8_is_what_torch_says_it_is():
    codes = torch.arange(256, dtype=torch.uint8)
    finite = codes.view(torch.float8_e4m3fn).float().isfinite()
    out = torch.empty(256)
    Fp8().levels(codes, out)
    torch.testing.assert_close(out[finite] * 256, codes.view(torch.float8_e4m3fn).float()[finite], rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_fp16_keeps_its_bits_whatever_the_size(size):
    values = size * torch.randn(1000, generator=torch.Generator().manual_seed(0)).clamp(0.01)
    torch.testing.assert_close(through(Fp16(), values), values, rtol=2**-11, atol=0)


def test_demo_looks_at_the_cosines_of_a_chunk():
    """By what a DCT-II of an orthonormal basis does: each wave is one coefficient, as long as the wave."""
    count = demo.SIDE
    dct = demo.cosines(torch.empty(0, dtype=torch.float64))
    for wave in (0, 1, 5, count - 1):
        values = torch.cos(math.pi / count * (torch.arange(count, dtype=torch.float64) + 0.5) * wave)
        expected = torch.zeros(count, dtype=torch.float64).index_fill(0, torch.tensor([wave]), float(values.norm()))
        torch.testing.assert_close(dct @ values, expected)


@pytest.mark.parametrize("size", [1e-12, 1, 1e12])
@pytest.mark.parametrize("feedback", [0, 1])
def test_powersgd_recovers_from_a_gradient_of_zeros(size, feedback):
    """Also where the rows that are zero later are those that the power method would look at after zeros."""
    found = registry.find(f"powersgd(rank=4, feedback={feedback})")
    states, random = [{}, {}], torch.Generator().manual_seed(0)
    for step in range(8):
        given = [torch.randn(1, 64, 48, generator=random).mul_(size * (step > 0)) for _ in states]
        for gradient in given:
            gradient[:, :8] = 0
        (total,) = {result.abs().sum().item() for result in lockstep.reduce(found, given, states, At(step=step))}
        assert (total > 0) == (step > 0)


def test_powersgd_of_a_wide_matrix_is_that_of_its_transpose():
    """The longer factor is the one in float16: neither costs more bytes."""
    found, random = registry.find("powersgd(rank=4)"), torch.Generator().manual_seed(0)
    tall_states, wide_states = [{}, {}], [{}, {}]
    for step in range(4):
        tall = [torch.randn(2, 96, 40, generator=random) for _ in tall_states]
        wide = [gradient.mT.contiguous() for gradient in tall]
        sent = {
            price(found, parts[:1], 2, [dict(states[0])]).sent_bytes
            for parts, states in ((tall, tall_states), (wide, wide_states))
        }
        assert len(sent) == 1
        expected, got = (
            lockstep.reduce(found, parts, states, At("w", step=step))[0]
            for parts, states in ((tall, tall_states), (wide, wide_states))
        )
        torch.testing.assert_close(got.mT, expected)


def test_powersgd_starts_afresh_with_what_others_left():
    """A checkpoint of another rank, or of a version that did not transpose wide matrices."""
    found, given = registry.find("powersgd(rank=4)"), torch.randn(1, 40, 96, generator=torch.Generator().manual_seed(0))
    fresh = lockstep.reduce(found, [given.clone()], [{}])[0]
    for left in (torch.ones(1, 96, 4), torch.ones(1, 40, 2)):
        assert torch.equal(lockstep.reduce(found, [given.clone()], [{"q": left}])[0], fresh)


def test_powersgd_is_the_same_on_any_number_of_threads():
    """Ranks of unlike hosts have unlike numbers of them."""
    threads, tall = torch.get_num_threads(), torch.randn(1, 32_000, 4, generator=torch.Generator().manual_seed(0))
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(orthonormal(tall))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("across", ["dgc", "topk"])
def test_on_one_host_nothing_is_kept(across):
    """Also what dgc kept, whose error is not one that is fed back, while there were several hosts."""
    found = registry.find(f"hierarchical(across={across})")
    states = [{"error": torch.full((4096,), 1.0 + rank)} for rank in range(2)]
    results = lockstep.reduce(found, [torch.zeros(4096) for _ in states], states, node_size=2)
    assert all(result.eq(3).all() for result in results)
    assert not any(state["error"].any() for state in states if "error" in state)


@pytest.mark.parametrize("across", ["topk", "dgc", "powersgd"])
def test_ranks_may_move_to_one_host_and_back(across):
    """What was kept on two hosts is sent on one; what is not sent afterwards is kept again."""
    found = registry.find(f"hierarchical(across={across})")
    random = torch.Generator().manual_seed(0)
    shape = (2, 64, 64) if found.takes == "matrices" else (8192,)
    states: list[dict] = [{} for _ in range(4)]
    for step, node_size in enumerate((2, 2, 4, 4, 2, 2)):
        parts = [torch.randn(shape, generator=random) for _ in states]
        results = lockstep.reduce(found, parts, states, At("w", step=step), node_size=node_size)
        assert all(torch.equal(result, results[0]) for result in results)
        kept = any(state["error"].any() for state in states if "error" in state)
        assert kept == (node_size == 2)


def test_an_exchange_that_is_not_finite_changes_nothing():
    """Nor does momentum, which would move the weights by what earlier rounds were."""
    weight, sync = nn.Parameter(torch.zeros(4)), Sync(every=2, outer_lr=0.7, outer_momentum=0.9)
    outer = Outer(sync, {"w": weight}, policy.plan({"w": weight}, ["w"], 1000, registry.find("none")), ROUTE)
    outer.begin()
    expected = None
    for step in range(8):
        with torch.no_grad():
            weight.add_(torch.nan if step in (2, 3) else 1.0)
        outer.after(step)
        if step == 1:
            expected = weight.detach().clone()
        if step == 3:
            assert torch.equal(weight, expected)
    assert (weight > expected).all()


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_an_error_decays_as_asked(decay):
    """Of 4096 elements eight are sent; the smallest never is, and its error is a geometric sum."""
    found, state = registry.find(f"topk(keep=8, feedback={decay})"), {}
    given = torch.linspace(1, 2, 4096)
    for _ in range(3):
        lockstep.reduce(found, [given.clone()], [state])
    assert float(state["error"][0]) == pytest.approx(sum(decay**age for age in range(3)))


@pytest.mark.parametrize("warmup", [0, 4])
def test_dgc_is_that_of_its_paper(warmup):
    """Lin et al. 2018, algorithm 4 on one chunk: u = m u + g, v = v + u, and both forget what was sent."""
    found, state = registry.find(f"dgc(keep=8, momentum=0.9, warmup={warmup})"), {}
    random = torch.Generator().manual_seed(0)
    u, v = torch.zeros(4096), torch.zeros(4096)
    for step in range(8):
        gradient = torch.randn(4096, generator=random)
        (total,) = lockstep.reduce(found, [gradient.clone()], [state], At(step=step))
        u = 0.9 * u + gradient
        v = v + u
        sent = 8 if step >= warmup else 8 * round(1024 * (8 / 1024) ** (step / warmup) / 8)
        chosen = v.abs().topk(sent).indices
        assert sorted(total.nonzero().view(-1).tolist()) == sorted(chosen.tolist())
        torch.testing.assert_close(total[chosen], v[chosen], rtol=2**-8, atol=0)
        v, u = v - total, u.index_fill(0, chosen, 0)
        torch.testing.assert_close(state["velocity"], u)
        torch.testing.assert_close(state["error"], v)


@pytest.mark.parametrize("mix", [0.0, 0.25])
def test_fragments_meet_in_turn_and_are_mixed_in_late(mix):
    """Streaming DiLoCo, algorithm 2: two fragments half a round apart, taken up a step after they were sent."""
    every, lr, momentum = 4, 0.7, 0.9
    parameters = {name: nn.Parameter(torch.ones(3, dtype=torch.float64)) for name in "ab"}
    plan = policy.plan(parameters, ["a", "b"], 1, registry.find("none"))
    sync = Sync(every=every, fragments=2, delay=1, mix=mix, outer_lr=lr, outer_momentum=momentum)
    outer = Outer(sync, parameters, plan, ROUTE)
    outer.begin()
    twins = {name: torch.ones(3, dtype=torch.float64) for name in "ab"}
    anchors = {name: twin.clone() for name, twin in twins.items()}
    velocities = {name: torch.zeros(3, dtype=torch.float64) for name in "ab"}
    sent = {}
    random = torch.Generator().manual_seed(0)
    for step in range(12):
        for name, parameter in parameters.items():
            change = torch.randn(3, generator=random, dtype=torch.float64)
            parameter.data += change
            twins[name] = twins[name] + change
        outer.after(step)
        for name, turn in (("a", 2), ("b", 0)):  # steps done, modulo a round
            if (since := sent.pop(name, None)) is not None:
                velocities[name] = momentum * velocities[name] + since
                anchors[name] = anchors[name] - lr * (since + momentum * velocities[name])
                twins[name] = mix * twins[name] + (1 - mix) * anchors[name]
            if (step + 1) % every == turn:
                sent[name] = anchors[name] - twins[name]
            torch.testing.assert_close(parameters[name].data, twins[name])


def test_first_layers_go_first_once_backward_is_over():
    """Buckets leave in backward's order until the network has all it can take, then the other way round."""

    class Late:
        def __init__(self, handle):
            self.wait = handle.wait

        def ready(self):
            return comm.open

    class Slow(Solo):
        """What is sent is under way until the network is open."""

        open = False

        def sum_async(self, name, tensor, group=WORLD):
            order.append(name)
            return Late(super().sum_async(name, tensor, group))

    parameters = {str(layer): nn.Parameter(torch.ones(3)) for layer in range(6)}
    plan = policy.plan(parameters, list(parameters), 1, registry.find("none"))
    comm, order = Slow(), []
    sender = InTurn("bucket", parameters, plan, Route(comm, {"world": WORLD}, NoTrace()), {})
    for _ in range(2):
        comm.open = False
        order.clear()
        for bucket in sender.buckets:
            sender.send(bucket, step=0)
        sender.over()
        comm.open = True
        assert sender.finite()
        sender.finish(sender.buckets)
    buckets = [int(name.split(".")[1]) for name in order if name != "bucket.over"]
    assert buckets == [0, 1, 5, 4, 3, 2]


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("none", ["c", "b", "a", "sum", "sum", "sum", "sum", "sum", "sum"]),
        ("backward", ["c", "sum", "b", "sum", "sum", "a", "sum", "sum", "sum"]),
    ],
)
def test_buckets_leave_and_rounds_go_on_inside_backward(overlap, expected):
    """Three layers, each a bucket of two rounds: when one's gradient arrives, the one before takes its second round."""

    class Late:
        """Ready when the next gradient has arrived, or the last."""

        def __init__(self, handle):
            self.wait, self.since = handle.wait, arrived()

        def ready(self):
            return arrived() > self.since or arrived() == len(parameters)

    class Recording(Solo):
        def sum_async(self, name, tensor, group=WORLD):
            events.append("sum")
            return Late(super().sum_async(name, tensor, group))

    def arrived() -> int:
        return len(events) - events.count("sum")

    @compressor
    def twice(gradient, state, at):
        return (yield Sum((yield Sum(gradient))))

    events: list[str] = []
    parameters = {name: nn.Parameter(torch.eye(2)) for name in "abc"}
    for name, parameter in parameters.items():
        parameter.register_hook(lambda _, name=name: events.append(name))
    plan = policy.plan(parameters, ["c", "b", "a"], 1, twice)
    reducer = Reducer(parameters, plan, Route(Recording(), {"world": WORLD}, NoTrace()), overlap=overlap)
    reducer.start()
    reducer.last_pass()
    (torch.ones(2) @ parameters["a"] @ parameters["b"] @ parameters["c"]).sum().backward()
    reducer.finish()
    assert events == expected


def test_powersgd_starts_where_it_ended():
    """Of a matrix that stays the same, a power method that goes on comes near the best approximation (section 3)."""
    random = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(1, 64, 64, generator=random)).Q for _ in range(2))
    matrix = left @ torch.diag(0.8 ** torch.arange(64)) @ right.mT
    best = float(torch.linalg.svdvals(matrix)[0, 4:].norm())
    found, state = registry.find("powersgd(rank=4, feedback=0)"), {}
    errors = []
    for step in range(12):
        (result,) = lockstep.reduce(found, [matrix.clone()], [state], At("weight", step=step))
        errors.append(float((result - matrix).norm()) / best)
    assert errors[0] > 1.2
    assert errors[-1] < 1.02
