import math

import pytest
import torch

from hvd_llm import optimizer
from hvd_llm.config import Optimizer


def rates(steps: int = 100, **settings) -> list[float]:
    config = Optimizer(lr=1.0, warmup=0.1, final_lr=0.1, **settings)
    return [optimizer.learning_rate(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_warm_up_climbs_to_the_peak(schedule):
    rate = rates(schedule=schedule)
    assert rate[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rate) == 1.0
    assert rate[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)


def test_shapes_of_the_schedules():
    assert rates(schedule="linear")[10:] == pytest.approx([1 - 0.9 * i / 89 for i in range(90)])
    assert rates(schedule="cosine")[10:] == pytest.approx(
        [0.1 + 0.45 * (1 + math.cos(math.pi * i / 89)) for i in range(90)]
    )
    stable = rates(schedule="wsd", decay=0.2)
    assert stable[10:81] == [1.0] * 71
    assert stable[80:] == pytest.approx([1 - 0.9 * i / 19 for i in range(20)])


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_very_short_runs(schedule, steps):
    assert all(0 < rate <= 1 for rate in rates(steps, schedule=schedule))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["adamw", "sgd", "zero_one_adam"])
def test_a_step_by_scaled_gradients(name, dtype):
    """As if they had been multiplied before; also after a step of another scale."""
    given, weights = torch.randn(2, 5, dtype=dtype), []
    for scales in ([(3.0, 1.0), (0.5, 1.0)], [(1.0, 3.0), (1.0, 0.5)]):
        parameter = torch.nn.Parameter(torch.ones(5, dtype=dtype))
        update = optimizer.build(Optimizer(name=name), [{"params": [parameter], "weight_decay": 0.1}])
        for gradient, (before, factor) in zip(given, scales, strict=True):
            for group in update.param_groups:
                group |= {"exact": True}
            parameter.grad = gradient * before
            optimizer.take_step(update, [parameter.grad], factor)
        weights.append(parameter.detach())
    torch.testing.assert_close(*weights, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)


def test_loss_scale_halves_and_grows():
    scale = optimizer.LossScale(dynamic=True)
    start = scale.value
    scale.update(finite=False)
    assert scale.value == start / 2
    for _ in range(optimizer.LossScale.GROW_AFTER):
        scale.update(finite=True)
    assert scale.value == start
    fixed = optimizer.LossScale(dynamic=False)
    fixed.update(finite=False)
    assert fixed.value == 1.0


@pytest.mark.parametrize("name", ["adamw", "zero_one_adam", "sgd"])
def test_state_by_name_continues_bit_for_bit(name):
    def model_and_optimizer():
        model = torch.nn.Linear(3, 2)
        return model, optimizer.build(Optimizer(name=name, lr=0.1), [{"params": list(model.parameters())}])

    def step(model, update, value):
        update.zero_grad()
        model(torch.full((1, 3), value)).sum().backward()
        update.step()

    torch.manual_seed(0)
    model, update = model_and_optimizer()
    step(model, update, 1.0)
    names = {parameter: key for key, parameter in model.named_parameters()}
    saved = {key: value.clone() for key, value in optimizer.named_state(update, names).items()}

    other, other_update = model_and_optimizer()
    other.load_state_dict(model.state_dict())
    optimizer.load_named_state(other_update, dict(other.named_parameters()), saved)
    step(model, update, 2.0)
    step(other, other_update, 2.0)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)
