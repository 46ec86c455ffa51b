"""Adversarial training, whose losses need not fall: a discriminator that won, or that is of no use."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np

from stabwatch.alerts.incidents import Incident
from stabwatch.analysis.detectors.endings import to_the_end
from stabwatch.analysis.detectors.policy import finite_of, with_evidence
from stabwatch.analysis.detectors.robust import Array
from stabwatch.analysis.detectors.segments import RunSegment
from stabwatch.analysis.detectors.wording import how_sure, number_of

FEWEST = 20
"""Fewest records of a discriminator that has won for a part of them."""
_DISCRIMINATOR = re.compile(
    r"(?:^|[/_ ])(?:d|disc|discriminator|errd|loss_d)(?:_loss)?$|(?:^|[/_ ])loss[/_](?:d|disc\w*)$"
)
NOTHING = 0.01
"""Share of its first level below which the loss of a discriminator is nothing."""
LONG = 0.25
"""Share of the records at the end for which it is nothing."""
_MADE = re.compile(
    r"(?:^|[/_ ])(?:adv|adversarial|g|gen|generator|errg)(?:_\w+)?_loss$|(?:^|[/_ ])(?:errg|loss_g\w*)$|^generator$"
)
"""The loss of a generator."""
_ACCURACY = re.compile(r"(?:^|[/_ ])(?:acc|accuracy)$")
GONE = 100.0
"""Ratio of the loss of a generator to all before it, of which there was one of a half at least."""
STAYS = 0.1
"""Share of that which all later records exceed."""
WON = 1e-3
"""Loss of a discriminator that is right every time, where the loss of the generator is above `GONE`."""
CERTAIN, IN_THE_LAST, FAR = 1e-3, 4, 10.0
"""Distance of the outputs of a discriminator from 1 and 0, records at the end, and the least loss of the generator."""
SOME, MOSTLY, AWAY = 8, 0.75, 5.0
"""Fewest records of a discriminator whose loss is exactly 0, their least share, and the least loss of the generator."""
ENDS, LEFT, THIRD = 6, 1e-4, 3
"""Fewest records, the largest loss of a discriminator that is nothing in the last third of them, and at least three."""
EPOCHS, BEGAN = 2, 0.1
"""Fewest epochs whose mean loss is exactly 0 at the end, and the least loss in the first: a few samples would show."""
_OF_REAL, _OF_FAKE = (
    re.compile(rf"(?:^|[/_ ])(?:(?:loss_)?(?:d|disc|discriminator)_{kind}(?:_loss)?|(?:d|disc)_loss_{kind})$")
    for kind in ("real", "fake")
)
"""Losses of a discriminator for real and for made samples."""
_AGAINST = re.compile(r"(?:^|[/_ ])(?:g_adv|g_gan|adv|g_fake|loss_g_gan|gan)(?:_loss)?$")
"""The part of the loss of a generator that comes from the discriminator."""
HALF, SQUARE, FIXED = 0.5, 1.0, 0.01
"""Share of the records at the end, and the part of the generator for outputs of exactly 0, squared from 1, and its
largest distance from that."""
_REAL, _FAKE = re.compile(r"^d\(x\)$"), re.compile(r"^d\(g\(z\)\)$")
"""Outputs of a discriminator for real and made samples."""
FOOLED = 2 * math.log(2)
"""Loss of a discriminator that guesses, for a made and a real sample."""
TAKEN = 5
"""Fewest records in which it is worse than that, while the loss of the generator is 0."""
UNBOUNDED = 1e6
"""Size of the loss of a discriminator without a bound, as a Wasserstein distance, that no training recovers from."""


def find(segment: RunSegment) -> list[Incident]:
    """At most one incident of each kind."""
    if segment.must_fall:
        return []
    lost = (
        _discriminator(segment)
        or _nothing_left(segment)
        or _nothing_at_the_end(segment)
        or _both_are_nothing(segment)
        or _won(segment)
        or _certain(segment)
        or _fooled(segment)
        or _unbounded(segment)
    )
    return [*_generator(segment), *lost]


def _generator(segment: RunSegment) -> list[Incident]:
    """The loss of a generator is a hundred times what it ever was, up to the end."""
    loss = finite_of(segment, _MADE)
    if loss is None or len(loss) < 2 or loss.values.min() < 0:
        return []
    before = np.maximum.accumulate(np.maximum(loss.values, 0.5))[:-1]
    beyond = np.flatnonzero(loss.values[1:] >= GONE * before)
    if not len(beyond) or loss.values[: beyond[0] + 1].max() < 0.5:
        return []
    start = int(beyond[0]) + 1
    if loss.values[start:].min() < STAYS * loss.values[start]:
        return []
    text = (
        f"The loss of the generator ('{loss.name}') jumps at step {loss.steps[start]}, from "
        f"{loss.values[start - 1]:.4g} to {loss.values[start]:.4g}, and "
        + ("the log ends there." if start == len(loss) - 1 else "stays there to the end.")
        + how_sure(len(loss), "possible")
    )
    evidence = f"The largest before: {loss.values[:start].max():.4g}."
    return [replace(with_evidence(loss, start, text, evidence, condition="LossDivergence"), confidence="possible")]


def _won(segment: RunSegment) -> list[Incident]:
    """The discriminator is right every time in each of a few records, and the generator is far from it."""
    loss, right, made = finite_of(segment, _DISCRIMINATOR), finite_of(segment, _ACCURACY), finite_of(segment, _MADE)
    if loss is None or right is None or made is None or not 0 < len(loss) < FEWEST or not len(right) or not len(made):
        return []
    always = right.values.min() >= (100.0 if right.values.max() > 1 else 1.0)
    if not always or not 0 <= loss.values.min() <= loss.values.max() <= WON or made.values.min() < GONE:
        return []
    text = (
        f"The discriminator ('{loss.name}') is right every time: its loss is {loss.values[-1]:.2g}, that of the "
        f"generator {made.values[-1]:.4g}, which learns nothing from it." + how_sure(len(loss), "possible")
    )
    evidence = f"Accuracy of the discriminator: {right.values[-1]:g} in {number_of(len(right))}."
    found = with_evidence(loss, 0, text, evidence, condition="DiscriminatorCollapse")
    return [replace(found, confidence="possible")]


def _discriminator(segment: RunSegment) -> list[Incident]:
    """The loss of the discriminator is nothing for the last quarter of the log."""
    loss = finite_of(segment, _DISCRIMINATOR)
    if loss is None or len(loss) < FEWEST or loss.values.min() < 0:
        return []
    level = float(np.median(loss.values[: max(3, len(loss) // 5)]))
    start = _last_above(loss.values, NOTHING * level) + 1
    if level <= 0 or len(loss) - start < max(FEWEST // 2, LONG * len(loss)):
        return []
    text = (
        f"The loss of the discriminator ('{loss.name}') is below a hundredth of its first level ({level:.4g}) "
        f"from step {loss.steps[start]} to the end: it tells made samples from real ones without error, and "
        f"the generator learns nothing from it."
    )
    evidence = f"{number_of(len(loss) - start)}, {np.median(loss.values[start:]):.4g} in the middle."
    return [with_evidence(loss, start, text, evidence, condition="DiscriminatorCollapse")]


def _nothing_left(segment: RunSegment) -> list[Incident]:
    """The loss of the discriminator is exactly 0 in most records of an excerpt, and the generator is far from it."""
    loss, made = finite_of(segment, _DISCRIMINATOR), finite_of(segment, _MADE)
    if loss is None or made is None or len(loss) < SOME or len(made) < SOME or loss.values.min() < 0:
        return []
    zero = loss.values == 0
    if zero.mean() < MOSTLY or not zero[-1] or made.values.min() < AWAY:
        return []
    start = int(np.argmax(zero))
    text = (
        f"The loss of the discriminator ('{loss.name}') is exactly 0 in {int(zero.sum())} of {number_of(len(loss))}, "
        f"from step {loss.steps[start]} on, and that of the generator at least {made.values.min():.4g}: it tells made "
        f"samples from real ones without error, and the generator learns nothing from it."
        + how_sure(len(loss), "possible")
    )
    found = to_the_end(loss, start, text, condition="DiscriminatorCollapse", signal=loss.name)
    return [replace(found, confidence="possible")]


def _nothing_at_the_end(segment: RunSegment) -> list[Incident]:
    """The loss of the discriminator is nothing in the last third of a few records, and the generator is far from it;
    or it is exactly 0 in whole epochs."""
    loss, made = finite_of(segment, _DISCRIMINATOR), finite_of(segment, _MADE)
    if loss is None or not 0 < len(loss) < FEWEST or loss.values.min() < 0:
        return []
    last = max(len(loss) // 3, THIRD)
    away = made is not None and len(made) >= last and float(made.values[-last:].min()) >= AWAY
    few = len(loss) >= ENDS and away and float(loss.values[-last:].max()) <= LEFT < loss.values[0]  # a hinge is 0 often
    start = _last_above(loss.values, LEFT if few else 0.0) + 1
    epochs = segment.run.step_unit == "epoch" and len(loss) - start >= EPOCHS and float(loss.values[0]) >= BEGAN
    if not (few or epochs):
        return []
    beside = f", while that of the generator is {made.values[-1]:.4g}" if away and made is not None else ""
    worst = float(loss.values[start:].max())
    text = (
        f"The loss of the discriminator ('{loss.name}') is {f'at most {worst:.2g}' if worst else '0'} in the last "
        f"{number_of(len(loss) - start)}, from step {loss.steps[start]} on{beside}: it tells made samples from real "
        f"ones without error, and the generator learns nothing from it." + how_sure(len(loss), "possible")
    )
    found = to_the_end(loss, start, text, condition="DiscriminatorCollapse", signal=loss.name)
    return [replace(found, confidence="possible")]


def _both_are_nothing(segment: RunSegment) -> list[Incident]:
    """The losses of the discriminator for real and for made samples are nothing in the later half, and what the
    generator gets from it does not move."""
    real, fake, made = (finite_of(segment, name) for name in (_OF_REAL, _OF_FAKE, _AGAINST))
    if real is None or fake is None or made is None or len(real) < FEWEST or not len(real) == len(fake) == len(made):
        return []
    half = slice(int(HALF * len(real)), None)
    both, against = real.values[half] + fake.values[half], made.values[half]
    level = float(np.median(against))
    still = abs(level - SQUARE) <= FIXED and float(np.quantile(np.abs(against - level), MOSTLY)) <= FIXED
    if real.values.min() < 0 or fake.values.min() < 0 or float(np.quantile(both, MOSTLY)) > WON:
        return []
    if not (still or level >= AWAY):
        return []
    text = (
        f"The losses of the discriminator, '{real.name}' and '{fake.name}', are together at most {WON:g} in three "
        f"quarters of the later records ({np.median(both):.2g} in the middle), and '{made.name}' stays at {level:.4g}: "
        f"it tells made samples from real ones without error, and the generator learns nothing from it."
    )
    start = int(np.argmax(real.values + fake.values <= WON))
    return [to_the_end(real, start, text, condition="DiscriminatorCollapse", signal=real.name)]


def _certain(segment: RunSegment) -> list[Incident]:
    """The output of the discriminator is 1 for real samples and 0 for made ones in the last records."""
    made = finite_of(segment, _MADE)
    outputs = [next((c for c in segment.columns if name.match(c.name.lower())), None) for name in (_REAL, _FAKE)]
    real, fake = outputs
    if made is None or real is None or fake is None or min(map(len, (made, real, fake))) < IN_THE_LAST:
        return []
    right = np.minimum(real.values, 1 - fake.values) if len(real) == len(fake) else np.zeros(1)
    start = _last_below(right, 1 - CERTAIN) + 1
    if len(right) - start < IN_THE_LAST or made.values[-IN_THE_LAST:].min() < FAR:
        return []
    text = (
        f"The discriminator is certain in each of the last {number_of(len(right) - start)}: its output is "
        f"{real.values[-1]:g} for real samples and {fake.values[-1]:g} for made ones, and the loss of the generator "
        f"{made.values[-1]:.4g}, which learns nothing from it." + how_sure(len(right), "possible")
    )
    found = to_the_end(real, start, text, condition="DiscriminatorCollapse", signal=real.name)
    return [replace(found, confidence="possible")]


def _fooled(segment: RunSegment) -> list[Incident]:
    """The loss of the generator is exactly 0 while the discriminator is worse than guessing."""
    loss, made = finite_of(segment, _DISCRIMINATOR), finite_of(segment, _MADE)
    if loss is None or made is None or min(len(loss), len(made)) < TAKEN:
        return []
    if made.values.any() or loss.values.min() <= FOOLED:
        return []
    text = (
        f"The loss of the generator ('{made.name}') is exactly 0 in each of {number_of(len(made))}, and that of the "
        f"discriminator ('{loss.name}') at least {loss.values.min():.4g}, where guessing gives {FOOLED:.3g}: it "
        f"takes all made samples for real ones, and the generator learns nothing from it."
        + how_sure(len(loss), "possible")
    )
    found = to_the_end(loss, 0, text, condition="DiscriminatorCollapse", signal=loss.name)
    return [replace(found, confidence="possible")]


def _unbounded(segment: RunSegment) -> list[Incident]:
    """The last loss of a discriminator is beyond all measure."""
    loss = finite_of(segment, _DISCRIMINATOR)
    if loss is None or not len(loss) or abs(float(loss.values[-1])) < UNBOUNDED:
        return []
    start = _last_below(np.abs(loss.values), UNBOUNDED) + 1
    text = (
        f"The loss of the discriminator ('{loss.name}') is {loss.values[-1]:.4g} at step {loss.steps[-1]}: its output "
        f"has no bound, and grows." + how_sure(len(loss), "possible")
    )
    found = to_the_end(loss, start, text, condition="LossDivergence", signal=loss.name)
    return [replace(found, confidence="possible")]


def _last_below(values: Array, limit: float) -> int:
    """Index of the last value below a limit; -1 if there is none."""
    return _last_above(-values, -limit)


def _last_above(values: Array, limit: float) -> int:
    """Index of the last value above a limit; -1 if there is none."""
    above = np.flatnonzero(values > limit)
    return int(above[-1]) if len(above) else -1
