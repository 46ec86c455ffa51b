"""Does the forward of each step draw the random numbers that those before drew?"""

from __future__ import annotations

from collections import deque

import torch

from stabwatch.hooks.base.run_accumulators import RANDOM, RunAccumulators

KEPT = 8
"""Steps whose states are remembered."""


class RandomNumbers:
    """Compares the state of the generator before the first forward of a step with those of earlier steps."""

    def __init__(self) -> None:
        self._states: deque[bytes] = deque(maxlen=KEPT)
        self._before: bytes | None = None

    def forward_begins(self, device: torch.device, number: int) -> None:
        """A forward begins, the one with this number of its step, from 1."""
        self._before = _state(device) if number == 1 else None

    def forward_ended(self, run: RunAccumulators, device: torch.device) -> None:
        """It has ended. Where it drew numbers: 1 if it began as an earlier one did, else 0."""
        before, self._before = self._before, None
        if before is not None and _state(device) != before:
            run.note(RANDOM, float(before in self._states))
            self._states.append(before)


def _state(device: torch.device) -> bytes | None:
    """The state of the default generator, which the host knows; None on devices of which that is not known."""
    if device.type == "cpu":
        return torch.get_rng_state().numpy().tobytes()
    if device.type == "cuda" and torch.cuda.is_initialized():
        generator = torch.cuda.default_generators[device.index or 0]
        return b"%d %d" % (generator.initial_seed(), generator.get_offset())
    return None
