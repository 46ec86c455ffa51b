"""Accumulators that belong to one watched module each, and are on its device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stabwatch.hooks.base.accumulators import Buffer
from stabwatch.kernels.merge import empty_accumulator, merge_
from stabwatch.runlog import Accumulator
from stabwatch.signals.reductions import Reduction

if TYPE_CHECKING:
    from stabwatch.hooks.base.sites import Site


class Strays:
    """Accumulators of modules that compute on another device than the one where their accumulators were made.

    They are merged into the accumulators that they stand for when the step ends.
    """

    def __init__(self) -> None:
        self._moved: list[tuple[Reduction, Tensor, Tensor]] = []

    def on(self, device: torch.device, reduction: Reduction, accumulator: Tensor) -> Tensor:
        """An empty accumulator on a device, whose content becomes part of `accumulator`."""
        stray = empty_accumulator(reduction, device)
        self._moved.append((reduction, accumulator, stray))
        return stray

    @torch.no_grad()
    def collect(self) -> None:
        """Merge them, the last first (one may stand for another), and empty them."""
        for reduction, accumulator, stray in reversed(self._moved):
            merge_(reduction, accumulator, stray.to(accumulator.device))
            stray.copy_(empty_accumulator(reduction, stray.device))

    def source_of(self, tensor: Tensor) -> Callable[[], Tensor]:
        """A source for the buffer: this tensor, with all that stands for parts of it."""

        def source() -> Tensor:
            if self._moved:
                self.collect()
            return tensor

        return source


def register_own(
    sites: Iterable[Site], which: Mapping[str, Callable[..., Accumulator]], strays: Strays, buffer: Buffer
) -> None:
    """Put the sites' own accumulators into the step's buffer: those of one device become parts of one tensor.

    which: attributes of a site that hold one, with the accumulator of a site's name.
    """
    by_device: dict[torch.device, list[tuple[Site, str]]] = {}
    for site in sites:
        for attribute in which:
            held = getattr(site, attribute)
            if held is not None:
                by_device.setdefault(held.device, []).append((site, attribute))
    for mine in by_device.values():
        held = [getattr(site, attribute) for site, attribute in mine]
        together = torch.cat(held)
        for (site, attribute), part in zip(mine, together.split([len(x) for x in held]), strict=True):
            setattr(site, attribute, part)
        buffer.add(tuple(which[attribute](site.name) for site, attribute in mine), strays.source_of(together))
