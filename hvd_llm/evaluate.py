"""How good a model is: perplexity, masked accuracy, accuracy and F1, over all ranks."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hvd_llm import models
from hvd_llm.comm import Comm
from hvd_llm.data import Batches


@dataclass(frozen=True)
class Score:
    """Validation loss (nats per target), the task's usual measures, and `name`: the one to report first."""

    loss: float
    name: str
    measures: dict[str, float]

    @property
    def value(self) -> float:
        return self.measures[self.name]

    def readable(self, name: str) -> str:
        """A measure to four places, but for a perplexity that has left all bounds."""
        return f"{self.measures[name]:.4f}" if self.measures[name] < 1e6 else f"{self.measures[name]:.3g}"

    @property
    def goodness(self) -> float:
        """Higher is better: what early stopping and `best` compare."""
        return self.value if self.name in ("accuracy", "f1") and "f1" in self.measures else -self.loss


def evaluate(
    model: nn.Module,
    batches: Batches,
    task: str,
    comm: Comm,
    micro_batch: int,
    limit: int = 0,
) -> tuple[Score, int]:
    """Score the first `limit` batches (0: all), each shared by all ranks. Collective.

    Returns:
        the score, the same on every rank, and how many targets this rank took.
    """
    labels = model.config.num_labels if task in ("classify", "tag") else 0
    device = next(model.parameters()).device
    totals = torch.zeros(3, dtype=torch.float64)  # loss, targets, correct
    confusion = torch.zeros(labels, labels, dtype=torch.float64)  # [truth, prediction]
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for step in range(min(limit or batches.steps_per_epoch, batches.steps_per_epoch)):
            for batch in batches.micro_batches(step, comm.rank, comm.size, micro_batch):
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                loss, count, predicted, truth = models.predictions(model, batch)
                correct = int((predicted == truth).sum())
                totals += torch.tensor([float(loss), float(count), correct], dtype=torch.float64)
                if labels:
                    pairs = (truth * labels + predicted).flatten().cpu()
                    confusion += torch.bincount(pairs, minlength=labels**2).view(labels, labels)
    model.train(was_training)
    mine = int(totals[1])
    comm.sum("evaluate.totals", totals)
    if labels:
        comm.sum("evaluate.confusion", confusion)
    return _score(task, totals, confusion), mine


def _score(task: str, totals: Tensor, confusion: Tensor) -> Score:
    loss_sum, count, correct = totals.tolist()
    loss, accuracy = loss_sum / max(count, 1), correct / max(count, 1)
    if task == "causal":
        return Score(loss, "perplexity", {"perplexity": math.exp(min(loss, 700)), "accuracy": accuracy})
    if task == "masked":
        return Score(loss, "accuracy", {"accuracy": accuracy})
    return Score(loss, "accuracy", {"accuracy": accuracy, "f1": macro_f1(confusion)})


def macro_f1(confusion_CC: Tensor) -> float:
    """Mean over classes of 2·TP / (2·TP + FP + FN), from counts [truth, prediction].

    Classes that neither occur nor are predicted have no F1.
    """
    hits = confusion_CC.diagonal()
    both = confusion_CC.sum(0) + confusion_CC.sum(1)
    return float((2 * hits / both)[both > 0].mean()) if both.any() else 0.0
