"""A loss that stays where it began, judged with the accuracy beside it: a few records are enough then."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from stabwatch.analysis.detectors.robust import Array
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import how_sure, number_of
from stabwatch.analysis.readers.log import Column
from stabwatch.analysis.readers.names import is_eval, is_perplexity, plain

ACCURACY = re.compile(r"(?:^|[/_ ])(?:\w+_)?(?:acc?|accuracy)$")
CLASSES = (
    2, 3, 4, 5, 10, 100, 256, 1000, 28_996, 30_522, 32_000, 32_768, 49_152, 50_257, 65_536, 100_277, 128_256, 151_936,
    200_019, 250_112, 256_000, 262_144,
)  # fmt: skip
"""Numbers of classes, byte values and tokens; the logarithm of such a number is the loss of guessing."""
MOST_CLASSES = 1000
"""Largest other number of classes that a loss and an accuracy may show together."""
STUCK = 4
"""Fewest epochs after the first in which loss and accuracy are the same numbers."""
NEAR, LEAST = 0.01, 0.98
"""Largest distance of the middle loss from that of guessing, and the least share of that in any record."""
CHANCE = 0.01
"""Largest distance of the middle accuracy from one in so many classes."""
GUESSED = 6
"""Fewest epochs of such a loss and such an accuracy."""
THREE, SAME = 3, 0.002
"""Fewest such epochs in which the loss hardly changes, and its largest change."""
ABOVE = 8
"""Fewest records of a loss that is never below its first value."""
GAINED = 0.02
"""Largest gain of an accuracy that shows nothing learned."""
LOW = 0.5
"""Accuracy above which much was learned before the log begins."""
EPOCHS, RECORDS, ALONE = 5, 12, 8
"""Fewest epochs and other records of a flat loss beside a flat accuracy, and fewest epochs of such a loss alone."""
WIDTH, FELL = 0.03, 0.98
"""Largest width of such a loss after its first record, relative to its level, and the least share of the first record
that is left at the end."""
STEPS, STEADY, SETTLED = 128, 0.004, 0.9
"""Fewest records of a loss that settles at once, its standard deviation relative to its level, and the least share of
the first record that this level is."""
SPREAD = 0.05
"""Largest width of such an accuracy."""


def reason(segment: RunSegment, loss: Column) -> str:
    """A sentence on why nothing is learned; empty if that does not show."""
    if not segment.fresh or loss.role != "loss" or is_perplexity(loss.name):
        return ""
    return (
        _stuck(segment, loss)
        or _at_chance(segment, loss)
        or _never_below(segment, loss)
        or _stays_flat(segment, loss)
        or _settles_at_once(segment, loss)
    )


def accuracies(segment: RunSegment, loss: Column) -> Iterator[tuple[Column, Array]]:
    """Accuracies that are printed as often as the loss, and their values as shares."""
    for column in segment.columns:
        if ACCURACY.search(plain(column.name)) and len(column) >= len(loss) and np.isfinite(column.values).all():
            yield column, column.values / 100 if column.values.max() > 1 else column.values


def _stuck(segment: RunSegment, loss: Column) -> str:
    """From the second epoch on, loss and accuracy are the same numbers."""
    rest = loss.values[1:]
    if segment.run.step_unit != "epoch" or len(rest) < STUCK or np.ptp(rest) != 0 or rest[0] == 0:
        return ""
    for column, share in accuracies(segment, loss):
        if np.ptp(share[1:]) == 0 and 0 < share[1] < 1:
            return (
                f"From step {loss.steps[1]} on, the {segment.loss_name} is {rest[0]:.6g} and the accuracy "
                f"('{column.name}') {column.values[1]:g} in each of {number_of(len(rest))}: nothing is learned "
                "any more."
            )
    return ""


def _at_chance(segment: RunSegment, loss: Column) -> str:
    """Loss and accuracy are those of guessing in all epochs."""
    few = len(loss) < GUESSED
    if segment.run.step_unit != "epoch" or len(loss) < THREE:
        return ""
    if few and float(np.ptp(loss.values)) > SAME * float(np.median(loss.values)):
        return ""
    half, middle_loss = len(loss) // 2, float(np.median(loss.values))
    others = round(math.exp(middle_loss)) if 0 < middle_loss < math.log(MOST_CLASSES) else 2
    for classes in dict.fromkeys((*CLASSES, max(others, 2))):
        ratio = loss.values / math.log(classes)
        falls = float(np.median(ratio[half:])) < (1 - NEAR) * float(ratio[:half].min())
        if abs(float(np.median(ratio)) - 1) > NEAR or ratio.min() < LEAST or falls:
            continue
        for column, share in accuracies(segment, loss):
            middle, chance = float(np.median(share)), 1 / classes + min(CHANCE, 0.2 / classes)
            if few and float(np.ptp(share)) > min(CHANCE, 0.2 / classes):
                continue
            if share.min() > 0 and middle <= chance and (middle >= 2 / classes - chance or share.max() <= chance):
                both = middle >= 2 / classes - chance
                guessing = f"guessing among {classes} classes"
                return (
                    f"The {segment.loss_name} stays near ln {classes} and the accuracy ('{column.name}') at "
                    f"{float(np.median(column.values)):g} in {number_of(len(loss), 'epoch')}: "
                    + (f"those of {guessing}" if both else f"the loss of {guessing}, and no accuracy above it")
                    + ". Nothing is learned so far."
                    + how_sure(len(loss), "possible")
                )
    return ""


def _never_below(segment: RunSegment, loss: Column) -> str:
    """The loss is never below its first value, and the accuracy does not rise."""
    if len(loss) < ABOVE or loss.values[1:].min() < loss.values[0]:
        return ""
    told = [(c, share) for c, share in accuracies(segment, loss) if not is_eval(c.name)]
    if not told or any(share[0] > LOW or float(share.max()) > share[0] + GAINED for _, share in told):
        return ""
    column = told[0][0]
    return (
        f"The {segment.loss_name} is never below its first value ({loss.values[0]:.4g}) in {number_of(len(loss))}, and "
        f"the accuracy ('{column.name}') stays between {column.values.min():g} and {column.values.max():g}: nothing is "
        f"learned." + how_sure(len(loss), "possible")
    )


def _stays_flat(segment: RunSegment, loss: Column) -> str:
    """Loss and accuracies stay where they began, whatever the task; or the loss alone, over more epochs."""
    epochs = segment.run.step_unit == "epoch"
    values = loss.values
    if len(values) < (EPOCHS if epochs else RECORDS) or values.min() <= 0:
        return ""
    late = float(np.median(values[-max(len(values) // 3, 2) :]))
    if late < FELL * float(values[0]) or np.ptp(values[1:]) > WIDTH * float(np.median(values)):
        return ""
    told = list(accuracies(segment, loss))
    if any(share.max() > LOW + CHANCE or not _is_flat(share) for _, share in told):
        return ""
    if not told and (not epochs or len(values) < ALONE or _others_move(segment, loss)):
        return ""
    beside = f", and the accuracy ('{told[0][0].name}') at {float(np.median(told[0][0].values)):.4g}" if told else ""
    many = number_of(len(values), "epoch" if epochs else "record")
    return (
        f"The {segment.loss_name} stays at {late:.4g}, where it began ({values[0]:.4g}), in {many}{beside}: nothing is "
        f"learned so far." + how_sure(len(values), "possible")
    )


def _settles_at_once(segment: RunSegment, loss: Column) -> str:
    """A loss above 1 that has its level within a few records, and hardly moves around it in a hundred and more."""
    first = max(len(loss) // 16, 8)
    rest = loss.values[first:]
    if segment.run.step_unit == "epoch" or len(rest) < STEPS or rest.min() < 1 or _others_move(segment, loss):
        return ""
    level, half = float(np.median(rest)), len(rest) // 2
    moved = abs(float(np.median(rest[half:])) - float(np.median(rest[:half])))
    if level < SETTLED * float(loss.values[0]) or rest.std() > STEADY * level or moved > rest.std() / 2:
        return ""
    if any(not _is_flat(share) for _, share in accuracies(segment, loss)):
        return ""
    return (
        f"The {segment.loss_name} is at {level:.4g} after {number_of(first)} ({loss.values[0]:.4g} at first), and "
        f"stays there in {number_of(len(rest))}, within {float(np.ptp(rest)) / level:.1%}: nothing is learned so far."
    )


def _is_flat(share: Array) -> bool:
    gained = float(np.median(share[-max(len(share) // 3, 2) :])) - float(share[0])
    return float(np.ptp(share)) <= SPREAD and gained <= CHANCE


def _others_move(segment: RunSegment, loss: Column) -> bool:
    """Whether another column of the training or of an evaluation changes: something may be learned there."""
    others = (
        c for c in segment.columns if c is not loss and c.role in ("eval_loss", "component", "other") and len(c) > 1
    )
    return any(float(np.ptp(c.values)) > WIDTH * max(abs(float(np.median(c.values))), 1e-12) for c in others)
