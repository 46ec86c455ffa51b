"""Loss spikes, level shifts, divergence, and a loss that rises during warm-up."""

from __future__ import annotations

from stabwatch.alerts.features import Feature
from stabwatch.alerts.loss_feature import SHIFT, LossFeature
from stabwatch.alerts.references import PALM, PROXIES
from stabwatch.alerts.rule import Condition, Rule, Threshold


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (LossFeature(),)


COMPARABLE = Condition("loss_comparable", above=0.5)
UNEXPLAINED = Condition("loss_data_changed", below=0.5)
RULES: tuple[Rule, ...] = (
    Rule(
        name="LossSpike",
        title="Loss spike",
        family="loss",
        summary="The loss has spiked.",
        description="The loss is {loss:.4g}: {loss_to_median_ratio:.3g} times its recent median, "
        "at a robust z-score of {loss_robust_z:.3g}.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("loss_robust_z", above=5.0),
                    Condition("loss_to_median_ratio", above=1.3),
                    Condition("loss_rise_ratio", above=0.2),
                    COMPARABLE,
                    UNEXPLAINED,
                ),
                for_points=3,
            ),
        ),
        abnormal=(Condition("loss_robust_z", above=4.0),),
        warm_up=24,
        source="a robust form of the 6 sigma of OLMo's SpikeScore, at three points in a row (KillLossSpike: five), of "
        "a fifth of what was learned: a loss that is zero at most steps scatters far above its median",
        remedy=(
            "If the loss recovers within a few hundred steps, continue. If spikes return, lower the learning rate.",
            "If it does not recover, resume from a checkpoint before the onset and skip the batches of these steps.",
        ),
        references=(PALM,),
    ),
    Rule(
        name="LossShift",
        title="Loss level shift",
        family="loss",
        summary="The loss has jumped to a higher level and stays there.",
        description="The median of the last 8 losses is {loss_shift_ratio:.3g} times that of the 64 before. In "
        "{loss_shift_exceedance_ratio:.0%} of all pairs the later loss is higher.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(*SHIFT, Condition("loss_won_back_ratio", below=0.3), COMPARABLE, UNEXPLAINED),
                for_points=3,
            ),
        ),
        abnormal=(Condition("loss_shift_exceedance_ratio", above=0.75), Condition("loss_shift_ratio", above=1.1)),
        warm_up=40,
        source="nearly each of eight losses exceeds nearly all of the 64 before, at three points in a row; no "
        "healthy run "
        "of half A reaches 0.9 with a median a tenth higher (docs/detection.md); a new task wins back a third of the "
        "rise within ten losses",
        remedy=(
            "Check the batches since the onset, and what changed there: data, learning rate, a loss weight.",
            "If the change was intended, announce it with `watch.announce`; then this alert does not fire.",
        ),
        references=(PALM,),
    ),
    Rule(
        name="LossRisesWithRate",
        title="Loss rise during warm-up",
        family="loss",
        summary="The loss rises while the learning rate rises.",
        description="The last losses exceed the best ones in {loss_best_exceedance_ratio:.0%} of all pairs. The "
        "learning "
        "rate is {learning_rate_rise_ratio:.3g} times its largest value until then.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("warm_up_loss_rise_score", above=0.2),
                    Condition("learning_rate_rise_ratio", above=1.25),
                    Condition("loss_best_exceedance_ratio", above=0.6),
                    Condition("loss_regression_ratio", above=0.1),
                    COMPARABLE,
                ),
                for_points=8,
            ),
        ),
        abnormal=(Condition("loss_best_exceedance_ratio", above=0.6), Condition("warm_up_loss_rise_score", above=0.0)),
        warm_up=64,
        source="a score of 0.2 is an exceedance of 0.8 (a shift of 1.2 standard deviations) at 1.26 times the rate, "
        "or of 0.6 at twice the rate; in addition a tenth of the progress is lost (docs/detection.md)",
        remedy=(
            "End the warm-up here: return to where the loss was best, and keep the learning rate of that step.",
            "When a finished run is warmed up again, some rise is usual; check that it ends.",
        ),
        references=(PROXIES,),
    ),
    Rule(
        name="LossDivergence",
        title="Loss divergence",
        family="loss",
        summary="The loss has diverged.",
        description="The loss is {loss:.4g}. Its best value was {loss_best:.4g}, its first {loss_first:.4g}.",
        thresholds=(
            Threshold(
                severity="critical",
                when=(
                    Condition("loss_regression_ratio", above=0.5),
                    Condition("loss_falling_ratio", below=0.1),
                    UNEXPLAINED,
                ),
                for_points=24,
            ),
        ),
        abnormal=(Condition("loss_regression_ratio", above=0.25),),
        warm_up=40,
        source="half of the progress is lost, or the loss is 1.5 times its best, in the median of 16 points, for "
        "longer than a spike stays in that median; where losses are not comparable (a policy, a value), it is ten "
        "thousand times its usual size, and the gradient a hundred times; "
        "a new task wins back a tenth and more of the way within 24 losses",
        remedy=(
            "Stop. Resume from a checkpoint before the onset, with a lower learning rate or without the bad batches.",
        ),
        references=(PROXIES,),
    ),
)
