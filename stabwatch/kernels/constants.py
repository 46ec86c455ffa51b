"""Copies of host numbers to a device, without waiting for it.

`torch.tensor(numbers, device=...)` copies from pageable memory, and that waits until all work queued before has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def to_device(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new tensor (n,) with these numbers."""
    host = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def device_constant(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like `to_device`, but cached. Callers must not write to the result."""
    return _kept(numbers, dtype, device, stream(device))


@lru_cache(maxsize=256)
def _kept(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device, of_stream: int) -> Tensor:
    return to_device(numbers, dtype, device)


def stream(device: torch.device) -> int:
    """The current stream. It is part of the cache key, because another stream must not read a copy without ordering."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
