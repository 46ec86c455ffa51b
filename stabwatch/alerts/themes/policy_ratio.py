"""How far a policy is from its reference, from the policy before the update, and from the sampler; advantages."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from stabwatch.alerts.features import WINDOW, DerivedSignal, Feature
from stabwatch.alerts.role_features import EVIDENCE, RoleFeature, own_roles
from stabwatch.alerts.roles import PLACES
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array, median

LAST = 3
"""Points whose median is compared with those before."""
RECENT = 16
"""Points within which a divergence explodes."""
LEAST = 32
"""Fewest points before those."""
NEGATIVE = 16
"""Points in a row of which the largest counts: an estimate of a divergence may be negative now and then."""
_SCHULMAN = "Schulman 2020, Approximating KL divergence"
_OFF_POLICY = "Yao et al. 2025, Your efficient RL framework secretly brings you off-policy RL training"


class DivergenceFeature(RoleFeature):
    """The divergence of a policy from its reference against its own past; and whether it is negative for long.

    A divergence grows from zero, in health too: the last points are compared with the largest one that is sixteen
    points old and more.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "reference_kl_growth_ratio",
            f"Divergence from the reference over its largest value until {RECENT} points before.",
            "ratio",
            "run",
        ),
        DerivedSignal("reference_kl_largest", f"The largest of its last {NEGATIVE} values.", "nat", "run"),
    )

    def __init__(self) -> None:
        super().__init__("reference_kl", "reference_kl", *EVIDENCE)

    def _begin(self) -> None:
        self._past: deque[float] = deque(maxlen=WINDOW + RECENT)

    def _observe(self, values: Array) -> dict[str, float] | None:
        of_a_policy, kl = self._of_a_policy(values), self._number(values)
        if math.isnan(kl):
            return None
        self._past.append(kl)
        past = np.array(self._past)
        now, growth, before = median(past[-LAST:]), math.nan, math.nan
        if of_a_policy and len(past) >= LEAST + RECENT:
            before = float(past[:-RECENT].max())
            growth = now / max(before, 1e-6)
        largest = float(past[-NEGATIVE:].max()) if of_a_policy and len(past) >= NEGATIVE else math.nan
        return {self.gauges[0].name: growth, self.gauges[1].name: largest, "kl": now, "kl_before": before}

    measures = own_roles


class LimitsFeature(RoleFeature):
    """Several quantities, each over its limit: the largest of these ratios.

    limits: by role, a number over which it is too large, or what makes such a ratio of it.
    """

    def __init__(self, name: str, help: str, limits: Mapping[str, Callable[[float], float]]) -> None:
        self.gauges = (DerivedSignal(name, help, "ratio", "run"),)
        self._limits = limits
        super().__init__(name, *limits)

    def _observe(self, values: Array) -> dict[str, float] | None:
        found = [(limit(x), x, role) for role, limit in self._limits.items() if (x := self._finite(values, role)) == x]
        if not found:
            return None
        ratio, value, role = max(found)
        return {self.gauges[0].name: ratio, "value": value, "which": float(PLACES[role])}

    def _finite(self, values: Array, role: str) -> float:
        """Infinity stays: a ratio without bound is beyond its limit."""
        return self._roles.of(role, values)

    measures = own_roles


def _over(limit: float) -> Callable[[float], float]:
    return lambda x: x / limit


def _absolute_over(limit: float) -> Callable[[float], float]:
    return lambda x: abs(x) / limit


def _under(limit: float) -> Callable[[float], float]:
    return lambda x: limit / max(x, 1e-9)


