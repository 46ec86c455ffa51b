"""How the training loop treats the model: gradients that are kept, evaluation mode, an optimizer without its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from stabwatch.hooks.base.tensors import local

WITNESSES = 8
"""Parameters of an optimizer whose gradients are looked at: the smallest ones of as many parts of the model."""


class LoopChecks:
    """What a step of one watch says of its loop. Nothing here waits for the device."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._witnesses: WeakKeyDictionary[Any, list[nn.Parameter]] = WeakKeyDictionary()
        self._kept: Tensor | float | None = None
        self._had_state: dict[tuple[str, int, int], bool] = {}
        self._stepped = False

    @torch.no_grad()
    def backward_begins(self) -> None:
        """A backward pass begins: are gradients of earlier steps still there?"""
        if not self._stepped or self._kept == 0.0:
            return
        share = _share_that_is_not_empty([p for mine in self._witnesses.values() for p in mine])
        if isinstance(share, float) or not isinstance(self._kept, Tensor):
            self._kept = share
        elif share is not None:
            self._kept = torch.minimum(self._kept, share)

    def take_kept(self) -> Tensor | float | None:
        """The least share over the backward passes of the step that ends now, float32 (); None without any."""
        kept, self._kept = self._kept, None
        self._stepped = bool(self._witnesses)
        return kept

    def before_step(self, optimizer: Any) -> None:
        """An optimizer is about to step: some of its parameters are looked at from the next step on."""
        if optimizer in self._witnesses:
            return
        mine = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        length = max(1, -(-len(mine) // WITNESSES))
        parts = [mine[i : i + length] for i in range(0, len(mine), length)]
        if parts:
            self._witnesses[optimizer] = [min(part, key=nn.Parameter.numel) for part in parts]

    def evaluating(self) -> bool:
        """Is the model in evaluation mode, though that changes what it computes (dropout, batch norm)?"""
        if self._model.training:
            return False
        return any(_has_modes(module) for module in self._model.modules())

    def lost_state(self, optimizer: Any) -> bool:
        """Asked before each step: has an optimizer of this class had a state of these parameters, and has none now?"""
        state = getattr(optimizer, "state", None)
        if not isinstance(state, dict):
            return False
        held = [group["params"] for group in optimizer.param_groups]
        first = next((params[0] for params in held if params), None)
        key = type(optimizer).__qualname__, sum(map(len, held)), id(first)
        had, self._had_state[key] = self._had_state.get(key, False), bool(state)
        return had and not state


def _has_modes(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _share_that_is_not_empty(parameters: Sequence[nn.Parameter]) -> Tensor | float | None:
    """Share of the parameters whose gradient has a number that is not zero; 0.0 where all gradients are None."""
    given = [local(p.grad) for p in parameters if p.grad is not None and p.grad.layout == torch.strided]
    if not given:
        return 0.0 if parameters else None
    device = given[0].device
    found = [g.any().to(device, torch.float32, non_blocking=True) for g in given]
    return torch.stack(found).sum() / len(parameters)
