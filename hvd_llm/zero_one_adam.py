"""0/1 Adam: AdamW whose second moment learns only from gradients that were sent as they are.

Lu et al. 2022 (arXiv:2202.06009), algorithm 1, with an exchange in every step. Error feedback makes good what
compression loses as long as updates are linear in the gradient. Adam's are not: its second moment squares the errors,
and divides by them. So it rests in the steps whose gradients are compressed, and moves in those of a schedule, whose
gradients are sent as they are.

What is compressed is the gradient, as in the authors' own implementation (DeepSpeed's zoadam.py) before it takes local
steps. Algorithm 1 has the momentum here, which is linear in it: only errors differ, and momentum averages these as
well. So a gradient is weighed by its targets, clipped and skipped after the sum, as with any other optimizer. Local
steps are not here: ranks that train apart have a way of their own.
"""

import torch
from torch import Tensor


def moves(step: int, kappa: int) -> bool:
    """Whether the second moment moves in `step` (from 0): `kappa` times one step apart, then 2, 4, 8, … steps.

    The paper's policy for T_v: k_{j+1} - k_j = 2^floor(j / kappa).
    """
    phase = (step // kappa + 1).bit_length() - 1
    begin = kappa * (2**phase - 1)
    return (step - begin) % 2**phase == 0


class ZeroOneAdam(torch.optim.Optimizer):
    """Learns from "exact" in its groups whether this step's gradients were sent as they are.

    Where they always are, this is AdamW. Both moments are kept with Adam's bias correction, as weighted means, because
    they differ in how many steps are in them.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "exact": True})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, self.state[parameter], group)

    def _step(self, parameter: Tensor, state: dict[str, Tensor], group: dict) -> None:
        gradient, (beta1, beta2) = parameter.grad, group["betas"]
        if not state:
            state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            state |= {"step": torch.zeros(()), "exact_step": torch.zeros(())}
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        if group["exact"]:
            square.lerp_(gradient.square(), _weight(beta2, state, "exact_step"))
        else:
            # A weight that never had a gradient gets what one bit makes of zero, and would divide it by eps alone.
            gradient.masked_fill_(square == 0, 0)
        mean.lerp_(gradient, _weight(beta1, state, "step"))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-group["lr"])


def _weight(beta: float, state: dict[str, Tensor], slot: str) -> float:
    """Count a step; return the newest value's weight in a mean of all, in which each weighs `beta` times the next."""
    state[slot] = state[slot].cpu() + 1  # checkpoints are loaded to where the parameter is
    return (1 - beta) / (1 - beta ** int(state[slot]))
