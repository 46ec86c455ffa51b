"""What can have happened in a training log. A detector is a module with `find(part) -> list[Finding]`; it prints
nothing, keeps no state, and says nothing where its columns are missing."""

from __future__ import annotations

from collections.abc import Callable

from stabwatch.analysis.detectors import (
    divergence,
    gradients,
    learning,
    learning_rate,
    loss_scale,
    messages,
    nonfinite,
    pace,
    spikes,
    too_good,
)
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.findings import Finding

Detector = Callable[[RunSegment], list[Finding]]

DETECTORS: tuple[Detector, ...] = (
    nonfinite.find,
    divergence.find,
    spikes.find,
    gradients.find,
    loss_scale.find,
    learning.find,
    too_good.find,
    learning_rate.find,
    pace.find,
    messages.find,
)
"""All that look at one part of a run. `reinitialisation` cuts a part in two, `restarts` looks at all parts."""
