"""How many collectives of its job a rank has called, from which it is seen when ranks average their weights.

Ranks that average gradients call collectives in each step. Those that step on their own (local SGD) call fewer, and
more where they average their weights. The job's process groups count what is called; here these numbers are read.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

REMEMBERED = 32
"""Steps whose collectives say what is usual."""
LOOKS = 4
"""Looks in so many steps that more collectives than usual ask for, in the mean: others are skipped by chance."""


def called() -> int | None:
    """Collectives that this rank has called in all groups so far; None where a group does not say."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    try:
        groups: Iterable[Any] = distributed_c10d._world.pg_map
        return sum(group._get_sequence_number_for_group() for group in groups)
    except (RuntimeError, AttributeError):
        return None


class Collectives:
    """Counts them by step. in_step: those since the step before began; None if that is not known."""

    def __init__(self) -> None:
        self.in_step: int | None = None
        self._before: int | None = None
        self._last: deque[int] = deque(maxlen=REMEMBERED)
        self._steps = 0

    def step_begins(self) -> bool:
        """The optimizer is about to step: were there more than usual, so that weights may have been averaged?

        The answer is the same on ranks that call the same collectives.
        """
        now, self._steps = called(), self._steps + 1
        self.in_step = None if now is None or self._before is None else now - self._before
        self._before = now
        if self.in_step is None:
            return False
        self._last.append(self.in_step)
        usual = min(self._last)
        if self.in_step == usual:
            return False
        more = sum(n > usual for n in self._last)
        return zlib.crc32(str(self._steps).encode()) % max(LOOKS, more) < LOOKS
