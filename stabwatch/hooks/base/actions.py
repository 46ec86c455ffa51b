"""Calls in which a model acts instead of learning: without gradients, in training mode, on inputs that are new."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from stabwatch.hooks.base.tensors import is_plain
from stabwatch.kernels.where import on_host

COMPARED = 256
"""Numbers by which two batches are told apart, evenly spaced; of smaller batches all."""
FEWEST = 16
"""Numbers of a batch below which two may be equal by chance."""
TYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8)
"""Types whose bits are compared."""
REMEMBERED = 256
"""Inputs without gradients that are remembered: a validation set comes again, observations do not."""


def batch_of(inputs: Iterable[Any]) -> NDArray[Any] | None:
    """The first batch among some inputs, as it is in the host's memory; None where there is none."""
    for x in inputs:
        if isinstance(x, Tensor) and is_plain(x) and x.numel() >= FEWEST:
            own = x.detach() if x.requires_grad else x
            return own.numpy() if own.dtype in TYPES and on_host(own) else None
    return None


def spread_over(batch: NDArray[Any], most: int) -> tuple[NDArray[Any], int]:
    """About so many numbers of a batch, evenly spread, and the step from one to the next."""
    stride = batch.size // most | 1  # odd: not the same column of each row
    flat = batch.reshape(-1) if batch.flags.c_contiguous else batch.flat  # no copy of the batch
    return flat[::stride], stride


def sample_of(batch: NDArray[Any] | None) -> bytes:
    """Some numbers of a batch; b'' without one."""
    return b"" if batch is None else spread_over(batch, COMPARED)[0].tobytes()


class Actions:
    """Counts such calls. A set on which the model is validated again and again counts once."""

    def __init__(self) -> None:
        self._count = 0
        self.calls = 0
        """All calls so far."""
        self._seen: dict[int, None] = {}

    def note(self, inputs: Iterable[Any]) -> None:
        """The model, or a part of it by itself, is called without gradients in training mode."""
        self.calls += 1
        sample = sample_of(batch_of(inputs))
        key = hash(sample)
        if not sample or key not in self._seen:
            self._count += 1
        if sample:
            self._seen.pop(key, None)
            self._seen[key] = None
            if len(self._seen) > REMEMBERED:
                del self._seen[next(iter(self._seen))]

    def take(self) -> int:
        """How many since this was last asked for."""
        count, self._count = self._count, 0
        return count
