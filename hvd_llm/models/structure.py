"""What the training loop needs to know of a model's inside: blocks, parameter groups, arithmetic cost."""

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The transformer blocks, first to last."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """Keep only each block's input for backward and compute the rest again; gradients agree to rounding."""
    model.activation_checkpointing_enable({"use_reentrant": False})


def compile_blocks(model: PreTrainedModel) -> None:
    """`torch.compile` every block in place.

    Names of parameters stay, equal blocks share one compilation, and gradients still arrive block by block,
    so that they can be sent while backward goes on (compiling the whole model delivers them all at its end).
    """
    for block in blocks(model):
        block.compile()


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Optimizer groups: matrices with weight decay, biases and norms without.

    Parameters are in the order of `model.named_parameters()`, which names tied ones once.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def flops_per_token(model: PreTrainedModel, sequence_length: int, head_share: float = 1.0) -> int:
    """FLOP of forward and backward for one position of a sequence: 6 N + 12 L H Q T.

    This is appendix B of PaLM (Chowdhery et al., 2022, arXiv:2204.02311): N weights in matrix products,
    L blocks, H heads of Q dimensions, T positions. Looking up embeddings is free; the output projection is a
    product and counts, also when it is tied. Causal attention counts in full, recomputation not at all.

    Args:
        sequence_length: T, in tokens.
        head_share: share of the positions at which everything after the blocks is computed
            (masked: data.mask_rate, classify: 1 / T, else 1).
    """
    inside = sum(_matrix_weights(block) for block in blocks(model))
    outside = _matrix_weights(model) - inside
    config = model.config
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return round(6 * (inside + head_share * outside) + 12 * config.num_hidden_layers * width * sequence_length)


def _matrix_weights(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear | Conv1D))
