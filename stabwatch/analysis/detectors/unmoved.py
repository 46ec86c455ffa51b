"""What never moves: a validation loss that is one number, and a part of the loss that is exactly 0."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.never_learns import ACCURACY
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import digits_of, how_sure, number_of
from stabwatch.analysis.readers.log import Column
from stabwatch.analysis.readers.names import plain

VALIDATIONS, DIGITS = 4, 5
"""Fewest validations that are one number, and its fewest digits: with fewer, chance and rounding do it."""
TWO, EXACT = 2, 8
"""Fewest validations, and fewest digits, of one that the training does not move wherever it is."""
MARGINS = (0.1, 0.2, 0.25, 0.3, 0.5, 1.0, 2.0)
"""Usual margins: the loss of triplets whose samples are all at one place."""
AT_MARGIN, CLOSE = 5, 0.8
"""Fewest validations at one, and the least share of it that the training loss has then."""
TIMES, RECURS, PASS, WITHIN = 3, 4, 20, 0.9
"""Fewest passes over the data that print the same values, fewest and most of these, and the least share of the first
that the last one is."""
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
    if not segment.must_fall or segment.watched:
        return []
    told = _one_validation(segment) or _again_and_again(segment)
    return told or (_no_boxes(segment) if segment.fresh else [])


def _one_validation(segment: RunSegment) -> list[Incident]:
    told, loss = segment.of("eval_loss"), segment.of("loss")
    if told is None or len(told) < TWO or np.ptp(told.values) != 0 or not np.isfinite(told.values).all():
        return []
    learned = loss is not None and len(loss) > 1 and float(loss.values[-1]) < LEARNED * float(loss.values[0])
    digits = digits_of(float(told.values[0]))
    exact = digits >= EXACT and loss is not None and len(loss) >= TWO
    if _at_margin(told, loss):
        text = (
            f"The validation loss ('{told.name}') is {told.values[0]:g} in each of {number_of(len(told), 'validation')}"
            f": that is a margin, the loss of samples that are all at one place or that are told apart no better than "
            f"by chance." + how_sure(len(told), "likely")
        )
        return [to_the_end(told, 0, text, condition="NotLearning", signal=told.name)]
    if learned or not (exact or (segment.fresh and len(told) >= VALIDATIONS and digits >= DIGITS)):
        return []
    text = (
        f"The validation loss ('{told.name}') is {told.values[0]:.6g} in each of {number_of(len(told), 'validation')}: "
        f"whatever the training changes, the model says the same."
    )
    text += how_sure(len(told), "likely")
    return [to_the_end(told, 0, text, condition="NotLearning", signal=told.name)]


def _at_margin(told: Column, loss: Column | None) -> bool:
    """Whether all validations are a margin, beside a training loss that is printed with more digits."""
    margin = float(told.values[0])
    if loss is None or margin not in MARGINS or len(told) < AT_MARGIN or len(np.unique(loss.values)) < AT_MARGIN:
        return False
    fine = np.median([digits_of(float(value)) for value in loss.values]) >= 3
    return bool(fine) and CLOSE * margin <= float(loss.values.min()) and float(loss.values[-1]) <= margin


def _again_and_again(segment: RunSegment) -> list[Incident]:
    """The numbers of an epoch are those of the epoch before, one by one: no weight has changed."""
    parts = [segment]
    while parts[0].before is not None and len(parts) < TIMES:
        parts.insert(0, parts[0].before)
    columns = [c for c in segment.columns if c.role == "loss" or ACCURACY.search(plain(c.name))]
    for column in columns:
        same = [next((c for c in part.columns if c.name == column.name), None) for part in parts]
        if len(parts) < TIMES or not RECURS <= len(column) <= PASS or not np.ptp(column.values) > 0:
            continue
        if column.values[-1] < WITHIN * column.values[0]:
            continue  # it falls within a pass: copies of one training
        if any(c is None or not np.array_equal(c.values, column.values) for c in same):
            continue
        if max(map(digits_of, column.values.tolist())) < DIGITS or _told_before(parts[0].before, column):
            continue
        text = (
            f"'{column.name}' has the same {len(column)} values as in the two passes before, from step "
            f"{column.steps[0]} to {column.steps[-1]}: no weight changes, and nothing is learned."
        )
        told = to_the_end(column, 0, text, condition="NotLearning", signal=column.name)
        return [replace(told, confidence="likely")]
    return []


def _told_before(earlier: RunSegment | None, column: Column) -> bool:
    """Whether the pass before those that are compared has the same values too."""
    found = [] if earlier is None else [c for c in earlier.columns if c.name == column.name]
    return any(np.array_equal(c.values, column.values) for c in found)


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
