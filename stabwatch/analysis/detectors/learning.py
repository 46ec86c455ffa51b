"""A loss that does not fall: no learning at all, or a plateau above the earlier best of the same run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors import never_learns, saturated
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.never_learns import ACCURACY, CLASSES
from stabwatch.analysis.detectors.robust import Array, level
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import digits_of, how_sure, number_of
from stabwatch.analysis.readers.log import Column, Role
from stabwatch.analysis.readers.names import is_perplexity, plain

_SHARE = re.compile(r"m?error$")
"""A share of wrong answers takes few values."""
ENOUGH = 20
"""Fewest records, because a slow start is not yet a standstill."""
SILENT = 8
"""Fewest records if the gradient norm or the learning rate was always 0."""
SETTLED = 5
"""Records in which a loss may fall from its initial value to the loss of guessing."""
FLAT = 0.01
"""Largest change of a flat loss from the first fifth to the last fifth, relative to its level."""
GUESS = 0.003
"""Largest relative distance from such a logarithm."""
TOKENS, AS_MANY = 1000, 0.03
"""Fewest tokens of a vocabulary, and the largest relative distance of a perplexity from their number."""
EXACTLY = 2e-4
"""The same for a loss that became one number: four digits."""
CONSTANT = 5
"""Fewest records that are one number, with as many digits, wherever in a training they are."""
FIRST_EPOCHS = (3, 4)
"""The same for the first epochs of a training, and fewest digits."""
UNMOVED = 3
"""Records whose margins are exactly 0. In the first, a policy is the reference still."""
UNMOVED_BY = 3
"""Fewest records of a loss that does not change while the gradient norm is 0."""
GUESSES = 6
"""Fewest records of a loss of guessing in an excerpt; four, if each is one epoch."""
FEW = 4
"""Fewest records of a loss and an accuracy that do not change."""
STILL, FROZEN = 1e-3, 5e-3
"""Largest change of such a loss, relative to its level, and of one whose gradient norm is 0."""
CAP = math.exp(100) * (1 - 1e-6)
"""OpenNMT's largest perplexity: that of guessing is the number of words."""
BOUNDS = (
    (87.33654, "the smallest float of 32 bits"), (16.118096, "1e-7"), (13.815511, "1e-6"), (18.420681, "1e-8"),
    (23.025851, "1e-10"), (27.631021, "1e-12"), (34.538776, "1e-15"),
)  # fmt: skip
"""The largest losses that Caffe, Keras and others print: -ln of the least probability that they take a logarithm of."""
AT_BOUND = 2
"""Fewest records at such a bound, up to the end."""
SAME_DIGITS = 2e-6
"""Largest relative distance from a bound, besides half of the last printed digit of four decimals."""
WORSE = 1.5
"""Ratio to the earlier best from which a flat loss is a plateau."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident."""
    loss = segment.finite_loss
    if loss is None or len(loss) < 2 or not segment.must_fall:
        return []
    told = _reason_of_few(segment, loss)
    if told:
        return [nothing_learned(loss, told)]
    bound = _at_a_bound(segment, loss)
    if bound:
        return bound
    if len(loss) < SILENT:
        return _constant(segment, loss)
    dead = _dies_at_guessing(segment, loss)
    if dead:
        return dead
    return _standstill(segment, loss) or _constant(segment, loss) or _plateau(segment, loss)


