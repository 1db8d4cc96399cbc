"""What a run in progress is: weights, optimizer, counters; and how a checkpoint holds them."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from hvd_llm import checkpoint, models, optimizer
from hvd_llm.config import Config
from hvd_llm.errors import UserError
from hvd_llm.evaluate import Score
from hvd_llm.reduce.memory import Named


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
        compressor: parameter → slot → tensor: what this rank's compressors kept when it was last saved.
    """

    def __init__(self, config: Config, model: nn.Module):
        self.model = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = optimizer.build(config.optimizer, models.decay_groups(model, config.optimizer.weight_decay))
        self.loss_scale = optimizer.LossScale(dynamic=config.train.precision == "fp16")
        self.compressor: Named = {}
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
            compressor=self.compressor,
        )

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
            optimizer.load_named_state(self.optimizer, self.parameters, snapshot.optimizer)
        except (KeyError, TypeError) as error:
            raise UserError(f"checkpoint {path} does not fit this model: {error}") from None
        self.loss_scale.value = self.progress.loss_scale if self.loss_scale.dynamic else 1.0
        self.loss_scale.good_steps = self.progress.loss_scale_good_steps
        self.compressor = snapshot.compressor
