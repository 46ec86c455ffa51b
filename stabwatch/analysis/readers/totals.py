"""The total of a loss if only its parts were logged, as in detection trainers: box, objectness, class."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from stabwatch.analysis.readers.log import Column, LogRun
from stabwatch.analysis.readers.names import role_of

_PART = re.compile(r"(?P<of>(?:train/)?)(?:box|obj|cls|dfl|theta|seg|pose|kobj|iou|giou|angle|rle)_loss")
"""Parts of the YOLO family. They are already weighted, so their sum is the trained loss."""


def with_total(run: LogRun) -> LogRun:
    """The run with the sum of the parts as its loss, if they are of one kind and in the same records."""
    first = run.of("loss")
    if first is None or role_of(first.name) != "component":
        return run
    kind = _kind(first.name)
    parts = [c for c in run.columns if c.role in ("loss", "component") and kind is not None and _kind(c.name) == kind]
    if len(parts) < 2 or not all(np.array_equal(c.steps, first.steps) for c in parts):
        return run
    total = Column(" + ".join(c.name for c in parts), "loss", first.steps, _sum(parts), first.lines)
    others = (replace(c, role="component") if c is first else c for c in run.columns)
    return replace(run, columns=(total, *others))


def _kind(name: str) -> str | None:
    found = _PART.fullmatch(name.strip().lower())
    return None if found is None else found["of"]


def _sum(parts: list[Column]) -> NDArray[np.float64]:
    return reduce(np.add, (c.values for c in parts))
