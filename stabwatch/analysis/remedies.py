"""What to do about a finding that nothing live stands for, and what stands for the others."""

from __future__ import annotations

from dataclasses import dataclass

from stabwatch.analysis.findings import Kind

RULES: dict[Kind, str] = {
    "loss_spike": "LossSpike",
    "divergence": "LossDivergence",
    "nonfinite": "NonFinite",
    "gradient_explosion": "GradientNormExplosion",
    "loss_scale_collapse": "MixedPrecisionOverflow",
    "learning_rate_jump": "LearningRateSpike",
    "error": "TrainingStopped",
}
"""The rule or root cause, and with it the runbook, that says the same of a run that is watched."""


@dataclass(frozen=True)
class Remedy:
    """A title for a cause, and what to do."""

    title: str
    advice: tuple[str, ...]


_REMEDIES: dict[Kind, Remedy] = {
    "level_shift": Remedy(
        "A loss that moved to a higher level",
        (
            "Look at what changed at that step: the data, the batch size, the learning rate, the loss itself.",
            "If nothing was meant to change: resume from a checkpoint before it, past the batches of that step.",
        ),
    ),
    "not_learning": Remedy(
        "Nothing is being learned",
        (
            "Check that gradients reach the parameters: requires_grad, a detached loss, frozen layers, a skipped step.",
            "Check that the optimizer holds the parameters of this model, and that its learning rate is not 0.",
            "Try to overfit one batch: a sound set-up does so in some hundred steps.",
        ),
    ),
    "plateau": Remedy(
        "A plateau above what was reached before",
        ("Go back to the checkpoint of the best loss; the restart did not find its way back.",),
    ),
    "reinitialisation": Remedy(
        "Training started from scratch",
        (
            "Look for what builds the model anew at that step: a checkpoint that was not found, a stage that resets.",
            "Resume from the last checkpoint before it.",
        ),
    ),
    "too_good": Remedy(
        "A loss too good to be true",
        (
            "Check the labels of one batch: all masked (-100), or equal to the input?",
            "Check the loss itself: a mean over nothing, a wrong shift, a constant target.",
        ),
    ),
    "slowdown": Remedy(
        "Steps have become slower",
        ("Look at the loading of data, the network and the clocks of the accelerators from that step on.",),
    ),
}


def remedies(kind: Kind) -> Remedy:
    """What to do; an empty one for what needs nothing."""
    return _REMEDIES.get(kind, Remedy(kind.replace("_", " ").capitalize(), ()))
