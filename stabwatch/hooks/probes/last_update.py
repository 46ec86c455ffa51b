"""What the last step changed: some numbers of each parameter that is due next, kept for one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from torch import Tensor

from stabwatch.hooks.base.parameter_views import ParameterChange
from stabwatch.hooks.base.probe import PROBES, Probe, on
from stabwatch.kernels.direction import direction
from stabwatch.kernels.merge import Aggregates
from stabwatch.signals.reductions import SUCCESSIVE

NUMBERS = 1 << 16
"""Numbers that are kept of each parameter, evenly spread: few enough for every step."""

Key: TypeAlias = tuple[int, str]
"""Tells a parameter from all others: an id, and a name."""


class LastChanges:
    """Keeps samples over the step before a deep one.

    A change is identified by its parameter and by its step, so that only consecutive steps are compared.
    """

    def __init__(self) -> None:
        self._before: list[tuple[Key, Callable[[], Tensor], Tensor]] = []
        self._changes: dict[Key, tuple[int, Tensor]] = {}

    def snapshot(self, weights: Iterable[tuple[Key, Callable[[], Tensor]]]) -> None:
        """Before a step: copy samples. Each weight is read again after it, as the step may set `p.data`."""
        self._before = [(key, read, _sample(read()).clone()) for key, read in weights]

    def keep(self, step: int) -> None:
        """After the step: keep what has changed."""
        before, self._before = self._before, []
        self._changes = {key: found for key, found in self._changes.items() if found[0] == step}
        for key, read, old in before:
            now = _sample(read())
            if now.shape == old.shape and now.device == old.device:
                self._changes[key] = step, now.float() - old.float()

    def take(self, key: Key, step: int) -> Tensor | None:
        """Samples of what the step before `step` changed, float32 (n,); None if they were not kept."""
        last_step, last = self._changes.pop(key, (None, None))
        return last if last_step == step - 1 else None


def stride(numel: int) -> int:
    """Every how many numbers of a parameter one is kept: odd, so that the sample does not stay in some columns."""
    return -(-numel // NUMBERS) | 1


def _sample(x: Tensor) -> Tensor:
    return x.flatten()[:: stride(x.numel())]


def _successive(x: ParameterChange) -> Aggregates | None:
    """`direction` of this step's change and the last one's, scaled from the sample to all numbers."""
    if x.last_change is None:
        return None
    sample = _sample(x.change)
    return direction(sample, x.last_change) * (x.change.numel() / max(1, len(sample)))


LAST_CHANGE = PROBES.register(
    Probe(
        name="successive", tap="update", reduction=SUCCESSIVE, tier="deep", compute=on(ParameterChange, _successive),
        round_robin=True,
    )
)  # fmt: skip
