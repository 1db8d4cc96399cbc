"""A compressor in a package of its own: `pip install .`, then `hvd-llm train … --reduce.compressor terngrad`."""

import torch

from hvd_llm.compress.base import Gather, compressor


@compressor(feedback=1)
def terngrad(gradient, state, at):
    """-1, 0 or 1 times the largest magnitude, drawn at random so that the mean is right (Wen et al. 2017)"""
    scale = gradient.abs().max()
    random = torch.rand(gradient.shape, generator=at.generator(gradient.device, everyone=False), device=gradient.device)
    signs = (gradient.sign() * (random * scale < gradient.abs())).to(torch.int8)
    gradient -= scale * signs  # what is not sent is kept for the next step
    scales = yield Gather(scale.view(1))
    everyone = yield Gather(signs)
    return sum(size * signs for size, signs in zip(scales, everyone, strict=True))
