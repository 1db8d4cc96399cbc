"""The update rule, what of it is a pure function of the step, and fp16's loss scale."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_llm.config import Config, Optimizer
from hvd_llm.zero_one_adam import ZeroOneAdam, moves


def build(config: Optimizer, groups: list[dict]) -> torch.optim.Optimizer:
    """AdamW, 0/1 Adam, or SGD with momentum, over parameter groups that carry their own weight decay."""
    betas = config.beta1, config.beta2
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
    if config.name == "zero_one_adam":
        return ZeroOneAdam(groups, lr=config.lr, betas=betas, eps=config.eps)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.beta1, fused=True)


def learning_rate(config: Optimizer, step: int, steps: int) -> float:
    """Learning rate of `step` (from 0) in a run of `steps`: warm-up, then the schedule down to `final_lr`.

    wsd (warm-up, stable, decay) is Hu et al. 2024, section 4; its decay is linear here.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    start = warmup if config.schedule != "wsd" else max(warmup, steps - round(config.decay * steps))
    progress = max(0.0, (step - start) / max(1, steps - 1 - start))
    fall = (1 - math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else progress
    return config.lr * (1 - (1 - config.final_lr) * fall)


def exact(config: Config, step: int) -> bool:
    """Whether the gradients of `step` (from 0) are sent as they are: at first, then when the second moment moves."""
    since = step - config.reduce.warmup_steps
    zero_one = config.optimizer.name == "zero_one_adam"
    return since < 0 or (zero_one and moves(since, config.optimizer.kappa))


def take_step(optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor], factor: float) -> None:
    """The optimizer's step by `factor` times what is in `gradients`, of which every `p.grad` is a view. They change."""
    first = gradients[0]
    optimizer.grad_scale = None
    if optimizer.defaults.get("fused") and first.dtype == torch.float32:
        # It is divided by where gradients are read anyway: one pass over all of them less.
        optimizer.grad_scale = torch.tensor(1 / factor, device=first.device)
    elif factor != 1:
        for gradient in gradients:
            gradient.mul_(factor)
    optimizer.step()


@contextmanager
def forgetful(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Steps taken meanwhile move the weights, and leave the optimizer's state as it was."""
    kept = dict(optimizer.state)
    for parameter, state in kept.items():
        optimizer.state[parameter] = {
            slot: value.clone() if isinstance(value, Tensor) else value for slot, value in state.items()
        }
    yield
    optimizer.state.clear()
    optimizer.state.update(kept)


@dataclass
class LossScale:
    """Dynamic loss scale for fp16 (Micikevicius et al. 2018, section 3.2); 1 and constant otherwise.

    Every rank sees the same summed gradient, so every rank takes the same decision without asking.
    """

    dynamic: bool
    value: float = 1.0
    good_steps: int = 0

    GROW_AFTER = 1000

    def __post_init__(self):
        if self.dynamic and self.value == 1.0:
            self.value = 2.0**16

    def update(self, finite: bool) -> None:
        """Halve after a step that overflowed, double after `GROW_AFTER` good ones."""
        if not self.dynamic:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.good_steps == self.GROW_AFTER:
            self.value, self.good_steps = self.value * 2, 0


def named_state(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's tensors as `{"exp_avg/parameter name": tensor}`."""
    return {
        f"{slot}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for slot, value in state.items()
        if isinstance(value, Tensor)
    }


def load_named_state(optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Undo `named_state`, with copies: slots that are absent start afresh, as they were before the first step."""
    optimizer.state.clear()
    for key, value in state.items():
        slot, name = key.split("/", 1)
        # The fused kernels keep their step count beside the parameters.
        optimizer.state[parameters[name]][slot] = value.to(parameters[name].device, copy=True)
