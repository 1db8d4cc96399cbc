"""A model's weights by name, into and out of a checkpoint, and what is needed beside them to rebuild it."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, not copied; tied weights under their first name alone."""
    named, seen = {}, set()
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() == 0 or key not in seen:
            seen.add(key)
            named[name] = tensor
    return named


@torch.no_grad()
def load_tensors(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Overwrite the model's tensors with those that `tensors` returned.

    Raises:
        KeyError: names or shapes are not exactly the model's.
    """
    mine = tensors(model)
    odd = sorted(mine.keys() ^ saved.keys()) or [name for name in mine if mine[name].shape != saved[name].shape]
    if odd:
        raise KeyError(odd[0])
    for name, tensor in mine.items():
        tensor.copy_(saved[name])


def save_assets(model: PreTrainedModel, tokenizer, folder: Path) -> None:
    """Write the model's configuration and the tokenizer beside its weights."""
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
