"""The trained loss: the objective whose gradient the optimizer's step uses.

It is read at the roots of the backward passes, whatever computed it: unscaled by the gradient scaler, and summed over
the micro-batches of a step as their gradients are. A backward pass counts for a watch if it changed gradients of that
watch's parameters; where the gradients are dropped before the step (`zero_grad`), so is the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

MOST = 256
"""Parameters whose gradients are compared before and after a backward pass, evenly spread."""
LOSS_DIMENSIONS = 2
"""A root with more dimensions, given with a gradient, is an activation (a pipeline stage) and no loss per token."""

State = tuple[tuple[int, int] | None, ...]
"""Identity and version of each gradient, None where there is none."""

_unscaled = WeakTensorKeyDictionary()


def remember_scaling(outputs: Any, scaled: Any) -> None:
    """`GradScaler.scale(outputs)` gave `scaled`: a backward pass from there is that of `outputs`."""
    if isinstance(outputs, Tensor) and isinstance(scaled, Tensor):
        if scaled is not outputs:
            _unscaled[scaled] = outputs.detach()
    elif isinstance(outputs, list | tuple) and isinstance(scaled, list | tuple):
        for one, other in zip(outputs, scaled, strict=True):
            remember_scaling(one, other)


@torch.no_grad()
def objective(roots: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> Tensor | None:
    """The number that a backward pass differentiates: the sum of its scalar roots, each times its given gradient.

    Returns float32 () on the first root's device, or None if no root is a loss.
    """
    parts = [_part(root, None if gradients is None else gradients[i]) for i, root in enumerate(roots)]
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return torch.stack([part.to(known[0].device, non_blocking=True) for part in known]).sum()


def _part(root: Tensor, gradient: Tensor | None) -> Tensor | None:
    value = _unscaled.get(root)
    scaled = value is not None
    value = root.detach() if value is None else value
    if value.numel() == 1 and (gradient is None or scaled):
        return value.float().reshape(())
    if gradient is None or root.dim() > LOSS_DIMENSIONS or gradient.shape != root.shape:
        return None
    return (value.float() * gradient.detach().float()).sum()


@dataclass
class TrainedLoss:
    """Collects the objective of one step of one watch. Nothing here waits for the device."""

    parameters: Sequence[nn.Parameter]
    total: Tensor | None = None
    """Sum over the backward passes of the open step, float32 ()."""
    passes: int = 0
    _after: State = field(default=(), repr=False)

    @classmethod
    def of(cls, parameters: Iterable[nn.Parameter]) -> TrainedLoss:
        """Watch some of these parameters, evenly spread."""
        trained = [p for p in parameters if p.requires_grad]
        stride = max(1, -(-len(trained) // MOST))
        return cls(trained[::stride])

    def state(self) -> State:
        """What the gradients are now; to be compared with a later state."""
        return tuple(None if p.grad is None else (id(p.grad), p.grad._version) for p in self.parameters)

    def reached(self, before: State) -> bool:
        """Has anything written into the gradients since `before`?"""
        return self.state() != before

    def add(self, before: State, value: Tensor) -> None:
        """A backward pass of this objective has ended. `before`: the state when it began."""
        if self._dropped(before):
            self.clear()
        self.total = value if self.total is None else self.total + value.to(self.total.device, non_blocking=True)
        self.passes += 1
        self._after = self.state()

    def _dropped(self, before: State) -> bool:
        """Were the gradients of the last pass thrown away, or set to zero, before this one?"""
        known = [then for then in self._after if then is not None]
        return bool(known) and not any(then is not None and then in before for then in known)

    def take(self) -> Tensor | None:
        """The objective of the step that ends now."""
        taken = self.total
        self.clear()
        return taken

    def clear(self) -> None:
        """Forget what was collected."""
        self.total, self.passes, self._after = None, 0, ()
