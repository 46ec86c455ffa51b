"""Causes in the sizes of what training begins with: inputs that are not scaled, gradients that are cut down."""

from __future__ import annotations

import math

from stabwatch.alerts import rates
from stabwatch.alerts.evidence import Evidence, Found, RootCause

SMALL_INPUT = 0.02
"""Pixels of 0 to 1 are at 0.3, those of 0 to 1 that are divided by 255 once more at 0.002."""
LEAST_SPREAD = 0.05
"""How far samples are apart, over the size of the input: pixels are at 0.5 and more, scaled columns at 1."""
ALL = 0.999
"""Of the samples of a batch, that equal its first one."""
REST, GROWN = 0.5, 1.5
"""Share of the loss that its cross-entropy is below, and the rest over all of the loss before: another term grows."""
ITSELF, MORE_THAN_A_GUESS = 10.0, 10.0
"""A cross-entropy so many times all of the loss before, and so high (a guess among 22,026 classes), grows itself."""
THROWN = 0.2
"""Of the weights in one update of the median layer: they are thrown away, and a penalty on them follows."""
CUT = 100.0
"""Gradient norm over the limit of clipping: far more than a usual gradient is cut."""
GREW = 20.0
"""Size of the input over its smallest one: pixels of 0 to 1 are at a third, those of 0 to 255 at 85."""
LARGE_INPUT = 30.0
"""Pixels of 0 to 255 are above it; numbers that were scaled to a deviation of 1 are far below."""


def _inputs_not_scaled(e: Evidence) -> Found | None:
    return _large_inputs(e) or _grown_inputs(e) or _small_inputs(e) or _inputs_hidden(e)


def _large_inputs(e: Evidence) -> Found | None:
    size = e.context.get("input_rms", 0.0)
    shown = e.of(
        "InitialLossTooHigh", "UpdateTooLarge", "UpdatesGrowAtFirst", "ActivationOutlierGrowth", "LossDivergence",
        "NonFinite",
        "NotLearning", "NoBetterThanMean", "OutputsConstant", "SaturatedFromStart", "InitialOutputsTooLarge",
    )  # fmt: skip
    first = e.memory.first_step
    if size < LARGE_INPUT or first is None or not shown or e.onset > first + e.recent:
        return None
    alert = min(shown, key=lambda a: a.onset)
    return Found(
        alert.onset,
        (
            f"The root mean square of the model's input is {size:.4g}; usual initialisations expect about 1.",
            f"Step {alert.step}: {alert.description}",
        ),
        confidence=0.7,
    )


def _grown_inputs(e: Evidence) -> Found | None:
    """The input has become many times as large as it was, and the loss has jumped or climbed since."""
    size, least = e.memory.context.get("input_rms", 0.0), e.memory.smallest_input
    alerts = e.of("LossSpike", "LossShift", "LossDivergence", "NonFinite", "OddBatches", "InputsGrow")
    if not alerts or size < max(LARGE_INPUT, GREW * least):
        return None
    alert = min(alerts, key=lambda a: a.onset)
    return Found(
        alert.onset,
        (
            f"The root mean square of the model's input was {least:.3g} and has become {size:.4g}.",
            f"Step {alert.step}: {alert.description}",
        ),
        confidence=0.8,
    )


def _small_inputs(e: Evidence) -> Found | None:
    size = e.context.get("input_rms", 1.0)
    if not 0 < size < SMALL_INPUT or not (alerts := e.of("NotLearning", "UpdatesTooSmall", "OutputsConstant")):
        return None
    return Found(
        alerts[0].onset,
        (
            f"The root mean square of the model's input is {size:.2g}; usual initialisations expect about 1.",
            f"Step {alerts[0].step}: {alerts[0].description}",
        ),
        confidence=0.7,
    )


def _inputs_hidden(e: Evidence) -> Found | None:
    spread = e.context.get("input_spread_ratio", 1.0)
    alerts = e.of("NotLearning", "NoBetterThanMean", "UpdatesTooSmall", "OutputsConstant")
    if not 0 < spread < LEAST_SPREAD or not alerts:
        return None
    return Found(
        alerts[0].onset,
        (
            f"Samples differ by {spread:.1%} of the size of the input: a large constant hides what tells them apart.",
            f"Step {alerts[0].step}: {alerts[0].description}",
        ),
        confidence=0.7,
    )


def _inputs_constant(e: Evidence) -> Found | None:
    """The samples of a batch have become all the same, and the loss has jumped or climbed since."""
    alerts = e.of("LossSpike", "LossShift", "LossDivergence", "VanishingOverDepth")
    if not alerts or e.of("InputsConstant") or not e.memory.context.get("input_alike_ratio", 0.0) > ALL:
        return None
    return Found(
        alerts[0].onset,
        (
            "All samples of a batch are the same by now: there is nothing to tell them apart by.",
            f"Step {alerts[0].step}: {alerts[0].description}",
        ),
        confidence=0.8,
    )


