"""The cells of the run as a whole: loss, output logits, clipping, the gradient scaler, and what the user logs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stabwatch.distributed.health import BUSY_SOURCE
from stabwatch.hooks.base.tensors import new_accumulator
from stabwatch.hooks.probes.loss import mean_partials
from stabwatch.kernels.merge import merge_
from stabwatch.runlog import Accumulator, host_accumulator
from stabwatch.signals.reductions import CLIP, HOST, MEAN

LOSS = Accumulator("loss", "", "mean")
LOGITS = Accumulator("logits", "", "logsumexp")
CERTAINTY = Accumulator("logits", "", "certainty")
CLASSES = Accumulator("logits", "", "classes")
SCALING = Accumulator("logits", "", "scaling")
CLIPPED = Accumulator("gradient", "", "clip")
LOSS_SCALE = host_accumulator("loss_scale")
LOSS_FALLBACKS = ("logged", "module", "function", "output", "backward")
"""Where the loss may come from, best first; the first that was measured in a step becomes the loss."""


def loss_source(name: str) -> Accumulator:
    """The cell of one source of the loss; these stay inside the training process."""
    return Accumulator("loss_source", name, "mean")


class RunAccumulators:
    """Device cells that belong to no module."""

    expected = (LOSS, LOGITS)

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.losses = {name: new_accumulator("mean", device) for name in LOSS_FALLBACKS}
        self.loss = self.losses["function"]
        self.logits = new_accumulator("logsumexp", device)
        self.certainty = new_accumulator("certainty", device)
        self.classes = new_accumulator("classes", device)
        self.scaling = new_accumulator("scaling", device)
        self.clip = new_accumulator("clip", device)
        self.loss_scale = new_accumulator("host", device)
        self.busy = new_accumulator("host", device)
        self.logged: dict[str, Tensor] = {}
        self.classifies = False
        """A call of `cross_entropy` was seen, outside of compiled graphs."""

    def register(self, buffer: Any) -> None:
        """Put the cells into a StepBuffer."""
        buffer.add(
            (BUSY_SOURCE,), lambda: self.busy
        )  # with the sources of the loss: what is before their end stays here
        for name in LOSS_FALLBACKS:
            buffer.add((loss_source(name),), lambda name=name: self.losses[name])
        buffer.add((LOGITS,), lambda: self.logits)
        buffer.add((CERTAINTY,), lambda: self.certainty)
        buffer.add((CLASSES,), lambda: self.classes)
        buffer.add((SCALING,), lambda: self.scaling)
        buffer.add((CLIPPED,), lambda: self.clip)
        buffer.add((LOSS_SCALE,), lambda: self.loss_scale)

    @torch.no_grad()
    def update_loss(self, source: str, value: Tensor) -> None:
        """One more micro-batch's mean loss."""
        self._update(self.losses[source], value)

    @torch.no_grad()
    def update_backward_loss(self, value: Tensor) -> None:
        """What `backward` is called on: summed over the micro-batches of a step, as the gradients are."""
        self._update(self.losses["backward"], value)
        self.losses["backward"][0].fill_(1.0)

    @torch.no_grad()
    def update_clip(self, norm: Tensor) -> None:
        """The norm that clipping found; calls on several groups of parameters add up as squares."""
        norm = norm.detach().to(self._device, torch.float32, non_blocking=True)
        norm = norm._local_tensor if hasattr(norm, "_local_tensor") else norm
        one = torch.ones((), device=self._device)
        merge_(CLIP, self.clip, torch.stack((one, norm.square(), (~torch.isfinite(norm)).float())))

    @torch.no_grad()
    def update_loss_scale(self, scale: Tensor) -> None:
        """The gradient scaler's scale."""
        scale = scale.detach().to(self._device, torch.float32, non_blocking=True).reshape(())
        merge_(HOST, self.loss_scale, torch.stack((torch.ones_like(scale), scale)))

    def fill_busy(self, seconds: float) -> None:
        """This rank's time to the end of its forward, in a step that is merged over ranks."""
        self.busy[0].fill_(1.0)
        self.busy[1].fill_(seconds)

    @torch.no_grad()
    def update_logged(self, name: str, value: Tensor) -> None:
        """A number of the user's; these cells stay with this rank and are taken by `take_logged`."""
        cell = self.logged.setdefault(name, new_accumulator("mean", self._device))
        self._update(cell, value)

    def take_logged(self) -> dict[str, Tensor]:
        """The cells of this step's logged numbers."""
        taken, self.logged = self.logged, {}
        return taken

    def _update(self, cell: Tensor, value: Tensor) -> None:
        value = value.detach().to(cell.device, torch.float32, non_blocking=True).reshape(())
        merge_(MEAN, cell, mean_partials(value, 1.0))
