"""The divergence of a policy in an excerpt: it grows a hundredfold and never falls."""

from __future__ import annotations

import re

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.alerts.roles import is_called, spelled
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.segments import RunSegment, picked
from stabwatch.analysis.detectors.wording import how_sure
from stabwatch.analysis.readers.log import Column

FEWEST = 4
"""Fewest records up to the end, each above the one before."""
MOST = 16
"""Most records of an excerpt; a longer log has a rule."""
GROWS = 100.0
"""Ratio of the last of them to the first."""
OF_A_TOKEN, OF_A_TEXT = 1.0, 100.0
"""Least divergence at the end, in nats: of one token or action, and of whole texts."""
LONGEST, TIMES = 64, 10.0
"""Most records of a log in which a divergence that stays at ten times all before is told; the rule needs more."""
SHORTEST = 2
LEAP = 20.0
"""Ratio of the divergence of one update, at least `OF_A_TOKEN`, to all before."""
_SUMMED = re.compile(r"objective/|non_score")
"""TRL's divergence of whole texts, for which a healthy target is six nats."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident, of the first column that runs away."""
    if segment.watched:
        return []
    for column in segment.columns:
        if not (is_called("reference_kl", column.name) or is_called("old_kl", column.name)):
            continue
        known = picked(column, np.isfinite(column.values))
        start = _runs_away(known)
        if start is None and is_called("old_kl", column.name):
            start = _leaps(known)
        start = _stays(known) if start is None else start
        if start is not None:
            return [_told(known, start)]
    return []


def _runs_away(kl: Column) -> int | None:
    """Index of the last record before the rise."""
    if not FEWEST <= len(kl) <= MOST:
        return None
    down = np.flatnonzero(np.diff(kl.values) <= 0)
    start = int(down[-1]) + 1 if len(down) else 0
    first, last = float(kl.values[start]), float(kl.values[-1])
    least = OF_A_TEXT if _SUMMED.search(spelled(kl.name)) else OF_A_TOKEN
    runs = len(kl) - start >= FEWEST and first > 0 and last >= max(GROWS * first, least)
    return start if runs and last == kl.values.max() else None


def _leaps(kl: Column) -> int | None:
    """The same for the divergence of one update, which a trust region keeps at a hundredth of a nat."""
    values = kl.values
    if not SHORTEST <= len(kl) <= MOST:
        return None
    far = np.flatnonzero(values < OF_A_TOKEN)
    start = int(far[-1]) if len(far) else -1
    before = float(values[: start + 1].max(initial=0.0))
    leaps = 0 <= start < len(kl) - 1 and bool((np.diff(values[start:]) > 0).all())
    return start if leaps and float(values[-1]) >= LEAP * before else None


def _stays(kl: Column) -> int | None:
    """The same where it leaves the level of all records before at once, and stays there to the end."""
    values = kl.values
    if not 2 * FEWEST <= len(kl) <= LONGEST:
        return None
    least = OF_A_TEXT if _SUMMED.search(spelled(kl.name)) else OF_A_TOKEN
    for i in range(FEWEST, len(values) - 1):
        top = float(values[:i].max())
        if top > 0 and float(values[i:].min()) >= TIMES * top and float(values[-FEWEST // 2 :].min()) >= least:
            return i - 1
    return None


def _told(kl: Column, start: int) -> Incident:
    tail = kl.values[start:]
    course = "rises in each record" if (np.diff(tail) > 0).all() else "is far above all records before"
    text = (
        f"The divergence of the policy ('{kl.name}') {course} from step {kl.steps[start + 1]} on, from "
        f"{kl.values[start]:.3g} to {kl.values[-1]:.4g} at the end." + how_sure(len(kl), "possible")
    )
    ratio = float(kl.values[-1] / kl.values[start])
    return to_the_end(kl, start + 1, text, condition="KLRunaway", signal=kl.name, ratio=ratio, confidence="possible")
