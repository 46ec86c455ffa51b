"""Causes of replicas that differ."""

from __future__ import annotations

from collections.abc import Sequence

from stabwatch.alerts.evidence import Evidence, Found, RootCause
from stabwatch.alerts.rule import Alert
from stabwatch.alerts.templates import format_rank

FIRST_COMPARISONS = 2
"""The first one may be of the weights before the first step, which are still equal."""


def _first_apart(e: Evidence) -> list[Alert]:
    """The alerts of the step at which replicas were first seen to differ, if nothing came long before."""
    apart = [a for a in e.of("ReplicasDiffer") if a.onset <= e.onset + e.together]
    step = min((a.step for a in apart), default=0)
    return [a for a in apart if a.step == step]


def _step_alone(alerts: Sequence[Alert]) -> bool:
    """Does each rank step on its own, as it seems?"""
    return any(a.context.get("replica_difference_rank", -1.0) < -1.5 for a in alerts)


def _layers(alerts: Sequence[Alert]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(a.layer for a in alerts))


def replicas_differ(e: Evidence) -> bool:
    """Did replicas differ before anything else?"""
    return bool(_first_apart(e))


def _never_averaged(e: Evidence) -> Found | None:
    """Layers differ from the first comparison on that they can differ in: all of them, or those that are left out."""
    first = _first_apart(e)
    layers = _layers(first)
    compared = max((a.context.get("layers_compared", 0.0) for a in first), default=0.0)
    from_the_start = all(a.context.get("points", 3.0) <= FIRST_COMPARISONS for a in first)
    if not layers or not (from_the_start or _step_alone(first)):
        return None
    differ = "differs" if len(layers) == 1 else "differ"
    since = ", since the first steps in which they were compared" if from_the_start else ", and were equal before"
    return Found(
        first[0].step,
        (
            f"Step {first[0].step}: {len(layers)} of {compared:.0f} layers {differ} between ranks{since}.",
            f"A fault of one device would begin in one layer{', at some later step' if from_the_start else ''}.",
        ),
        layers,
        confidence=0.9,
    )


def _one_rank(e: Evidence) -> Found | None:
    first = _first_apart(e)
    if not first or _never_averaged(e):
        return None
    rank = format_rank(first[0].context.get("replica_difference_rank", -1))
    layers = _layers(first)
    where = f"{len(layers)} layers" if len(layers) > 1 else layers[0]
    return Found(
        first[0].step,
        (
            f"Step {first[0].step}: {first[0].description}",
            f"{rank.capitalize()} was the first to differ, in {where}.",
        ),
        layers,
        confidence=0.95,
    )


ROOT_CAUSES: tuple[RootCause, ...] = (
    RootCause(
        "GradientsNotAveraged",
        "Ranks train apart: their gradients are not averaged",
        _never_averaged,
        (
            "Call the DistributedDataParallel object in the forward, and not its `.module`: only its own forward "
            "prepares the reduction of gradients.",
            "Averaging by hand: reduce the gradients of all parameters after the backward and before the step. Without "
            "that, start all ranks from equal weights too.",
            "Is `no_sync()` left before the last micro-batch? If ranks are meant to train apart, mute ReplicasDiffer. "
            "Averages of weights (local SGD) are known once they are seen.",
        ),
    ),
    RootCause(
        "RankFault",
        "One rank differs from the others: a hardware fault, or a rank that missed an update",
        _one_rank,
        (
            "Remove the device of that rank and run its diagnostics. Resume all ranks from before this step.",
            "Later checkpoints are damaged if that rank wrote them, or once gradients were exchanged.",
        ),
        ("Dixit et al. 2021, Silent Data Corruptions at Scale, arXiv:2102.11245",),
    ),
)
"""In the order in which they are reported."""
