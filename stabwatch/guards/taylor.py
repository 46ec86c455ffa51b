"""The Taylor guard: no step leaves the radius in which the loss is what its Taylor series says.

Source: Ghosts of Softmax, arXiv:2603.13552: with tau <= rho_a a learning-rate spike of 10,000 times is survived.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.copies import Copies
from stabwatch.hooks.probe import Probe
from stabwatch.kernels.taylor import ratios

_log = logging.getLogger("stabwatch")


class TaylorGuard:
    """Shortens steps of an optimizer that are longer than `limit` times the Taylor radius.

    After each step it measures r = step length over radius on `samples` samples of the batch (by default an eighth of
    it, at least one and at most eight); where r > limit the
    parameters are set back to before + (limit / r) (after - before), and where r is not finite to before. All on the
    device: nothing waits, and a step within the limit changes no bit. Adam's moments are not set back.

    Costs one forward-mode call of the model on `samples` samples per step, and a copy of the parameters while it
    steps. Random states, buffers and gradients stay as they are. An exception of its own is logged once, and
    training goes on unguarded.

    probe: one that sees the model's batches already, instead of one of its own with `samples` samples.
    scale: what the last step was multiplied by, on the device. limited: how many steps were shortened.
    """

    def __init__(
        self,
        optimizer: Any,
        model: nn.Module,
        *,
        limit: float = 1.0,
        samples: int | None = None,
        probe: Probe | None = None,
    ) -> None:
        if limit <= 0:
            raise ValueError(f"`limit` must be positive, and is {limit!r}.")
        self._limit = limit
        self._probe = probe or Probe(model, samples)
        self._copies = Copies()
        self._before: dict[str, Tensor] = {}
        self._optimizer = optimizer
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._parameters = {name: p for name, p in model.named_parameters() if id(p) in stepped}
        device = next(iter(self._parameters.values())).device if self._parameters else torch.device("cpu")
        self.ratio = torch.zeros((), device=device)
        self.scale = torch.ones((), device=device)
        self.limited = torch.zeros((), dtype=torch.int64, device=device)
        self._handles = [
            optimizer.register_step_pre_hook(lambda *_: self._safely(self._hold)),
            optimizer.register_step_post_hook(lambda *_: self._safely(self._limit_step)),
        ]

    def _safely(self, action: Any) -> None:
        try:
            action()
        except Exception:
            _log.exception("stabwatch: the Taylor guard failed; training goes on unguarded")
            self.detach()

    @torch.no_grad()
    def _hold(self) -> None:
        live = [p.detach() for p in self._parameters.values()]
        self._before = dict(zip(self._parameters, self._copies.of(live), strict=True)) if self._probe.ready else {}

    @torch.no_grad()
    def _limit_step(self) -> None:
        before, self._before = self._before, {}
        if not before:
            return
        self.ratio = ratios(*self._probe.rates(before, self._parameters)).amax()
        scale = torch.where(self.ratio > self._limit, self._limit / self.ratio, 1.0)
        sizes = torch._foreach_norm([p.detach() for p in self._parameters.values()])
        whole = torch.isfinite(torch.stack(sizes)).all()  # a unit that is off hides a broken weight from the logits
        self.scale = torch.where(torch.isfinite(self.ratio) & whole, scale, 0.0)
        inside = self.scale == 1
        self.limited += ~inside
        for name, old in before.items():
            new = self._parameters[name]
            part = old + self.scale.to(new.dtype) * (new - old)
            new.copy_(torch.where(inside, new, torch.where(self.scale > 0, part, old)))

    def detach(self) -> None:
        """Take every hook off again."""
        for handle in self._handles:
            handle.remove()
        self._probe.remove()
