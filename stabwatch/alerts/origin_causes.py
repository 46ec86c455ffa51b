"""Causes of values that are not finite, by the place where the first of them was made."""

from __future__ import annotations

from collections.abc import Callable

from stabwatch.alerts.evidence import Evidence, Found, RootCause
from stabwatch.alerts.origins import Origin


def found(e: Evidence, origin: Origin) -> Found:
    """What an origin shows. It does not lead where something else left its range before, or made numbers grow."""
    leads = origin.since <= e.onset + 1 and not origin.grown
    lines = (origin.sentence, origin.rank_sentence, origin.loss_sentence, *origin.batches)
    return Found(origin.since, tuple(filter(None, lines)), origin.layers, confidence=0.9, leads=leads)


def _where(*places: str, when: Callable[[Origin], bool] = lambda o: True) -> Callable[[Evidence], Found | None]:
    """A root cause of the first origin, if its place is one of these."""

    def find(e: Evidence) -> Found | None:
        origin = e.first_origin
        return None if origin is None or origin.place not in places or not when(origin) else found(e, origin)

    return find


def _empty(origin: Origin) -> bool:
    return origin.facts.get("targets") == 0


def _no_epsilon(origin: Origin) -> bool:
    return "epsilon" in origin.facts


CERTAIN: tuple[RootCause, ...] = (
    RootCause(
        "EmptyTargets",
        "No target of a batch counts",
        _where("loss", "forward", "unknown", when=_empty),
        (
            "Leave such batches out, or divide by `max(1, number of targets)`.",
            "Find why all targets are the ignored label: prompts longer than the cut, an empty mask, a wrong shift.",
        ),
    ),
    RootCause(
        "AdamEpsilonUnderflow",
        "The optimizer's epsilon is zero in the type of the weights",
        _where("update", when=_no_epsilon),
        (
            "Keep the weights in float32 and use autocast, or set an epsilon that the type can hold (float16: 1e-4).",
            "Resume from before this step.",
        ),
        ("Micikevicius et al. 2017, Mixed Precision Training, arXiv:1710.03740",),
    ),
    RootCause(
        "NonFiniteUpdate",
        "The optimizer made a value that is not finite, from finite gradients",
        _where("update", when=lambda origin: not _no_epsilon(origin)),
        (
            "Look for a division by a norm, or by a second moment, that can be 0; add an epsilon to it.",
            "Check what else writes into these weights between steps through `.data`.",
            "Resume from before this step.",
        ),
    ),
    RootCause(
        "NonFiniteBuffer",
        "A running statistic is not finite",
        _where("buffer"),
        (
            "Find the batch with NaN or infinity: it also counts in a forward that is not trained on.",
            "Reset the statistics (`reset_running_stats`) and let them settle again, or go back to a checkpoint.",
        ),
    ),
    RootCause(
        "NonFiniteWeights",
        "Weights were not finite before the forward pass",
        _where("weights"),
        (
            "Before the first step: check the initialisation, or the checkpoint that was loaded.",
            "Later: find what wrote into these weights after the step (a loaded checkpoint, an average, pruning); if "
            "nothing did, suspect the device.",
        ),
    ),
)
"""Causes that leave no doubt."""
MADE_IN_A_PASS: tuple[RootCause, ...] = (
    RootCause(
        "NonFiniteForward",
        "A value that is not finite was made in the forward pass",
        _where("forward", when=lambda origin: not _empty(origin)),
        (
            "Look into the named module, and what is computed just before it: a division by 0, log or sqrt of a number "
            "that is not positive, exp of a large one, a softmax over a row that is masked everywhere.",
            "Resume from before this step, and skip or repair the batch.",
        ),
    ),
    RootCause(
        "NonFiniteLoss",
        "A value that is not finite was made in the loss, or given to it",
        _where("loss", when=lambda origin: not _empty(origin)),
        (
            "Look into the loss: log of 0 (use `log_softmax`), a mean over nothing, 0 / 0 in a weight or a standard "
            "deviation, a target that the loss is not defined for.",
            "Check the batch of that step; resume from before it.",
        ),
    ),
    RootCause(
        "NonFiniteBackward",
        "A value that is not finite was made in the backward pass",
        _where("gradient"),
        (
            "Look for a function whose value is finite and whose slope is not: sqrt, norm or a power at 0, `where` "
            "around such a function. Add an epsilon inside of it.",
            "`torch.autograd.set_detect_anomaly(True)` names the operation, if the step is repeated.",
            "Resume from before this step: the weights of the named layers are lost.",
        ),
    ),
)
"""Causes behind which there may be another one: numbers that grew."""
