"""The last line of a log was cut before its loss, and the parts of the loss explode in it."""

from __future__ import annotations

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import how_sure
from stabwatch.analysis.readers.log import Column

FEWEST = 3
"""Fewest records before, each with the loss."""
FAR = 100.0
"""Ratio of the last value of a part to all before it."""
LEAST = 10.0
"""Smallest such value."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident, of the part that explodes most."""
    loss = segment.of("loss")
    if loss is None or segment.watched or len(loss) < FEWEST or len(segment.steps) != len(loss) + 1:
        return []
    if loss.steps[-1] >= segment.steps[-1] or not np.isfinite(loss.values).all() or not segment.must_fall:
        return []
    parts = [c for c in segment.columns if c.role == "component" and _explodes(c, int(segment.steps[-1]))]
    if not parts:
        return []
    part = max(parts, key=lambda c: float(c.values[-1] / c.values[:-1].max()))
    text = (
        f"'{part.name}' jumps from {part.values[-2]:.4g} to {part.values[-1]:.4g} at step {part.steps[-1]}, in the "
        f"last record, which has no loss: its line was cut."
    )
    text += how_sure(len(part), "possible")
    return [
        to_the_end(part, len(part) - 1, text, condition="LossSpike", signal=part.name, confidence="possible",
                   ratio=float(part.values[-1] / part.values[:-1].max()))
    ]  # fmt: skip


def _explodes(part: Column, step: int) -> bool:
    values = part.values
    if len(values) <= FEWEST or part.steps[-1] != step or not np.isfinite(values).all() or values.min() < 0:
        return False
    return bool(values[-1] >= max(FAR * float(values[:-1].max()), LEAST))
