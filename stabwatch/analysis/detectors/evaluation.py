"""A validation loss far above the training loss from the first record on, or one answer for all its samples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.divergence import ends_high
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.never_learns import ACCURACY
from stabwatch.analysis.detectors.segments import RunSegment, picked
from stabwatch.analysis.detectors.wording import how_sure, number_of
from stabwatch.analysis.readers.log import Column
from stabwatch.analysis.readers.names import is_eval, is_perplexity, plain

FEWEST, FEWER = 3, 2
"""Fewest validations, and fewest that are all `FAR` above."""
FAR = 100.0
ABOVE, LEAST = 10.0, 3.0
"""Ratio of most of them, and of each, to the training loss before it. Overfitting begins near the training loss."""
BEYOND = (1e3, 20.0)
"""Ratio of each validation loss to the training loss, and its least size; for perplexities ten and a hundred times."""
WILD, OFF, SIMILAR = (6, 64), 5.0, 2.0
"""Fewest and most validations that show single jumps, their ratio to the median, and the largest among the others."""
SAME = 5
"""Fewest validations whose accuracy is one number while the training loss falls."""
TIMES = 10.0
"""Ratio of the last validations to the best from which overfitting is not the likely reason."""
RISES = 1.25
"""Ratio of the later half of them to the first: the sum of a validation may stay."""
MOST = 8
"""Most validations of an excerpt that ends while both losses rise; in a longer one, a rise has a detector."""
BOTH_RISE = (1.5, 3.0, 3.0)
"""Ratios of the last training loss to all before and to the one before, and of the last validation to all before."""
ONLY_TWO = 4.0
"""Ratio of the second to the first of both losses, in a log of two records."""
MOVES = 0.98
"""The same where the accuracy of all validations is one number."""
LEARNED = 0.9
"""Share of the first training loss that the last one is below: something is learned."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident."""
    loss = segment.finite_loss
    told = segment.of("eval_loss")
    if told is not None and segment.must_fall and (wild := _wild(told)):
        return wild
    if loss is None or len(loss) < FEWEST or loss.role != "loss" or not segment.fresh or not segment.must_fall:
        return _apart(segment)
    return _apart(segment) or _one_answer(segment, loss) or _none_right(segment)


def _wild(told: Column) -> list[Incident]:
    """Validation losses that jump far up in single records: a mean over all samples has no odd batches."""
    told = picked(told, np.isfinite(told.values))
    if not WILD[0] <= len(told) <= WILD[1] or told.values.min() <= 0:
        return []
    middle = float(np.median(told.values))
    high = told.values >= OFF * middle
    calm = told.values[~high]
    at = np.flatnonzero(high)
    if len(at) < 2 or len(calm) <= len(at) or calm.max() > SIMILAR * calm.min() or np.diff(at).min() < 2:
        return []
    first, worst = int(at[0]), int(np.argmax(told.values))
    text = (
        f"The validation loss ('{told.name}') jumps in {len(at)} of {number_of(len(told), 'validation')}, each time "
        f"for one: to {told.values[worst]:.4g} at step {told.steps[worst]}, where {middle:.4g} is usual. Does the "
        f"evaluation read other data each time, or use statistics of single batches?" + how_sure(len(told), "possible")
    )
    found = to_the_end(told, first, text, condition="LossSpike", signal=told.name, confidence="possible")
    return [replace(found, last_step=int(told.steps[at[-1]]), records=len(at))]


