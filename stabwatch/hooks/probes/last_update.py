"""What the last step changed: some numbers of each parameter whose turn comes next, kept for one step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stabwatch.kernels.direction import direction

NUMBERS = 1 << 16
"""Of each parameter, evenly spread: so little is kept that every step can afford it."""


class LastChanges:
    """Holds samples over the step before a deep one, and compares them with the deep step's change.

    A change is known by the storage of its parameter and by its step, so that only two steps in a row are compared.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Tensor, Tensor]] = []
        self._changes: dict[int, tuple[int, Tensor]] = {}

    def snapshot(self, parameters: Sequence[Tensor]) -> None:
        """Before a step: copy samples."""
        self._held = [(p, _sample(p).clone()) for p in parameters]

    def keep(self, step: int) -> None:
        """After it: what has changed."""
        held, self._held = self._held, []
        self._changes = {key: found for key, found in self._changes.items() if found[0] == step}
        self._changes |= {p.data_ptr(): (step, _sample(p).float() - old.float()) for p, old in held}

    def compare(self, parameter: Tensor, change: Tensor, step: int) -> Tensor | None:
        """float32 (4,): partials of `direction` of this step's change and the last one's, as of all its numbers."""
        last_step, last = self._changes.pop(parameter.data_ptr(), (None, None))
        if last is None or last_step != step - 1:
            return None
        sample = _sample(change)
        return direction(sample, last) * (change.numel() / max(1, len(sample)))


def _sample(x: Tensor) -> Tensor:
    stride = -(-x.numel() // NUMBERS)
    return x.flatten()[:: stride | 1]  # an odd stride does not stay in some columns
