"""A score that is exactly 0 in every record: nothing that it counts is ever right."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.learning import nothing_learned
from stabwatch.analysis.detectors.robust import Array
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import how_sure, number_of
from stabwatch.analysis.readers.log import Column
from stabwatch.analysis.readers.names import plain

_BEFORE = r"(?:^|[/_ -])"
OVERLAP = re.compile(rf"{_BEFORE}(?:m?iou|dice)$")
"""Scores of segmentation, which are 0 at first where a class is small."""
_KINDS = (
    ("accuracy", re.compile(rf"{_BEFORE}acc(?:uracy)?$"), False),
    (
        "score",
        re.compile(rf"{_BEFORE}(?:(?:macro|micro|weighted)[_-])?(?:f1?|(?:macro-)?f1?_?score|precision|recall)$"),
        False,
    ),
    ("score", re.compile(rf"{_BEFORE}hmean$"), True),
    ("score", re.compile(rf"{_BEFORE}m?ap(?:[_@-]?(?:50|75|95|0_5|50[-_]95))?$"), True),
    ("score", re.compile(rf"{_BEFORE}(?:sacre)?bleu(?:[_-]?[1-4])?$"), True),
    ("score", OVERLAP, False),
)
"""Kinds of scores, by the ends of their names, and whether only an evaluation has them."""
FEWEST, EVALUATED, LATER = 5, 6, 4
"""Fewest records, in epochs from the first, in evaluations from the first, and later: the first scores are often 0."""
SLOW, VERY_LATE = 20, 50
"""Fewest epochs of such scores while the loss falls, and the epoch from which two of them are enough."""
TWO = 2
"""Fewest epochs in which precision, recall and their mean are 0 together, while the loss does not fall."""
STAYS = 0.9
"""Share of the first loss above which it does not fall."""
LATE, ALL_THREE = 5, 3
"""Epoch from which a single evaluation without any right answer is told; where precision, recall and F1 are 0."""
_WRONG = re.compile(rf"{_BEFORE}(?:wer|cer)$")
"""Shares of words and characters that are wrong."""
THREE = 3
"""Fewest evaluations in which all are wrong, while the loss does not fall. At first they are in a healthy run too."""
WHOLE = 0.99
"""Least share, in percent, that is all of the words."""
EIGHT, STILL = 8, 0.005
"""Fewest records of an accuracy of 0 beside others, and the largest movement of the loss, as a share of it."""
FALLS = 0.5
"""Share of the first loss below which a loss was learned, and an accuracy of 0 is that of a regression."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident, of the first kind whose columns are all 0."""
    if not segment.must_fall:
        return []
    early = segment.fresh and segment.run.step_unit != "epoch"
    for word, pattern, evaluated in _KINDS:
        least = LATER if not segment.fresh else EVALUATED if early else FEWEST
        least = SLOW if pattern is OVERLAP and _falls(segment) else least
        scores = [c for c in segment.columns if pattern.search(plain(c.name)) and len(c)]
        longest = max(scores, key=len, default=None)
        if longest is None:
            continue
        few = len(longest) < least and _shows_in_few(segment, scores, evaluated)
        if (len(longest) < least or (early and not evaluated)) and not few:
            continue
        if any(c.values.any() for c in scores):
            continue
        if word == "accuracy" and not _classifies(segment):
            continue
        return [_told(segment, longest, scores, word)]
    return _all_wrong(segment) or _none_right(segment)


def _none_right(segment: RunSegment) -> list[Incident]:
    """One of several accuracies is 0 in each record, and the loss does not move: one of the tasks is not learned."""
    loss = segment.finite_loss
    if segment.fresh or loss is None or len(loss) < EIGHT or float(np.median(loss.values)) <= math.log(2):
        return []
    if float(np.ptp(loss.values)) > STILL * float(np.median(loss.values)):
        return []
    accuracies = [c for c in segment.columns if _KINDS[0][1].search(plain(c.name)) and len(c) >= EIGHT]
    zero = next((c for c in accuracies if not c.values.any()), None)
    if zero is None or segment.run.step_unit == "epoch":
        return []
    text = (
        f"The accuracy '{zero.name}' is 0 in each of {number_of(len(zero))}, and the {segment.loss_name} stays at "
        f"{float(np.median(loss.values)):.4g}: of this task nothing is learned." + how_sure(len(zero), "possible")
    )
    return [replace(nothing_learned(zero, text), signal=zero.name, confidence="possible")]


