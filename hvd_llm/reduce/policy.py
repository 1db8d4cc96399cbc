"""Which compressor a parameter's gradient goes through."""

from collections.abc import Mapping

from torch import Tensor

from hvd_llm.compress.base import Compressor
from hvd_llm.compress.none import none


def choose(parameters: Mapping[str, Tensor], compressor: Compressor) -> dict[str, Compressor]:
    """Parameter name → its compressor.

    Biases, norms and other vectors are few bytes, and what is lost of them hurts: they are sent as they are.
    """
    return {
        name: compressor if compressor.dense or parameter.dim() >= 2 else none for name, parameter in parameters.items()
    }
