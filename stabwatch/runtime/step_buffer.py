"""The step's buffer: all partials of a step, on the device until the step ends, then one copy to the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stabwatch.kernels.constants import to_device
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import IDENTITY, REDUCTIONS

Source = Callable[[], Tensor]


def identity_of(accumulators: tuple[Accumulator, ...], device: torch.device) -> Tensor:
    """Empty accumulators of one reduction: float32 (accumulators, fields)."""
    identity = [IDENTITY[f.op] for a in accumulators for f in REDUCTIONS[a.reduction].fields]
    return to_device(identity, torch.float32, device).view(len(accumulators), -1)


class StepBuffer:
    """Collects accumulators from different places (sites have their own, layers share a matrix) in one flat vector."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._accumulators: list[tuple[Accumulator, ...]] = []
        self._sources: list[Source] = []
        self._identity: dict[tuple[int, torch.device], Tensor] = {}

    def add(self, accumulators: tuple[Accumulator, ...], source: Source) -> None:
        """Register a tensor that has the fields of `accumulators` in order; `source` returns it at each step."""
        self._accumulators.append(accumulators)
        self._sources.append(source)

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        """All accumulators, in the order of the flat vector."""
        return tuple(accumulator for group in self._accumulators for accumulator in group)

    def flush(self) -> Tensor:
        """The flat vector of this step, float32 (fields,); every accumulator is empty afterwards."""
        with torch.no_grad():
            tensors = [source() for source in self._sources]
            flat = torch.cat([self._here(t) for t in tensors])
            for device in dict.fromkeys(t.device for t in tensors):
                mine = [(i, t) for i, t in enumerate(tensors) if t.device == device]
                torch._foreach_copy_([t for _, t in mine], [self._empty(i, t) for i, t in mine])
        return flat

    def _here(self, x: Tensor) -> Tensor:
        x = x.reshape(-1)
        return x if x.device == self.device else x.to(self.device, non_blocking=True)

    def _empty(self, source: int, like: Tensor) -> Tensor:
        """Kept by the index of the source: hashing its accumulators at each step would cost more than all the rest."""
        key = (source, like.device)
        if key not in self._identity:
            self._identity[key] = identity_of(self._accumulators[source], like.device).reshape(like.shape)
        return self._identity[key]
