"""What never moves: a validation loss that is one number, and a part of the loss that is exactly 0."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import digits_of, how_sure, number_of
from stabwatch.analysis.readers.names import plain

VALIDATIONS, DIGITS = 4, 5
"""Fewest validations that are one number, and its fewest digits: with fewer, chance and rounding do it."""
LEARNED = 0.98
"""Share of the first training loss that is left at least: nothing is learned there either."""
EPOCHS, RECORDS = 5, 8
"""Fewest epochs and other records of a part of the loss that is 0."""
_OF_BOXES = re.compile(
    r"(?:^|[/_ ])(?:[gcd]?iou|b?box|dfl|loc|box_reg)_loss$|(?:^|[/_ ])loss_(?:[gcd]?iou|b?box|dfl|loc|box_reg)$"
)
"""Parts of the loss of a detector that are 0 only where no prediction is for an object."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident."""
    if not segment.fresh or not segment.must_fall or segment.watched:
        return []
    return _one_validation(segment) or _no_boxes(segment)


def _one_validation(segment: RunSegment) -> list[Incident]:
    told, loss = segment.of("eval_loss"), segment.of("loss")
    if told is None or len(told) < VALIDATIONS or np.ptp(told.values) != 0 or not np.isfinite(told.values).all():
        return []
    learned = loss is not None and len(loss) > 1 and float(loss.values[-1]) < LEARNED * float(loss.values[0])
    if digits_of(float(told.values[0])) < DIGITS or learned:
        return []
    text = (
        f"The validation loss ('{told.name}') is {told.values[0]:.6g} in each of {number_of(len(told), 'validation')}: "
        f"whatever the training changes, the model says the same."
    )
    text += how_sure(len(told), "likely")
    return [to_the_end(told, 0, text, condition="NotLearning", signal=told.name)]


def _no_boxes(segment: RunSegment) -> list[Incident]:
    unit = "epoch" if segment.run.step_unit == "epoch" else "record"
    fewest = EPOCHS if unit == "epoch" else RECORDS
    parts = [c for c in segment.columns if c.role == "component" and len(c) >= fewest]
    zero = [c for c in parts if _OF_BOXES.search(plain(c.name)) and not c.values.any()]
    if not zero or len(zero) == len(parts):
        return []
    text = (
        f"The part '{zero[0].name}' of the loss is exactly 0 in each of {number_of(len(zero[0]), unit)}, and others "
        f"are not: no prediction was ever compared with an object. Are the labels found, and in the expected form?"
    )
    text += how_sure(len(zero[0]), "possible")
    found = to_the_end(zero[0], 0, text, condition="NotLearning", signal=zero[0].name)
    return [replace(found, confidence="possible")]
