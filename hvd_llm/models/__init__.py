"""Models of `transformers`: built from settings or a local folder, their loss, and what they cost.

Nothing here knows how many ranks there are.
"""

from hvd_llm.models.build import build
from hvd_llm.models.embeddings import part_lookups, sparse_embeddings, whole_lookups
from hvd_llm.models.folder import from_checkpoint, other_token
from hvd_llm.models.loss import loss_sum, predictions
from hvd_llm.models.structure import (
    blocks,
    compile_blocks,
    decay_groups,
    enable_activation_checkpointing,
    flops_per_token,
)
from hvd_llm.models.tensors import load_tensors, save_assets, tensors

__all__ = [
    "blocks",
    "build",
    "compile_blocks",
    "decay_groups",
    "enable_activation_checkpointing",
    "flops_per_token",
    "from_checkpoint",
    "load_tensors",
    "loss_sum",
    "other_token",
    "part_lookups",
    "predictions",
    "save_assets",
    "sparse_embeddings",
    "tensors",
    "whole_lookups",
]