def _apart(segment: RunSegment) -> list[Incident]:
    """A validation loss far above the training loss, or a rise of both at the end."""
    loss, told = segment.of("loss"), segment.of("eval_loss")
    if loss is not None and told is not None and (beyond := _beyond(segment, loss, told)):
        return beyond
    if loss is None or told is None or not segment.fresh or not segment.must_fall or is_perplexity(told.name):
        return []
    if is_perplexity(loss.name) or not np.isfinite(loss.values).all():
        return []
    told = picked(told, np.isfinite(told.values))
    beside = _beside(loss, told)
    if len(beside) < FEWER or len(beside) < len(told) or beside.min() <= 0:
        return []
    if len(beside) <= MOST and loss.role == "loss" and (rises := _both_rise(loss, told)):
        return rises
    if diverged := _diverges(told):
        return diverged
    falls = beside[-1] < LEARNED * beside[0]
    late = float(np.median(told.values[len(told) // 2 :]))
    ratio = told.values / beside
    enough = len(beside) >= FEWEST or float(ratio.min()) >= FAR
    apart = (
        enough
        and late >= RISES * float(told.values[0])
        and float(np.median(ratio)) >= ABOVE
        and float(ratio.min()) >= LEAST
    )
    if not falls or not apart:
        return []
    middle, times = float(np.median(ratio)), number_of(len(told), "validation")
    text = (
        f"The validation loss ('{told.name}') is {middle:.0f} times the training loss in the middle of {times}, at "
        f"least {float(ratio.min()):.0f} times in each, and rises while that falls ({told.values[0]:.4g} to "
        f"{told.values[-1]:.4g}, while training goes from {beside[0]:.4g} to {beside[-1]:.4g}). That is more than "
        f"overfitting: does the evaluation prepare its data, or use the normalisation, otherwise than training?"
    )
    text += how_sure(len(told), "possible")
    return [to_the_end(told, 0, text, condition="EvaluationApart", signal=told.name, confidence="possible")]


def _beyond(segment: RunSegment, loss: Column, told: Column) -> list[Incident]:
    """Each validation loss is a thousand times the training loss before it, and large: no overfitting goes so far."""
    told, loss = (picked(c, np.isfinite(c.values)) for c in (told, loss))
    beside = _beside(loss, told)
    if not segment.must_fall or len(beside) < max(len(told), 1) or beside.min() <= 0:
        return []
    both = is_perplexity(told.name) + is_perplexity(loss.name)
    times, least = (BEYOND[0] * 10, BEYOND[1] * 100) if both == 2 else BEYOND
    if both == 1 or told.values.min() < least or float((told.values / beside).min()) < times:
        return []
    ratio = float((told.values / beside).min())
    text = (
        f"'{told.name}' is {told.values[-1]:.4g} where training has {beside[-1]:.4g}"
        + (f", and {ratio:.3g} times that or more in each of {number_of(len(told), 'validation')}" * (len(told) > 1))
        + ": that is more than overfitting. Does the evaluation prepare its data, or restore its weights, otherwise "
        "than training?" + how_sure(len(told), "possible")
    )
    return [to_the_end(told, 0, text, condition="EvaluationApart", signal=told.name, confidence="possible")]


def _diverges(told: Column) -> list[Incident]:
    """The validation loss ends far above all validations before, which had become better."""
    high = ends_high(told.values, TIMES)
    if high is None:
        return []
    start, best = high
    text = (
        f"The validation loss ('{told.name}') rises from step {told.steps[start]}, from {best:.4g} at best to "
        f"{told.values[-1]:.4g} at the end, above all validations before: that is more than overfitting."
    )
    text += how_sure(len(told), "likely")
    ratio = float(told.values[-1]) / best
    return [
        to_the_end(told, start, text, condition="LossDivergence", signal=told.name, ratio=ratio, confidence="likely")
    ]


def _both_rise(loss: Column, told: Column) -> list[Incident]:
    """The last training loss and the last validation loss are far above all before: a rise in both is no noise."""
    ours, theirs = loss.values, told.values
    if len(ours) != len(theirs) or ours.min() <= 0 or theirs.min() <= 0:
        return []
    over, step, other = BOTH_RISE if len(ours) >= FEWEST else (ONLY_TWO,) * 3
    if ours[-1] < over * ours[:-1].max() or ours[-1] < step * ours[-2] or theirs[-1] < other * theirs[:-1].max():
        return []
    text = (
        f"At step {loss.steps[-1]}, the last of the log, both losses are far above all before: training goes from "
        f"{ours[-2]:.4g} to {ours[-1]:.4g}, validation ('{told.name}') from {theirs[-2]:.4g} to {theirs[-1]:.4g}."
    )
    at, ratio = len(ours) - 1, float(ours[-1] / ours[-2])
    text += how_sure(len(ours), "possible")
    return [to_the_end(loss, at, text, condition="LossDivergence", ratio=ratio, confidence="possible")]


def _one_answer(segment: RunSegment, loss: Column) -> list[Incident]:
    """The accuracy of all validations is one number while training learns, as if each sample got one answer."""
    if loss.values[-1] >= MOVES * loss.values[0]:
        return []
    for column in segment.columns:
        if not (is_eval(column.name) and ACCURACY.search(plain(column.name)) and len(column) >= SAME):
            continue
        level, start = float(column.values[-1]), int(column.values[0] != column.values[-1])
        if np.ptp(column.values[start:]) or len(column) - start < SAME or not 0 < level % 100 != 1:
            continue
        same = number_of(len(column) - start, "validation")
        text = (
            f"'{column.name}' is {level:g} in each of {same}, while the training loss goes from "
            f"{loss.values[0]:.4g} to {loss.values[-1]:.4g}: does the model give one answer for all samples of the "
            f"evaluation?"
        )
        text += how_sure(len(column), "possible")
        return [to_the_end(column, start, text, condition="EvaluationApart", signal=column.name, confidence="possible")]
    return []


def _none_right(segment: RunSegment) -> list[Incident]:
    """No answer of any validation is right, and its loss rises, while some of training are right."""
    told = segment.of("eval_loss")
    accuracies = [c for c in segment.columns if ACCURACY.search(plain(c.name)) and len(c) >= SAME]
    none = next((c for c in accuracies if is_eval(c.name) and not c.values.any()), None)
    learned = any(c.values[-1] > c.values[0] for c in accuracies if not is_eval(c.name))
    if told is None or none is None or not learned or told.values.min() <= math.log(2):  # a regression has none
        return []
    if told.values[-1] < RISES * told.values[0]:
        return []
    text = (
        f"'{none.name}' is 0 in each of {number_of(len(none), 'validation')}, and '{told.name}' rises from "
        f"{told.values[0]:.4g} to {told.values[-1]:.4g}, while training learns: does the evaluation have classes "
        f"that training lacks, as after a split of sorted data?"
    )
    text += how_sure(len(none), "possible")
    return [to_the_end(none, 0, text, condition="EvaluationApart", signal=none.name, confidence="possible")]


def _beside(loss: Column, told: Column) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The last training loss at each validation; fewer, if there is none before the first."""
    at = np.searchsorted(loss.steps, told.steps, side="right") - 1
    return np.asarray(loss.values[at[at >= 0]], dtype=np.float64)