def _term_grows(e: Evidence) -> Found | None:
    """The loss has climbed, and most of it is not the cross-entropy that it is made of as well."""
    alerts, now = e.of("LossShift", "LossDivergence"), e.memory.context
    loss, tokens = now.get("loss", 0.0), now.get("token_loss", 0.0)
    if not alerts or e.of("TargetsRunAway", "LossWithoutBound", "NonFinite") or not 0 < tokens < REST * loss < math.inf:
        return None
    if any(peak.step <= alerts[0].step and peak.ratio >= THROWN for peak in e.memory.update_peaks):
        return None
    before = alerts[0].context.get("loss_at_onset", math.inf)
    if loss - tokens < GROWN * before or tokens > max(ITSELF * before, MORE_THAN_A_GUESS):
        return None
    return Found(
        alerts[0].onset,
        (
            f"The loss is {loss:.4g} by now, of which the cross-entropy is {tokens:.4g}: the rest is another term. "
            f"Before the onset all of the loss was {before:.4g}.",
            f"Step {alerts[0].step}: {alerts[0].description}",
        ),
        confidence=0.8,
    )


def _clipped_too_hard(e: Evidence) -> Found | None:
    limit, norm = (e.context.get(name, 0.0) for name in ("clip_limit", "gradient_norm_before_clip"))
    alerts = e.of("UpdatesTooSmall")
    if not alerts or not 0 < limit * CUT < norm:
        return None
    return Found(
        alerts[0].onset,
        (
            f"Gradients of a norm of {norm:.3g} are clipped to {limit:.3g}.",
            f"Step {alerts[0].step}: {alerts[0].description}",
        ),
        confidence=0.9,
    )


def _warm_up_too_long(e: Evidence) -> Found | None:
    alerts, rate = e.of("NotLearning", "UpdatesTooSmall", "NoBetterThanMean"), e.context.get("learning_rate")
    if not alerts or rate is None or not rates.climbs(e) or not rates.small_steps(e):
        return None
    step, first = e.memory.rate_at
    return Found(
        alerts[0].onset,
        (
            f"The learning rate still rises: from {first:.3g} at step {step} to {rate:.3g}. The largest update so far "
            f"changed the weights by {e.memory.update_peaks[-1].ratio:.2g} in the median layer; 0.001 is usual.",
            f"Step {alerts[0].step}: {alerts[0].description}",
        ),
        confidence=0.8,
    )


def _schedule_stands_still(e: Evidence) -> Found | None:
    alerts = e.of("NotLearning", "UpdatesTooSmall", "NoBetterThanMean", "LearningRateZero")
    base = rates.behind_schedule(e)
    if not alerts or base is None or not rates.stands_still(e):
        return None
    return Found(
        alerts[0].onset,
        (
            f"The learning rate has been {e.memory.context['learning_rate']:.3g} in each step. A schedule was made for "
            f"{base:.3g}, and has not changed it since: it is not stepped, or gives the same rate again.",
            f"Step {alerts[0].step}: {alerts[0].description}",
        ),
        confidence=0.9,
    )


OF_SIZES: tuple[RootCause, ...] = (
    RootCause(
        "InputsBecameAlike",
        "All samples of a batch have become the same",
        _inputs_constant,
        (
            "Print a batch: is it zero, or one sample many times? Look at what changed in the loader at that step.",
            "Look for a failed read, a mask or a scaling that covers all of the input.",
        ),
    ),
    RootCause(
        "InputsNotScaled",
        "The inputs are not scaled",
        _inputs_not_scaled,
        (
            "Scale the inputs: pixels by 255, columns of a table to mean 0 and deviation 1.",
            "Are mean and deviation those of the numbers as they are then (0 to 1, or 0 to 255)?",
            "Or put a normalisation in front of the first layer.",
            "Do they grow from epoch to epoch? Then the data set writes into what it keeps: copy a sample first.",
        ),
        ("LeCun et al. 1998, Efficient BackProp",),
    ),
    RootCause(
        "LossTermGrows",
        "Another term of the loss grows",
        _term_grows,
        (
            "Log each term of the loss by itself, and find the one that grows.",
            "Does its weight grow by a schedule? Does what it compares with run away (a copy, a running mean)?",
        ),
    ),
    RootCause(
        "WarmUpTooLong",
        "The warm-up of the learning rate is too long",
        _warm_up_too_long,
        (
            "Does the warm-up end within the run? Some hundred steps, or a few per cent of the run, are usual.",
            "Are its steps counted in batches where epochs are meant, or in micro-batches?",
        ),
    ),
    RootCause(
        "ScheduleStandsStill",
        "The schedule of the learning rate stands still",
        _schedule_stands_still,
        (
            "Call `scheduler.step()` after each `optimizer.step()`; Lightning does not with manual optimisation.",
            "If it is stepped once an epoch: count its warm-up in epochs.",
            "If it is stepped, print its factor: a division of whole numbers gives 0 until the warm-up is over.",
        ),
    ),
    RootCause(
        "ClippedTooHard",
        "Gradients are clipped far below their usual norm",
        _clipped_too_hard,
        (
            "Clip at the usual gradient norm (1 is common), not far below it: what is cut off is not learned from.",
            "Is the limit a learning rate, or a tolerance, by mistake?",
        ),
    ),
)
"""In the order in which they are reported."""
