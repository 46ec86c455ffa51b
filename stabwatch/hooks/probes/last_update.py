"""What the last step changed: some numbers of each parameter that is due next, kept for one step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stabwatch.hooks.base.parameter_views import ParameterChange
from stabwatch.hooks.base.probe import PROBES, Probe, on
from stabwatch.kernels.direction import direction
from stabwatch.kernels.merge import Aggregates
from stabwatch.signals.reductions import SUCCESSIVE

NUMBERS = 1 << 16
"""Numbers that are kept of each parameter, evenly spread: few enough for every step."""


class LastChanges:
    """Keeps samples over the step before a deep one.

    A change is identified by the storage of its parameter and by its step, so that only consecutive steps are compared.
    """

    def __init__(self) -> None:
        self._before: list[tuple[Tensor, Tensor]] = []
        self._changes: dict[int, tuple[int, Tensor]] = {}

    def snapshot(self, parameters: Sequence[Tensor]) -> None:
        """Before a step: copy samples."""
        self._before = [(p, _sample(p).clone()) for p in parameters]

    def keep(self, step: int) -> None:
        """After the step: keep what has changed."""
        before, self._before = self._before, []
        self._changes = {key: found for key, found in self._changes.items() if found[0] == step}
        self._changes |= {p.data_ptr(): (step, _sample(p).float() - old.float()) for p, old in before}

    def take(self, parameter: Tensor, step: int) -> Tensor | None:
        """Samples of what the step before `step` changed, float32 (n,); None if they were not kept."""
        last_step, last = self._changes.pop(parameter.data_ptr(), (None, None))
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
