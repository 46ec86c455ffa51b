"""The end of the run itself, and what keeps it from going on."""

from __future__ import annotations

from stabwatch.alerts.features import Feature
from stabwatch.alerts.rule import Rule


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return ()


RULES: tuple[Rule, ...] = (
    Rule(
        name="OptimizerNeverSteps",
        title="No optimizer steps the model",
        family="unstepped",
        summary="Gradients are computed again and again, and no optimizer steps the parameters: nothing is learned.",
        description="{what}",
        source="64 training forwards and backward passes without a step, up to the end of the run; or, after steps, a "
        "quarter of all and sixteen times those of a usual step, in training mode",
        remedy=(
            "Call `optimizer.step()` after `backward`.",
            "Is it called under a condition that has become false (a bound for the gradient, a counter)?",
            "Was the model made again, copied or moved after the optimizer was made? Make the optimizer last.",
            "With accumulation: is the number of micro-batches that a step waits for larger than an epoch, and does "
            "each epoch count from zero?",
        ),
        fact=True,
    ),
    Rule(
        name="RankHoldsUp",
        title="A rank holds up the job",
        family="held_up",
        summary="The job does not go on: ranks wait for each other, or one has raised an error.",
        description="{what}",
        source="a step of more than 20 median steps, 30 s, and twice the longest earlier pause, while some ranks wait "
        "in a collective and others do not; a checkpoint, an evaluation or a compilation may take half an hour",
        remedy=(
            "Look at the line of code in which that rank is; its stack is in the folder `stacks` of the run.",
            "A rank that gives no sign: look for the out-of-memory killer, a stopped process, a node that is lost.",
            "A rank that raised an error is the cause: the errors of the other ranks follow from it.",
        ),
    ),
    Rule(
        name="TrainingStopped",
        title="Training stopped",
        family="run",
        summary="Training stopped without finishing, or has stalled.",
        description="{what}",
        source="the end event; or no record for 20 median steps, 60 s, and twice the longest earlier pause",
        remedy=(
            "Check the end of the training's own output: out of memory, a lost node, a killed job?",
            "First check which other alerts fired before the end; then resume from the last good checkpoint.",
        ),
    ),
)
