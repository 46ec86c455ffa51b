"""Does the model act? It does where it is called without gradients in training mode, or drawn from.

Of such calls those on new inputs are actions; on inputs that come again a model is validated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from stabwatch.hooks.base.batch_projection import numbers_of
from stabwatch.hooks.base.tensors import is_plain
from stabwatch.kernels.where import on_host

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


class Actions:
    """Counts such calls. A set on which the model is validated again and again counts once."""

    def __init__(self) -> None:
        self._count = 0
        self._again: list[int] = []
        self.calls = 0
        """All calls so far."""
        self._seen: dict[int, int] = {}
        """The step of the last call, by what the inputs are told apart by."""

    def note(self, inputs: Iterable[Any], step: int) -> None:
        """The model, or a part of it by itself, is called without gradients in training mode, while `step` is open."""
        self.calls += 1
        batch = numbers_of(batch_of(inputs))
        if batch is None:
            self._count += 1
            return
        key = hash(batch.some)
        before = self._seen.pop(key, None)
        self._seen[key] = step
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        if before is None:
            self._count += 1
        elif before < step:
            self._again.append(key)

    def drawn(self) -> None:
        """The program has drawn from a distribution that a model says: that is an action."""
        self._count += 1

    def take(self, trained: Iterable[bytes] = ()) -> tuple[int, int]:
        """How many on new inputs, and how many on inputs of earlier steps, since this was last asked for.

        trained: numbers of the batches of this step and the one before (`numbers_of`), which are no validation.
        """
        count, again = self._count, self._again
        self._count, self._again = 0, []
        own = {hash(some) for some in trained} if again else ()
        return count, sum(key not in own for key in again)
