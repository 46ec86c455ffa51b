"""Modules that are called several times in one forward: the places of their calls.

The first 32 calls have a place each, later ones share some: four for each doubling.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from torch import Tensor

APART = 32
STARTS = (*range(APART), *(size * part // 4 for size in (32, 64, 128, 256) for part in (4, 5, 6, 7)))
"""First call of each place; the last place has all calls from there on."""
POSITIONS = tuple((a + b - 1) / 2 for a, b in zip(STARTS, (*STARTS[1:], STARTS[-1] + 1), strict=True))
"""Mean number of the calls of each place."""


def place_of(call: int) -> int:
    """Which place a call has, by its number within the forward, from 0."""
    return bisect_right(STARTS, call) - 1


def names_of(module: str) -> tuple[str, ...]:
    """Names of the places: `core[3]`, `core[32-39]`, and `core[448-]` for the last one."""
    ends = (*STARTS[1:], None)
    calls = (
        f"{a}-" if b is None else str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in zip(STARTS, ends, strict=True)
    )
    return tuple(f"{module}[{call}]" for call in calls)


@dataclass(eq=False)
class Loop:
    """A module that is known to be called several times. previous: its last output in the forward, while it runs."""

    names: tuple[str, ...]
    previous: Tensor | None = None
