"""Embeddings' gradients: those of a lookup have a row for each token that occurred, and no others."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F


def sparse_embeddings(model: nn.Module, tokens: int) -> list[str]:
    """Names of parameters whose gradient has few rows: embeddings that are nothing else besides."""
    return [name for name, _, tied in _embeddings(model, tokens) if not tied]


def part_lookups(model: nn.Module, tokens: int) -> dict[str, Tensor]:
    """Give the lookup in an embedding that is also the output projection a gradient of its own.

    The projection's is dense, and complete early in backward; the lookup's is late and has few rows. Together they are
    the parameter's.

    Returns:
        parameter name → the leaf that gets the lookup's gradient. It shares the parameter's memory.
    """
    leaves = {}
    for name, module, tied in _embeddings(model, tokens):
        if tied:
            leaves[name] = module.weight.detach().requires_grad_()
            module.forward = partial(F.embedding, weight=leaves[name])
    return leaves


def whole_lookups(model: nn.Module) -> None:
    """Undo `part_lookups`."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.__dict__.pop("forward", None)


def _embeddings(model: nn.Module, tokens: int) -> Iterator[tuple[str, nn.Embedding, bool]]:
    """Name of the weight, module, whether others use the weight; of those with more rows than half of `tokens`.

    So even a step whose tokens are all different saves by sending rows: they go once, where a sum goes to and fro.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    users = [id(p) for module in model.modules() for p in module.parameters(recurse=False)]
    for module in model.modules():
        if isinstance(module, nn.Embedding) and id(module.weight) in names and 2 * module.num_embeddings > tokens:
            yield names[id(module.weight)], module, users.count(id(module.weight)) > 1
