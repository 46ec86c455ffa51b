"""A loss that does not fall: not learning at all, or on a plateau above what the same run had reached."""

from __future__ import annotations

import math

import numpy as np

from stabwatch.analysis.detectors.robust import Array, level
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.findings import Finding
from stabwatch.analysis.readers.log import Column, Role

ENOUGH = 20
"""Records without which nothing is said: a slow start is no standstill."""
SILENT = 8
"""Records that are enough where neither gradient nor learning rate ever was other than 0."""
SETTLED = 5
"""Records in which a loss may fall from its initial value to that of guessing."""
FLAT = 0.01
"""Of the level: the most that a loss which stands still changes, first fifth to last fifth."""
CLASSES = (2, 3, 4, 5, 10, 100, 256, 1000, 32_000, 32_768, 50_257, 65_536, 128_256)
"""Numbers of classes, of values of a byte, and of tokens, whose logarithm is the loss of guessing."""
GUESS = 0.003
"""How close to such a logarithm."""
WORSE = 1.5
"""Times its earlier best at which a plateau is one."""


def find(part: RunSegment) -> list[Finding]:
    """At most one."""
    loss = part.finite_loss
    if loss is None or len(loss) < SILENT or not part.must_fall:
        return []
    return _standstill(part, loss) or _plateau(part, loss)


def _zero(part: RunSegment, role: Role) -> bool:
    column = part.of(role)
    return column is not None and len(column) >= SILENT and not column.values.any()


def _standstill(part: RunSegment, loss: Column) -> list[Finding]:
    if not part.fresh:
        return []  # a loss late in a training moves as little
    values = loss.values[SETTLED:]
    fifth = max(len(values) // 5, 3)
    first, last = float(np.median(values[:fifth])), float(np.median(values[-fifth:]))
    size = level(loss.values)
    if abs(first - last) > FLAT * size or np.quantile(values, 0.9) - np.quantile(values, 0.1) > 3 * FLAT * size:
        return []
    reason, sure = _reason(part, loss, values)
    if not reason:
        return []
    return [
        Finding(
            kind="not_learning",
            severity="warning",
            step=int(loss.steps[0]),
            end_step=None,
            points=len(loss),
            size=float(loss.values[0] / last) if last > 0 else math.nan,
            confidence=sure,
            line=int(loss.lines[0]),
            text=f"The {part.loss_name} stands at {last:.4g} from the beginning on: {reason}. Nothing is learned.",
            evidence=(f"{loss.values[0]:.4g} in the first record, {loss.values[-1]:.4g} in the last of {len(loss)}.",),
        )
    ]


def _reason(part: RunSegment, loss: Column, values: Array) -> tuple[str, float]:
    """What says that a flat loss is not that of a finished training; empty if nothing does."""
    norm, rate = _zero(part, "grad_norm"), _zero(part, "learning_rate")
    if norm and rate:
        return "the gradient norm and the learning rate are 0 in every record", 0.95
    if len(loss) < ENOUGH:
        return "", 0.0
    if norm:
        return "the gradient norm is 0 in every record", 0.95
    if rate:
        return "the learning rate is 0 in every record", 0.9
    if len(np.unique(loss.values)) == 1 and loss.values[0] != 0:
        return "it is the same number in every record", 0.9
    middle = float(np.median(values))
    for classes in CLASSES:
        if abs(middle / math.log(classes) - 1) < GUESS:
            return f"that is ln {classes}, the loss of guessing among {classes} classes", 0.85
    return "", 0.0


def _plateau(part: RunSegment, loss: Column) -> list[Finding]:
    """After a restart from scratch: flat, and far above what the part before had reached."""
    earlier = part.before.finite_loss if part.restarted and part.before is not None else None
    if earlier is None or len(earlier) < ENOUGH:
        return []
    before = earlier.values
    best = float(np.quantile(before, 0.05))
    half = loss.values[len(loss) // 2 :]
    now = float(np.median(half))
    moved = abs(float(np.median(half[: len(half) // 3])) - float(np.median(half[-len(half) // 3 :])))
    if best <= 0 or now < WORSE * best or moved > 3 * FLAT * now or len(loss) < len(before) // 8:
        return []
    start = int(np.argmax(loss.values <= now * (1 + 5 * FLAT)))
    return [
        Finding(
            kind="plateau",
            severity="warning",
            step=int(loss.steps[start]),
            end_step=None,
            points=len(loss) - start,
            size=now / best,
            confidence=0.8,
            line=int(loss.lines[start]),
            text=(
                f"The {part.loss_name} stays on a plateau of {now:.4g} from step {loss.steps[start]} to the end; "
                f"before its restart this training had reached {best:.4g}."
            ),
            evidence=(f"{len(loss) - start} records on the plateau.",),
        )
    ]
