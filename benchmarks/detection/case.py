"""What a run of the benchmark is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.zoo import Setting

STEPS = 400
FAULT = 200
"""Step from which an injected fault is there."""
Make = Callable[[int], Setting]


@dataclass(frozen=True)
class Case:
    """A training, by seed.

    half: thresholds are calibrated on A, figures reported on B, with other seeds.
    causes: what a diagnosis may name first; none for a healthy run. fault: first step of an injected fault.
    twin: the same training without its fault: same seed, same batches.
    """

    name: str
    make: Make
    half: Literal["A", "B"]
    causes: tuple[str, ...] = ()
    fault: int | None = None
    twin: Make | None = None
