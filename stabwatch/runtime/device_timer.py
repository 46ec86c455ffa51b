"""How long steps take on the clock of the device that runs them, without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch

_T = TypeVar("_T")


class StepTimes(Generic[_T]):
    """Times between the ends of steps.

    The host runs ahead of an accelerator: how long it takes to queue a step says little of what the step takes. There
    an event is recorded at the end of each step, and looked at some steps later, when it has passed. Elsewhere the
    host's clock is right.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: torch.cuda.Event | None = None
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event, _T]] = deque()

    def step_ends(self, seconds: float, about: _T) -> Iterator[tuple[float, _T]]:
        """A step has ended after `seconds` of the host's clock; gives (seconds, about) of those known by now."""
        if self._device.type != "cuda":
            yield seconds, about
            return
        end = torch.cuda.Event(enable_timing=True)
        end.record(torch.cuda.current_stream(self._device))
        begin, self._last = self._last, end
        if begin is not None:
            self._pending.append((begin, end, about))
        while self._pending and self._pending[0][1].query():
            begin, end, about = self._pending.popleft()
            yield begin.elapsed_time(end) / 1e3, about

    def restart(self) -> None:
        """What follows until the next step ends is no part of a step."""
        self._last = None
