"""The order of calls in the loop: clipping after the step, and losses and gradients with and without the loss scale."""

from __future__ import annotations

from stabwatch.alerts.features import Feature, PlainFeature
from stabwatch.alerts.references import MIXED
from stabwatch.alerts.rule import Condition, Rule, Threshold

HOLD = 4
"""Points for which the loop must do so."""


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (PlainFeature("clip_late_ratio"), PlainFeature("scaled_step_ratio"), PlainFeature("loss_terms_unscaled"))


def _rule(name: str, title: str, gauge: str, summary: str, description: str, source: str, *remedy: str) -> Rule:
    when = (Condition(gauge, above=0.5),)
    return Rule(
        name=name,
        title=title,
        family=gauge,
        summary=summary,
        description=description,
        thresholds=(Threshold(severity="warning", when=when, for_points=HOLD),),
        abnormal=when,
        source=source,
        remedy=remedy,
        references=(MIXED,) if "scaled" in gauge else (),
        fact=True,
    )


RULES: tuple[Rule, ...] = (
    _rule(
        "ClipAfterStep",
        "Gradients are clipped after the step",
        "clip_late_ratio",
        "Gradients are clipped after the optimizer has used them: no step is limited.",
        "Gradients were clipped after the optimizer's step and before the next backward pass.",
        "each clipping of four steps; a call with an infinite limit asks for the norm, and does not count",
        "Call `clip_grad_norm_` (or `clip_grad_value_`) between `backward` and `step`.",
    ),
    _rule(
        "GradientsNotUnscaled",
        "Steps with gradients that are multiplied by the loss scale",
        "scaled_step_ratio",
        "The loss is scaled, and the optimizer steps without the scaler: each step is as many times too large.",
        "The loss was multiplied by a gradient scaler, and `optimizer.step` was called without `scaler.step` or "
        "`scaler.unscale_`.",
        "four steps; Adam and its kind divide by the size of the gradient, so they do not count",
        "Call `scaler.step(optimizer)` and `scaler.update()` in place of `optimizer.step()`.",
        "Without float16 no scaler is needed: leave out `scaler.scale`.",
    ),
    _rule(
        "LossTermNotScaled",
        "One of several losses is not scaled",
        "loss_terms_unscaled",
        "Some losses of a step are multiplied by the gradient scaler and others are not: gradients of the others are "
        "divided to nothing.",
        "The step has several backward passes. A gradient scaler has scaled the losses of some, and not of all, and "
        "divides all gradients by its scale.",
        "four steps, of one optimizer; passes whose gradients were set to zero before the step do not count",
        "Call `scaler.scale(loss).backward()` for each loss, or once for their sum.",
        "If a loss is multiplied by `scaler.get_scale()` by hand, mute this rule.",
    ),
)
