"""The guard skip_step: undoes steps with an outlying gradient norm, on the device.

Source: OLMo 2 (arXiv:2501.00656) skips steps whose gradient norm is six standard deviations above its mean over the
last 128 steps. Every loss scaler skips steps with non-finite gradients.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from stabwatch.hooks.base.copies import Copies

_log = logging.getLogger("stabwatch")

WINDOW = 128
SIGMAS = 6.0
LEAST_RATIO = 2.0
"""A norm below twice the mean is never an outlier."""


class SkipStep:
    """Undoes steps of an optimizer whose gradient norm is not finite, or far above those of the last 128 steps.

    An outlier is more than six standard deviations above their mean and more than twice the mean, from 64 norms on. Its
    norm enters the window, so a lasting change is accepted later. The norm is that before clipping where
    `clip_grad_norm_` computed it. Parameters and optimizer state are restored by a selection on the device: the host
    never waits, and an accepted step is bit-identical. Host numbers of the state (a step count that is no tensor)
    continue. State that was created in the undone step becomes zero.

    Costs a copy of parameters and optimizer state while the optimizer steps. Replicas with the same
    gradients decide the same. Sharded parameters raise ValueError, because a shard does not know the norm. An exception
    of its own is logged once, and training continues without the guard.

    interventions: steps undone so far, int64 () on the device.
    """

    def __init__(self, optimizer: Any, *, window: int = WINDOW, sigmas: float = SIGMAS) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if any(hasattr(p, "_local_tensor") for p in params):
            raise ValueError("The guard skip_step needs whole parameters, and those of this model are sharded.")
        device = params[0].device if params else torch.device("cpu")
        self._optimizer = optimizer
        self._sigmas = sigmas
        self._copies = Copies()
        self._norms = torch.full((window,), torch.nan, device=device)
        self._steps = 0
        self._clipped: Tensor | None = None
        self._saved: dict[tuple[int, str], Tensor] = {}
        self._skip = torch.zeros((), dtype=torch.bool, device=device)
        self.failure = ""
        self.interventions = torch.zeros((), dtype=torch.int64, device=device)
        self._handles = [
            optimizer.register_step_pre_hook(self._step_begins),
            optimizer.register_step_post_hook(self._step_ends),
        ]

    def clipped(self, norm: Tensor) -> None:
        """`clip_grad_norm_` computed this norm for the next step; of several, the largest counts."""
        norm = norm.detach().to(self._norms.device, torch.float32)
        self._clipped = norm if self._clipped is None else torch.maximum(self._clipped, norm)

    def _step_begins(self, *_: Any) -> None:
        self._safely(self._decide)

    def _step_ends(self, *_: Any) -> None:
        self._safely(self._select)

    def _safely(self, action: Any) -> None:
        if self.failure:
            return
        try:
            with torch.no_grad():
                action()
        except Exception as error:
            _log.exception("stabwatch: the guard skip_step failed; training continues without it")
            self.failure = f"the guard skip_step is off since it failed: {type(error).__name__}: {error}"
            self._saved = {}

    def _decide(self) -> None:
        norm = self._norm()
        known = self._norms.isfinite()
        count = known.sum()
        mean = torch.where(known, self._norms, 0.0).sum() / count
        spread = (torch.where(known, self._norms - mean, 0.0).square().sum() / (count - 1)).sqrt()
        outlier = (norm > mean + self._sigmas * spread) & (norm > LEAST_RATIO * mean) & (count >= len(self._norms) // 2)
        self._skip = ~norm.isfinite() | outlier
        self._norms[self._steps % len(self._norms)] = norm
        self._steps += 1
        live = self._live()
        self._saved = dict(zip(live, self._copies.of(list(live.values())), strict=True))

    def _norm(self) -> Tensor:
        clipped, self._clipped = self._clipped, None
        device = self._norms.device
        grads = [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        dense = [g.coalesce().values() if g.is_sparse else g for g in grads]
        parts = [n.to(device, torch.float32) for n in torch._foreach_norm(dense)] if dense else []
        norm = torch.linalg.vector_norm(torch.stack(parts)) if parts else self._norms.new_zeros(())
        scale = getattr(self._optimizer, "grad_scale", None)  # a fused optimizer unscales by itself
        norm = norm / scale.to(device) if isinstance(scale, Tensor) else norm
        return norm if clipped is None else torch.maximum(norm, clipped)

    def _live(self) -> dict[tuple[int, str], Tensor]:
        """Tensors that the step may change, by parameter and name: parameters, and their optimizer state."""
        params = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        live = {(id(p), ""): p.detach() for p in params}
        for p in params:
            state = self._optimizer.state.get(p, {})
            live |= {(id(p), name): t for name, t in state.items() if isinstance(t, Tensor)}
        return live

    def _select(self) -> None:
        saved, self._saved = self._saved, {}
        for place, now in self._live().items():
            old = saved.get(place)
            old = torch.zeros_like(now) if old is None else old
            now.copy_(torch.where(self._skip.to(now.device), old, now))
        self.interventions += self._skip

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
