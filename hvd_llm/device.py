"""Where a rank computes: which device, how many threads, and how fast that could be at best."""

import ctypes
import os
import time

import torch

from hvd_llm import cores
from hvd_llm.errors import UserError

# Dense bf16/fp16 matrix FLOP/s of the vendor's data sheets; other devices are measured.
_PEAK_16BIT = {"V100": 125e12, "A100": 312e12, "H100": 989e12, "H200": 989e12}


# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def choose(wanted: str, local_rank: int) -> torch.device:
    """The device of this rank: `auto` takes a GPU when there is one, one rank for each.

    Raises:
        UserError: CUDA was asked for and there is none, or there are more ranks here than GPUs.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("run.device is 'cuda' but this machine has no usable GPU; use 'auto' or 'cpu'")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"there are {torch.cuda.device_count()} GPUs here, none for local rank {local_rank}; "
            "start one rank for each GPU, or set run.device to 'cpu'"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    # The same seed must give the same bits: some CUDA kernels add in any order unless told not to.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def use_threads(wanted: int, sharing: int) -> int:
    """Set and return the number of CPU threads; if `wanted` is 0, this rank's part of its cores.

    Args:
        sharing: ranks that may use the very same cores: all of a host, or one where a launcher binds ranks.
    """
    threads = wanted or cores.share(sharing)
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> None:
    """Have malloc keep what is freed for the next step, instead of returning it to the system.

    A step frees and allocates the same large tensors again; by default glibc maps and unmaps them, and the
    kernel clears every page each time. Other C libraries are left alone.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    # glibc before 2.35 takes 32 MiB at most; the rest alone would make things worse.
    if libc.mallopt(_M_MMAP_THRESHOLD, 2**30) or libc.mallopt(_M_MMAP_THRESHOLD, 2**25):
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**26)


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s that a matrix product reaches here at best: from the data sheet, or measured for 50 ms."""
    if device.type == "cuda" and precision != "fp32":
        name = torch.cuda.get_device_name(device)
        for model, peak in _PEAK_16BIT.items():
            if model in name:
                return peak
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    n = 512 if device.type == "cpu" else 8192
    a = torch.ones(n, n, dtype=dtype, device=device)
    best, until = float("inf"), time.perf_counter() + 0.05
    while time.perf_counter() < until or best == float("inf"):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def moment(device: torch.device) -> float:
    """Seconds on a clock, read when the device has computed all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
