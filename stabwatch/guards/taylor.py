"""The guard taylor: no step is longer than the Taylor radius of the loss.

Source: Ghosts of Softmax, arXiv:2603.13552: with tau <= rho_a, training survives a 10,000-fold learning-rate spike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stabwatch.distributed.ranks import Ranks
from stabwatch.hooks.base.copies import Copies
from stabwatch.hooks.probes.directional import DirectionalDerivative
from stabwatch.kernels.taylor import ratios

_log = logging.getLogger("stabwatch")
_T = TypeVar("_T")
OVER_RANKS = (
    "the Taylor guard is off: it works in jobs of one rank only. With several ranks it would need the largest ratio of "
    "all of them inside each step, and thus a collective that all ranks wait for"
)


class TaylorGuard:
    """Shortens steps of an optimizer that are longer than `limit` times the Taylor radius.

    After each step it measures r = step length over radius on `samples` samples of the batch (by default an eighth of
    it, at least one and at most eight). If r > limit, the parameters become before + (limit / r) (after - before); if r
    is not finite, they become before. This happens on the device: the host never waits, and a step within the limit is
    bit-identical. Adam's moments are not restored.

    Costs one forward-mode call of the model on `samples` samples per step, and a copy of the parameters while it
    steps. Random states, buffers and gradients are unchanged. An exception of its own is logged once, and
    training continues without the guard.

    In a job of several ranks it raises ValueError. Each rank measures another r, so replicas would diverge; and to use
    the largest one, all ranks would have to wait for each other inside the step.

    probe: an existing probe of the model's batches, in place of a new one with `samples` samples.
    ratio: r of the last step, inf where it was not finite. scale: what that step was multiplied by.
    interventions: how many steps were shortened. All on the device.
    """

    def __init__(
        self,
        optimizer: Any,
        model: nn.Module,
        *,
        limit: float = 1.0,
        samples: int | None = None,
        probe: DirectionalDerivative | None = None,
    ) -> None:
        if limit <= 0:
            raise ValueError(f"`limit` must be positive, and is {limit!r}.")
        if Ranks(model, "auto").world > 1:
            raise ValueError(f"{OVER_RANKS}.")
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self._limit = limit
        self._probe = probe or DirectionalDerivative(inner, samples)
        self._owns_probe = probe is None
        self._copies = Copies()
        self._before: dict[str, Tensor] = {}
        self.failure = f"the Taylor guard is off: {self._probe.refusal}" if self._probe.refusal else ""
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._parameters = {name: p for name, p in inner.named_parameters() if id(p) in stepped and p.numel()}
        device = next(iter(self._parameters.values())).device if self._parameters else torch.device("cpu")
        self.ratio = torch.zeros((), device=device)
        self.scale = torch.ones((), device=device)
        self.interventions = torch.zeros((), dtype=torch.int64, device=device)
        self._handles = [
            optimizer.register_step_pre_hook(self._step_begins),
            optimizer.register_step_post_hook(self._step_ends),
        ]

    def _step_begins(self, *_: Any) -> None:
        self._before = self._safely(self._save, {})

    def _step_ends(self, *_: Any) -> None:
        before, self._before = self._before, {}
        if before:
            self._safely(lambda: self._measure_and_shorten(before), None)

    def _measure_and_shorten(self, before: dict[str, Tensor]) -> None:
        self.ratio = self._measure(before)
        self._shorten(before)

    def _safely(self, action: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return action()
        except Exception as error:
            if not self.failure:
                _log.exception("stabwatch: the Taylor guard failed; training continues without it")
            self.failure = self.failure or f"the Taylor guard is off since it failed: {type(error).__name__}: {error}"
            if self._owns_probe:
                self._probe.remove()
            return otherwise

    @torch.no_grad()
    def _save(self) -> dict[str, Tensor]:
        if self.failure or not self._probe.ready:
            return {}
        live = [p.detach() for p in self._parameters.values()]
        return dict(zip(self._parameters, self._copies.of(live), strict=True))

    @torch.no_grad()
    def _measure(self, before: dict[str, Tensor]) -> Tensor:
        """The largest r of the slice, 0-dim float32; inf where it or a weight is not finite."""
        device = self.ratio.device
        ratio = ratios(*self._probe.rates(before, self._parameters)).amax().to(device)
        # a unit that is off hides a non-finite weight from the logits
        sizes = torch._foreach_norm([p.detach() for p in self._parameters.values()], torch.inf)
        whole = torch.stack([s.to(device, torch.float32) for s in sizes]).isfinite().all()
        return torch.where(whole & ratio.isfinite(), ratio, torch.inf)

    @torch.no_grad()
    def _shorten(self, before: dict[str, Tensor]) -> None:
        inside = self.ratio <= self._limit
        self.scale = torch.where(inside, 1.0, self._limit / self.ratio)
        self.interventions += ~inside
        for name, old in before.items():
            new = self._parameters[name]
            kept, scale = inside.to(new.device), self.scale.to(new.device, new.dtype)
            part = torch.where(scale > 0, old + scale * (new - old), old)
            new.copy_(torch.where(kept, new, part))

    def clipped(self, norm: Tensor) -> None:
        """Ignored: the radius does not depend on clipping."""

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        if self._owns_probe:
            self._probe.remove()