def _reason_of_few(segment: RunSegment, loss: Column) -> str:
    """A sentence on what shows in a few records that nothing is learned; empty if nothing does."""
    margin = _same(segment, loss, lambda name: name.endswith("rewards/margins"))
    flat = float(np.ptp(loss.values)) <= STILL * level(loss.values)
    if margin is not None and len(margin) >= UNMOVED and not margin.values.any() and flat:
        return (
            f"All margins ('{margin.name}') are exactly 0 in each of {number_of(len(margin))}: the policy is still the "
            f"reference. Has it trainable parameters, and do they get a gradient?"
        )
    capped = _same(segment, loss, is_perplexity)
    if capped is not None and capped.values[0] >= CAP:
        return (
            f"The perplexity is {capped.values[0]:.3g}, exp(100), in each of {number_of(len(capped))}: the largest "
            f"that is printed, where guessing gives the number of words."
        )
    norm, rate = segment.of("grad_norm"), segment.of("learning_rate")
    moves = rate is not None and bool(rate.values.any())
    norms = np.zeros(0) if norm is None else norm.values[np.isfinite(norm.values)]
    frozen = float(np.ptp(loss.values)) <= FROZEN * level(loss.values)
    if moves and frozen and not norms.any() and len(loss) >= UNMOVED_BY <= len(norms):
        return (
            f"The gradient norm is 0 in each of {number_of(len(norms))}, and the {segment.loss_name} stays at "
            f"{loss.values[-1]:.4g}: nothing is learned. Are all parameters frozen, or is the loss detached?"
        )
    guessed = _guesses(segment, loss)
    if guessed:
        return guessed
    told = never_learns.reason(segment, loss) or saturated.reason(segment, loss)
    if told:
        return told
    right = _same(segment, loss, lambda name: ACCURACY.search(plain(name)) is not None)
    if (
        right is None
        or not 0 < right.values[0] % 100 != 1
        or len(loss) < FEW
        or not flat
        or not segment.fresh
        or loss.role != "loss"
    ):
        return ""
    return (
        f"The accuracy ('{right.name}') is {right.values[0]:g} in each of {number_of(len(right))}, and the "
        f"{segment.loss_name} stays at {loss.values[-1]:.4g} from the beginning: nothing is learned."
    )


def _guesses(segment: RunSegment, loss: Column) -> str:
    """The same for a loss that is that of guessing in each of a few records from the first on, without a trend."""
    epochs = segment.run.step_unit == "epoch"
    least = FEW if epochs else GUESSES
    if not least <= len(loss) < ENOUGH or not segment.fresh or loss.role != "loss" or is_perplexity(loss.name):
        return ""
    if any("rewards/" in c.name for c in segment.columns):
        return ""  # preference tuning begins at ln 2 and stays near it
    half = len(loss) // 2
    early, late = loss.values[:half], loss.values[half:]
    near = STILL if segment.run.step_unit == "ordinal" else GUESS  # without steps, it may be late in a training
    classes = next((n for n in CLASSES if (np.abs(loss.values / math.log(n) - 1) < near).all()), None)
    if classes is None or float(np.median(late)) < (math.log(classes) * (1 - STILL) if epochs else float(early.min())):
        return ""
    return (
        f"In each of {number_of(len(loss))} the {segment.loss_name} is within {_furthest(loss, classes):.2g} of ln "
        f"{classes}, the loss of guessing among {classes} classes: nothing is learned so far."
        + how_sure(len(loss), "possible")
    )


def _furthest(loss: Column, classes: int) -> float:
    return float(np.abs(loss.values - math.log(classes)).max())


def _same(segment: RunSegment, loss: Column, named: Callable[[str], bool]) -> Column | None:
    """The first column with such a name that is one number in all records of the loss."""
    found = (c for c in segment.columns if named(c.name) and len(c) >= len(loss))
    return next((c for c in found if np.ptp(c.values) == 0), None)


def _constant(segment: RunSegment, loss: Column) -> list[Incident]:
    """The loss is one number in all records, with too many digits for chance."""
    value = float(loss.values[0])
    first_epochs = segment.fresh and segment.run.step_unit == "epoch" and not segment.watched
    least, digits = FIRST_EPOCHS if first_epochs else (CONSTANT, CONSTANT)
    if len(loss) < least or digits_of(value) < digits or np.ptp(loss.values) != 0 or loss.role != "loss":
        return []
    if _SHARE.search(loss.name):
        return []
    text = f"The {segment.loss_name} is {value:.6g} in each of its {len(loss)} records: nothing is learned."
    return [nothing_learned(loss, text + (how_sure(len(loss), "likely") if len(loss) < CONSTANT else ""))]


def _dies_at_guessing(segment: RunSegment, loss: Column) -> list[Incident]:
    """The loss is the one of guessing, the same number in all records at the end, and was not before."""
    end, start = _last_number(loss)
    classes = next((n for n in CLASSES if abs(end / math.log(n) - 1) < EXACTLY), None)
    if not start or len(loss) - start < SILENT or classes is None or loss.role != "loss":
        return []
    text = (
        f"The {segment.loss_name} is {end:.6g} in each of the last {number_of(len(loss) - start)}, from step "
        f"{loss.steps[start]} on: that is ln {classes}, the loss of guessing among {classes} classes. Nothing is "
        f"learned any more."
    )
    return [nothing_learned(loss, text, start)]


