"""What a run in progress is: weights, optimizer, counters; and how a checkpoint holds them."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from hvd_llm import checkpoint, models, optimizer
from hvd_llm.config import Config
from hvd_llm.errors import UserError
from hvd_llm.evaluate import Score
from hvd_llm.reduce.memory import SENT, Named

_OUTER = "outer."  # begins the names of optimizer slots that ranks which train apart share
_OWN = "own."  # begins the names of slots that are taken over as they are


@dataclass
class Progress:
    """Everything besides tensors that changes from step to step."""

    step: int = 0  # steps done
    tokens: int = 0  # input tokens trained on, all ranks
    skipped: int = 0  # steps left out for a non-finite gradient
    best_step: int = 0
    best_goodness: float | None = None
    evaluations_since_best: int = 0
    bucket_order: list[str] = field(default_factory=list)
    choice: dict = field(default_factory=dict)  # of reduce.compressor = auto
    round_so_far: list[float] = field(default_factory=lambda: [0.0, 0.0])  # loss and targets, of ranks that are apart
    under_way: list = field(default_factory=list)  # of gradients that are taken up late: `factor`, `exact` and `lr`
    apart: bool = False  # whether ranks have taken steps alone since they all met
    norm: float | None = None  # of the gradient that was last applied, before clipping
    loss_scale: float = 1.0
    loss_scale_good_steps: int = 0

    def note(self, score: Score) -> None:
        """Remember whether this step has the best score so far; one that is not a number is none."""
        self.evaluations_since_best += 1
        best = self.best_goodness
        if not math.isfinite(score.loss):
            return
        if best is None or not math.isfinite(best) or score.goodness > best:
            self.best_goodness, self.best_step, self.evaluations_since_best = score.goodness, self.step, 0


class State:
    """A model in training on this rank.

    Attributes:
        parameters: name → trainable parameter; tied ones once.
        memory: parameter → slot → tensor: what this rank's compressors remember. This and the next two are brought up
            to date when the state is saved.
        shared: parameter → slot → tensor: what ranks that train apart agree on, and sums that are taken up late.
        own: "weights/parameter" or "slot/parameter" → tensor: this rank's own weights and optimizer, if they do;
            "sent/parameter": its weights as they were sent, of what is under way. Its weights alone, if it went ahead
            of sums that are taken up late.
    """

    def __init__(self, config: Config, model: nn.Module):
        self.model = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = optimizer.build(config.optimizer, models.decay_groups(model, config.optimizer.weight_decay))
        self.loss_scale = optimizer.LossScale(dynamic=config.train.precision == "fp16")
        self.memory: Named = {}
        self.shared: Named = {}
        self.own: dict[str, Tensor] = {}
        self.progress = Progress()

    def snapshot(self) -> checkpoint.Snapshot:
        """The state as a checkpoint takes it; tensors are not copied."""
        self.progress.loss_scale = self.loss_scale.value
        self.progress.loss_scale_good_steps = self.loss_scale.good_steps
        outer = {
            f"{_OUTER}{slot}/{name}": value
            for name, slots in self.shared.items()
            for slot, value in slots.items()
            if slot != "anchor"
        }
        own = {name: dict(slots) for name, slots in self.memory.items()}
        for key, value in self.own.items():
            slot, name = key.split("/", 1)
            own.setdefault(name, {})[f"{_OWN}{slot}"] = value
        return checkpoint.Snapshot(
            progress=asdict(self.progress),
            model=models.tensors(self.model) | {name: slots["anchor"] for name, slots in self.shared.items()},
            optimizer=self.own_optimizer() | outer,
            own=own,
        )

    def own_optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors, in the form of `own`."""
        return optimizer.named_state(self.optimizer, {parameter: name for name, parameter in self.parameters.items()})

    def remember(self, memory: Named, shared: Named | None = None, own: Mapping[str, Tensor] | None = None) -> None:
        """Note what is kept outside of this state, before it is saved.

        Args:
            shared: what is equal on all ranks.
            own: what becomes the attribute `own`.
        """
        self.memory, self.shared, self.own = memory, shared or {}, dict(own or {})

    def own_weights(self) -> dict[str, Tensor]:
        """This rank's weights, in the form of `own`."""
        return {f"weights/{name}": parameter.detach() for name, parameter in self.parameters.items()}

    def restore(self, path: Path, rank: int = 0, size: int = 1, same: Collection[str] = ()) -> None:
        """Continue from a checkpoint folder as `rank` of `size`.

        Args:
            same: slots of the compressor's state that are equal on all ranks.

        Raises:
            UserError: it is damaged, or of another model.
        """
        snapshot = checkpoint.load(path, rank, size, same)
        try:
            self.progress = Progress(**snapshot.progress)
            models.load_tensors(self.model, snapshot.model)
            inner = {key: value for key, value in snapshot.optimizer.items() if not key.startswith(_OUTER)}
            optimizer.load_named_state(self.optimizer, self.parameters, inner)
        except (KeyError, TypeError) as error:
            raise UserError(f"checkpoint {path} does not fit this model: {error}") from None
        self.loss_scale.value = self.progress.loss_scale if self.loss_scale.dynamic else 1.0
        self.loss_scale.good_steps = self.progress.loss_scale_good_steps
        for key in snapshot.optimizer.keys() - inner.keys():
            slot, name = key.removeprefix(_OUTER).split("/", 1)
            self.shared.setdefault(name, {"anchor": snapshot.model[name]})[slot] = snapshot.optimizer[key]
        for name, slots in snapshot.own.items():
            for slot, value in slots.items():
                if slot.startswith(_OWN):
                    self.own[f"{slot.removeprefix(_OWN)}/{name}"] = value
                else:
                    self.memory.setdefault(name, {})[slot] = value

    @torch.no_grad()
    def part(self) -> None:
        """Go on from this rank's own weights and optimizer, if a checkpoint had them."""
        if not self.own:
            return
        for name, parameter in self.parameters.items():
            parameter.copy_(self.own[f"weights/{name}"])
        inner = {key: value for key, value in self.own.items() if not key.startswith(("weights/", SENT))}
        if inner:
            optimizer.load_named_state(self.optimizer, self.parameters, inner)