class AdvantageFeature(RoleFeature):
    """The largest advantage against the median of its past."""

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal(
            "advantage_to_median_ratio", f"Largest advantage over the median of {WINDOW} points.", "ratio", "run"
        ),
    )

    def __init__(self) -> None:
        super().__init__("advantage_max", "advantage_max")

    def _begin(self) -> None:
        self._past: deque[float] = deque(maxlen=WINDOW)

    def _observe(self, values: Array) -> dict[str, float] | None:
        largest = self._number(values)
        if math.isnan(largest):
            return None
        before = median(np.array(self._past)) if len(self._past) >= LAST + 1 else math.nan
        self._past.append(largest)
        ratio = largest / before if before > 0 else math.nan
        return {self.gauges[0].name: ratio, "advantage": largest, "before": before}

    measures = own_roles


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        DivergenceFeature(),
        LimitsFeature(
            "importance_ratio_excess",
            "The furthest of importance ratios, clipping and divergence from the old policy, over its limit.",
            {"ratio_max": _over(100.0), "effective_samples": _under(0.1), "clip_fraction": _over(0.6),
             "old_kl": _absolute_over(0.5)},
        ),
        LimitsFeature(
            "rollout_mismatch_excess",
            "The furthest of the differences between trainer and sampler, over its limit.",
            {"rollout_logp": _over(0.2), "rollout_probability": _over(0.05), "rollout_kl": _absolute_over(0.1),
             "rollout_correlation": lambda x: (1 - x) / 0.1},
        ),
        AdvantageFeature(),
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    Rule(
        name="KLRunaway",
        title="The policy runs away from its reference",
        family="reference_kl",
        summary="The divergence of the policy from its reference has exploded.",
        description="The divergence ('{signal}') is {kl:.3g}; before, it was at most {kl_before:.3g}.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("reference_kl_growth_ratio", above=10.0),
                    Condition("reference_kl_largest", above=0.5),
                ),
                for_points=2,
            ),
        ),
        abnormal=(Condition("reference_kl_growth_ratio", above=4.0), Condition("reference_kl_largest", above=0.5)),
        source="ten times what it was at most until sixteen points before, in the median of three, and half a nat",
        remedy=(
            "Go back to a checkpoint before the rise; lower the learning rate or raise the weight of the divergence.",
            "Check the sign of the divergence in the loss: with the wrong one the policy is paid for leaving.",
        ),
        references=(_SCHULMAN,),
    ),
    Rule(
        name="NegativeDivergence",
        title="A divergence is negative",
        family="reference_kl",
        summary="The divergence from the reference is negative for long, which no divergence is.",
        description=f"The divergence ('{{signal}}') is {{kl:.3g}}; the largest of {NEGATIVE} in a row is "
        "{reference_kl_largest:.3g}.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("reference_kl_largest", below=-0.01),), for_points=2),
        ),
        abnormal=(Condition("reference_kl_largest", below=0.0),),
        source="sixteen negative ones in a row: what samples of the policy itself estimate is positive on average",
        remedy=(
            "Are the samples those of the policy? Check temperature, top-p, padding and mask.",
            "Check the order of the two log-probabilities: policy minus reference.",
        ),
        references=(_SCHULMAN,),
    ),
    Rule(
        name="ImportanceRatioExtreme",
        title="The samples are not those of the policy any more",
        family="importance_ratio_excess",
        summary="The policy has moved so far from the one that made the samples that they say little about it.",
        description="{which} is {value:.4g}, {importance_ratio_excess:.3g} times its limit.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("importance_ratio_excess", above=1.0),), for_points=3),
        ),
        abnormal=(Condition("importance_ratio_excess", above=0.7),),
        source="a ratio of 100, a tenth of the samples that count, six in ten clipped, or half a nat: usual steps stay "
        "at a ratio of 2, at 0.9, at 0.3 and at 0.05",
        remedy=(
            "Lower the learning rate, the number of epochs per batch, or stop an update at a divergence of 0.02.",
            "Check that old and new log-probabilities are of the same tokens, mask and temperature.",
        ),
        references=(_SCHULMAN,),
    ),
    Rule(
        name="RolloutMismatch",
        title="Trainer and sampler disagree",
        family="rollout_mismatch_excess",
        summary="The sampler's probabilities are not those of the trainer: training is off-policy unsaid.",
        description="{which} of trainer and sampler is {value:.4g}, {rollout_mismatch_excess:.3g} times its limit.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("rollout_mismatch_excess", above=1.0),), for_points=3),
        ),
        abnormal=(Condition("rollout_mismatch_excess", above=0.5),),
        source="0.2 nat, 0.05 in probability, a divergence of 0.1 or a correlation of 0.9: ten times what bfloat16 and "
        "four times what FP8 engines show",
        remedy=(
            "Are the sampler's weights those of the trainer? Check the transfer, and adapters that are not merged.",
            "Use the same format, temperature, top-p and chat template on both sides.",
            "Weight samples by the ratio of trainer and sampler, cut off at 2.",
        ),
        references=(_OFF_POLICY,),
    ),
    Rule(
        name="AdvantageOutlier",
        title="One advantage is many times all others",
        family="advantage_max",
        summary="An advantage is many times the usual ones: one sample decides the step.",
        description="The largest advantage ('{signal}') is {advantage:.4g}, {advantage_to_median_ratio:.3g} times its "
        "median before.",
        thresholds=(Threshold(severity="warning", when=(Condition("advantage_to_median_ratio", above=10.0),)),),
        abnormal=(Condition("advantage_to_median_ratio", above=4.0),),
        warm_up=8,
        source="ten times the median before; normalised advantages are at most the root of the size of a group",
        remedy=(
            "Add a floor to the deviation by which rewards are divided (1e-4), or leave groups without spread out.",
            "Clip advantages.",
        ),
    ),
)