def _all_wrong(segment: RunSegment) -> list[Incident]:
    """The error rate of words or characters is 1 in each evaluation, and the loss does not fall."""
    loss = segment.finite_loss
    if loss is None or len(loss) < THREE or float(loss.values[-1]) < float(loss.values[0]):
        return []
    for column in segment.columns:
        if _WRONG.search(plain(column.name)) and len(column) >= THREE and _are_all(column.values):
            text = (
                f"'{column.name}' is {column.values.min():g} or more in each of {number_of(len(column))}: nothing is "
                f"recognised. "
                f"The {segment.loss_name} goes from {loss.values[0]:.4g} to {loss.values[-1]:.4g}."
            )
            told = nothing_learned(column, text + how_sure(len(column), "possible"))
            return [replace(told, signal=column.name, confidence="possible")]
    return []


def _are_all(shares: Array) -> bool:
    """Whether shares of errors are all 1, or around 100 %: with insertions there may be more."""
    return bool((shares == 1).all()) or bool(100 * WHOLE <= shares.min() <= shares.max() < 200)


def _shows_in_few(segment: RunSegment, scores: list[Column], evaluated: bool) -> bool:
    """Whether a few scores of 0 are no beginning: late in a training, or beside a loss that does not fall."""
    epoch = segment.run.epoch if segment.run.step_unit != "epoch" else float(max(c.steps[-1] for c in scores))
    if evaluated:
        return epoch is not None and epoch >= LATE
    if epoch is not None and epoch >= VERY_LATE and all(OVERLAP.search(plain(c.name)) for c in scores):
        return min(map(len, scores)) >= TWO
    loss = segment.finite_loss
    if epoch is not None and epoch >= ALL_THREE and _of_three(scores):
        return True
    times = min(map(len, scores))
    rises = loss is not None and len(loss) > 1 and float(loss.values[-1]) >= STAYS * float(loss.values[0])
    epochs = segment.run.step_unit == "epoch" or (segment.run.epoch or 0) >= TWO
    return epochs and times >= TWO and len(scores) > 2 and rises


def _of_three(scores: list[Column]) -> bool:
    """Whether the scores are precision, recall and F1 of one evaluation."""
    names = " ".join(plain(c.name) for c in scores)
    return all(word in names for word in ("precision", "recall", "f1"))


def _falls(segment: RunSegment) -> bool:
    """Whether the loss falls, or there is none."""
    loss = segment.finite_loss
    return (
        loss is None
        or len(loss) < TWO
        or float(loss.values[-1]) < min(STAYS * float(loss.values[0]), float(loss.values[0]))
    )


def _classifies(segment: RunSegment) -> bool:
    """Whether a loss may be that of a classification without a right answer; a regression has no accuracy."""
    loss = segment.finite_loss
    if loss is None or len(loss) < LATER:
        return False
    third = max(len(loss) // 3, 1)
    first, last = float(np.median(loss.values[:third])), float(np.median(loss.values[-third:]))
    return float(np.median(loss.values)) > math.log(2) and last > FALLS * first


def _told(segment: RunSegment, longest: Column, scores: list[Column], word: str) -> Incident:
    names = ", ".join(f"'{c.name}'" for c in scores[:4]) + (", ..." if len(scores) > 4 else "")
    one = len(scores) == 1
    loss = segment.finite_loss
    course = ""
    if loss is not None and len(loss) > 1:
        course = f" The {segment.loss_name} goes from {loss.values[0]:.4g} to {loss.values[-1]:.4g}."
    where = f"each of {number_of(len(longest))}" if len(longest) > 1 else "the only record of an evaluation"
    what = f"The {word} {names} is" if one else f"The scores {names} are"
    text = (
        f"{what} 0 in {where}: nothing is predicted rightly, or "
        f"{'it is' if one else 'they are'} computed wrongly.{course}" + how_sure(len(longest), "possible")
    )
    return replace(nothing_learned(longest, text), signal=longest.name, confidence="possible")
