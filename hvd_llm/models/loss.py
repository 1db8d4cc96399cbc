"""The loss as a sum over targets, so that ranks and micro-batches can be added before they are averaged.

Shapes: B sequences, T tokens, H hidden, N targets, V vocabulary or labels. A target of -100 does not count.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

IGNORED = -100


def loss_sum(model: PreTrainedModel, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross entropy summed (not averaged) over the batch's targets.

    Args:
        model: what `build` returned.
        batch: int64 `input_ids` (B, T), `labels` (B, T) or (B,) for classify, and perhaps `attention_mask` (B, T).
            Causal models predict each token from those before it, so labels are the input_ids.
        label_smoothing: share of each target's probability that is spread over all V outcomes.

    Returns:
        The sum, a scalar in fp32 also under autocast, and the number of targets, a scalar int64; both on
        the model's device. Without any target the sum is 0 and still has (zero) gradients.
    """
    logits_NV, labels_N = _target_logits(model, batch)
    return _cross_entropy(logits_NV, labels_N, label_smoothing), (labels_N != IGNORED).sum()


@torch.no_grad()
def predictions(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and likeliest outcomes without gradients, for evaluation.

    Returns:
        loss_sum and count as above (no smoothing), then predicted (N,) and labels (N,), int64, for the targets
        in the batch's order.
    """
    logits_NV, labels_N = _target_logits(model, batch)
    counts_N = labels_N != IGNORED
    predicted_N = logits_NV.argmax(dim=-1)
    return _cross_entropy(logits_NV, labels_N, 0.0), counts_N.sum(), predicted_N[counts_N], labels_N[counts_N]


def _target_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (N, V) and labels (N,), projecting to the vocabulary only where there can be a target."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch.get("attention_mask")}
    labels = batch["labels"]
    if hasattr(model, "lm_head"):  # causal: position t predicts token t + 1
        hidden_BTH = model.base_model(**inputs, use_cache=False).last_hidden_state
        return model.lm_head(hidden_BTH[:, :-1].flatten(0, 1)), labels[:, 1:].flatten()
    if hasattr(model, "cls"):  # masked: few positions are targets, and the projection is the widest matrix
        hidden_BTH = model.base_model(**inputs).last_hidden_state
        targets_BT = labels != IGNORED
        return model.cls(hidden_BTH[targets_BT]), labels[targets_BT]
    logits = model(**inputs).logits  # classify: (B, V); tag: (B, T, V)
    return logits.flatten(0, -2), labels.flatten()


def _cross_entropy(logits_NV: Tensor, labels_N: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(
        logits_NV.float(), labels_N, reduction="sum", ignore_index=IGNORED, label_smoothing=label_smoothing
    )
