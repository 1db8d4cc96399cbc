"""What a run in progress is: weights, optimizer, counters; and how a checkpoint holds them."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor, nn

from hvd_llm import checkpoint, models, optimizer
from hvd_llm.config import Config
from hvd_llm.errors import UserError
from hvd_llm.evaluate import Score


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
    loss_scale: float = 1.0
    loss_scale_good_steps: int = 0

    def note(self, score: Score) -> None:
        """Remember whether this step has the best score so far."""
        self.evaluations_since_best += 1
        if self.best_goodness is None or score.goodness > self.best_goodness:
            self.best_goodness, self.best_step, self.evaluations_since_best = score.goodness, self.step, 0


class State:
    """A model in training on this rank.

    Attributes:
        parameters: name → trainable parameter; tied ones once.
        compressor: bucket → slot → tensor, this rank's alone.
    """

    def __init__(self, config: Config, model: nn.Module):
        self.model = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = optimizer.build(config.optimizer, models.decay_groups(model, config.optimizer.weight_decay))
        self.loss_scale = optimizer.LossScale(dynamic=config.train.precision == "fp16")
        self.compressor: dict[str, dict[str, Tensor]] = {}
        self.progress = Progress()

    def snapshot(self) -> checkpoint.Snapshot:
        """The state as a checkpoint takes it; tensors are not copied."""
        self.progress.loss_scale = self.loss_scale.value
        self.progress.loss_scale_good_steps = self.loss_scale.good_steps
        names = {parameter: name for name, parameter in self.parameters.items()}
        return checkpoint.Snapshot(
            progress=asdict(self.progress),
            model=models.tensors(self.model),
            optimizer=optimizer.named_state(self.optimizer, names),
            compressor={
                f"{owner}/{slot}": value for owner, slots in self.compressor.items() for slot, value in slots.items()
            },
        )

    def restore(self, path: Path, rank: int) -> None:
        """Continue from a checkpoint folder.

        Raises:
            UserError: it is damaged, or of another model.
        """
        snapshot = checkpoint.load(path, rank)
        try:
            self.progress = Progress(**snapshot.progress)
            models.load_tensors(self.model, snapshot.model)
            optimizer.load_named_state(self.optimizer, self.parameters, snapshot.optimizer)
        except (KeyError, TypeError) as error:
            raise UserError(f"checkpoint {path} does not fit this model: {error}") from None
        self.loss_scale.value = self.progress.loss_scale if self.loss_scale.dynamic else 1.0
        self.loss_scale.good_steps = self.progress.loss_scale_good_steps
        for key, value in snapshot.compressor.items():
            owner, slot = key.split("/", 1)
            self.compressor.setdefault(owner, {})[slot] = value