def _at_a_bound(segment: RunSegment, loss: Column) -> list[Incident]:
    """The loss is the largest that is printed, -ln of the least probability, in all records at the end."""
    end, start = _last_number(loss)
    near = next((words for bound, words in BOUNDS if abs(end - bound) <= SAME_DIGITS * bound + 5e-5), None)
    points = len(loss) - start
    if near is None or points < AT_BOUND or is_perplexity(loss.name) or segment.excursions:
        return []
    since = f"the last {number_of(points)}, from step {loss.steps[start]} on" if start else f"{number_of(points)}"
    text = (
        f"The {segment.loss_name} is {end:.6g} in each of {since}: that is -ln of {near}, the least probability that a "
        f"logarithm is taken of. No right answer is given more than that."
    )
    return [nothing_learned(loss, text + how_sure(len(loss), "likely"), start)]


def _zero(segment: RunSegment, role: Role) -> bool:
    column = segment.of(role)
    return column is not None and len(column) >= SILENT and not column.values.any()


def _standstill(segment: RunSegment, loss: Column) -> list[Incident]:
    if not segment.fresh:
        return []  # late in training, a loss changes as little
    values = loss.values[SETTLED:]
    fifth = max(len(values) // 5, 3)
    first, last = float(np.median(values[:fifth])), float(np.median(values[-fifth:]))
    size = level(loss.values)
    if abs(first - last) > FLAT * size or np.quantile(values, 0.9) - np.quantile(values, 0.1) > 3 * FLAT * size:
        return []
    reason = _reason(segment, loss, values)
    if not reason:
        return []
    text = f"The {segment.loss_name} stays at {last:.4g} from the beginning: {reason}. Nothing is learned."
    ends = f"{loss.values[0]:.4g} in the first record, {loss.values[-1]:.4g} in the last of {len(loss)}."
    found = nothing_learned(loss, text)
    return [replace(found, ratio=float(loss.values[0] / last) if last > 0 else None, evidence=(ends,))]


def nothing_learned(loss: Column, text: str, start: int = 0) -> Incident:
    """From the record with index `start` to the end of the log."""
    return to_the_end(loss, start, text, condition="NotLearning")


def _last_number(loss: Column) -> tuple[float, int]:
    """The last value, and the index from which all are that number."""
    end = float(loss.values[-1])
    other = np.flatnonzero(loss.values != end)
    return end, int(other[-1]) + 1 if len(other) else 0


def _reason(segment: RunSegment, loss: Column, values: Array) -> str:
    """Why a flat loss is not that of a finished training; empty if there is no reason."""
    norm, rate = _zero(segment, "grad_norm"), _zero(segment, "learning_rate")
    if norm and rate:
        return "the gradient norm and the learning rate are 0 in every record"
    if len(loss) < ENOUGH:
        return ""
    if norm:
        return "the gradient norm is 0 in every record"
    if rate:
        return "the learning rate is 0 in every record"
    if len(np.unique(loss.values)) == 1 and loss.values[0] != 0:
        return "it is the same number in every record"
    middle = float(np.median(values))
    if is_perplexity(loss.name):
        classes = next((n for n in CLASSES if n >= TOKENS and abs(middle / n - 1) < AS_MANY), None)
        return "" if classes is None else f"guessing among {classes} tokens has that perplexity"
    for classes in CLASSES:
        if abs(middle / math.log(classes) - 1) < GUESS:
            return f"that is ln {classes}, the loss of guessing among {classes} classes"
    return ""


def _plateau(segment: RunSegment, loss: Column) -> list[Incident]:
    """After a restart from scratch: a flat loss far above the best of the segment before."""
    earlier = segment.before.finite_loss if segment.restarted and segment.before is not None else None
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
    text = (
        f"The {segment.loss_name} stays on a plateau of {now:.4g} from step {loss.steps[start]} to the end; "
        f"before its restart this training had reached {best:.4g}."
    )
    evidence = (f"{len(loss) - start} records on the plateau.",)
    return [to_the_end(loss, start, text, condition="LossPlateau", ratio=now / best, evidence=evidence)]
