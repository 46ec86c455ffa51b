"""What a training loop logs of a policy or of a quality: entropy, reward, accuracy, groups without spread, truncation.

The sign and the size of a policy's loss mean nothing: these rules do not read it.
"""

from __future__ import annotations

import math

from stabwatch.alerts.features import DerivedSignal, Feature
from stabwatch.alerts.role_features import EVIDENCE, Curve, Gain, RoleFeature, own_roles
from stabwatch.alerts.rule import Condition, Rule, Threshold
from stabwatch.alerts.statistics import Array

SETTLED = 0.05
"""Scatter of a reward, over what it gained, below which all samples succeed."""
_ENTROPY_PAPER = "Cui et al. 2025, The Entropy Mechanism of Reinforcement Learning, arXiv:2505.22617"


class EntropyFeature(RoleFeature):
    """The entropy of a policy over its first level.

    Only a positive entropy is judged: that of a continuous policy has no floor at zero and passes it in health. flat:
    the slope of the last quarter over that of the whole curve; a line has 1, and a curve that nears its floor less.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("entropy_to_first_ratio", "Entropy of a policy over its first level.", "ratio", "run"),
        DerivedSignal("entropy_rise", "Entropy of a policy minus its first level.", "nat", "run"),
        DerivedSignal(
            "entropy_slope_ratio", "Fall of the entropy in the last quarter over that of an even fall.", "ratio", "run"
        ),
        DerivedSignal(
            "reward_scatter_ratio",
            "Scatter of the last rewards over the range of the reward; small where all samples succeed.",
            "ratio",
            "run",
        ),
        DerivedSignal("reward_known", "Whether a reward is logged beside the entropy: 1, or 0.", "1", "run"),
    )

    def __init__(self) -> None:
        super().__init__("policy_entropy", "entropy", "continuous", *EVIDENCE)

    def _begin(self) -> None:
        self._curve, self._reward = Curve(), Gain()
        self._sign = 0.0
        self._discrete = True

    def _observe(self, values: Array) -> dict[str, float] | None:
        reward = self._number(values, "reward")
        if not math.isnan(reward):
            self._reward.push(reward)
        if not math.isnan(self._number(values, "continuous")):
            self._discrete = False
        of_a_policy = self._of_a_policy(values)
        entropy = self._number(values)
        if math.isnan(entropy):
            return None
        if not self._sign:  # Stable-Baselines3 logs minus the entropy as `entropy_loss`
            self._sign = -1.0 if entropy < 0 and self.signal.endswith("loss") else 1.0
        entropy *= self._sign
        self._discrete &= entropy >= 0
        self._curve.push(entropy)
        first, now, quarter = self._curve.first, self._curve.now, self._curve.at(0.75)
        judged = of_a_policy and self._discrete and first > 0 and not math.isnan(quarter)
        even = (first - now) / 4
        numbers = (
            now / first if judged else math.nan,
            now - first,
            (quarter - now) / even if even > 0 else math.nan,
            self._reward.unsettled,
            float(self._roles.has("reward")),
        )
        return dict(zip((g.name for g in self.gauges), numbers, strict=True)) | {"entropy": entropy}

    measures = own_roles


class QualityFeature(RoleFeature):
    """A reward or an accuracy: the share of what it had gained that is lost; of its first level, if it never gained."""

    def __init__(self, role: str) -> None:
        self.gauges = (
            DerivedSignal(
                f"{role}_lost_ratio",
                f"Share of what the logged {role} had gained that is lost; of its first level, if it never gained.",
                "ratio",
                "run",
            ),
        )
        super().__init__(f"logged_{role}", role)

    def _begin(self) -> None:
        self._gain = Gain()

    def _observe(self, values: Array) -> dict[str, float] | None:
        quality = self._number(values)
        if math.isnan(quality):
            return None
        self._gain.push(quality)
        return {
            self.gauges[0].name: min(self._gain.lost or self._gain.fallen, 1.0),
            "now": self._gain.now,
            "best": self._gain.best,
        }

    measures = own_roles


class GroupsFeature(RoleFeature):
    """Groups of samples whose rewards are all equal, and how much of its gain the reward has.

    Where no reward is logged, groups that had spread at first are taken for learned ones.
    """

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("dead_groups_ratio", "Share of groups without spread, median of eight.", "ratio", "run"),
        DerivedSignal("reward_reached_ratio", "Share of what the reward had gained that is there.", "ratio", "run"),
    )

    def __init__(self) -> None:
        super().__init__("dead_groups", "dead_groups", "reward")

    def _begin(self) -> None:
        self._curve, self._reward = Curve(), Gain()

    def _observe(self, values: Array) -> dict[str, float] | None:
        reward = self._number(values, "reward")
        if not math.isnan(reward):
            self._reward.push(reward)
        dead = self._number(values)
        if math.isnan(dead):
            return None
        self._curve.push(dead)
        reached = self._reward.reached if self._roles.has("reward") else float(self._curve.first < 0.5)
        return dict(zip((g.name for g in self.gauges), (self._curve.now, reached), strict=True))

    measures = own_roles


class TruncationFeature(RoleFeature):
    """The share of samples that were cut off at the longest length."""

    gauges: tuple[DerivedSignal, ...] = (
        DerivedSignal("truncated_ratio", "Share of truncated samples, median of eight.", "ratio", "run"),
        DerivedSignal("truncated_rise", "The same minus its first level.", "ratio", "run"),
    )

    def __init__(self) -> None:
        super().__init__("truncated", "truncated")

    def _begin(self) -> None:
        self._curve = Curve()

    def _observe(self, values: Array) -> dict[str, float] | None:
        share = self._number(values)
        if math.isnan(share):
            return None
        self._curve.push(share)
        now = self._curve.now
        return dict(zip((g.name for g in self.gauges), (now, now - self._curve.first), strict=True))

    measures = own_roles


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        EntropyFeature(),
        QualityFeature("reward"),
        QualityFeature("accuracy"),
        GroupsFeature(),
        TruncationFeature(),
    )


def _collapse(role: str, name: str, title: str, remedy: tuple[str, ...]) -> Rule:
    lost = f"{role}_lost_ratio"
    return Rule(
        name=name,
        title=title,
        family=f"logged_{role}",
        summary=f"The {role} that is logged has lost most of what it had gained, or of what it began with.",
        description=f"The {role} ('{{signal}}') was {{best:.4g}} at best and is {{now:.4g}}: {{{lost}:.0%}} of what it "
        "had gained, or of its first level if it never gained, is lost.",
        thresholds=(Threshold(severity="warning", when=(Condition(lost, above=0.8),), for_points=16),),
        abnormal=(Condition(lost, above=0.5),),
        source="four fifths of a gain of 2.5 times the noise and 1.5 times a random walk, in the mean of the middle "
        "half of eight points (of sixteen once there are 128), at 16 points: an exploration comes back sooner; without "
        "a gain four fifths of the first level, beyond chance",
        remedy=remedy,
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="EntropyCollapse",
        title="The entropy of the policy collapsed",
        family="policy_entropy",
        summary="The policy is certain of nearly everything, and explores no more.",
        description="The entropy ('{signal}') is {entropy:.3g}, {entropy_to_first_ratio:.1%} of its first level.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(
                    Condition("entropy_to_first_ratio", below=0.05),
                    Condition("entropy_slope_ratio", below=0.25),
                    Condition("reward_scatter_ratio", above=SETTLED),
                    Condition("reward_known", above=0.5),
                ),
                for_points=3,
                summary="The policy is certain of nearly everything while its reward still varies: it explores no more "
                "before all is learned.",
            ),
            Threshold(
                severity="warning",
                when=(
                    Condition("entropy_to_first_ratio", below=0.02),
                    Condition("entropy_slope_ratio", below=0.25),
                    Condition("reward_known", below=0.5),
                ),
                for_points=3,
            ),
        ),
        abnormal=(Condition("entropy_to_first_ratio", below=0.1),),
        warm_up=12,
        source="a twentieth of its first level and flat by then, while the reward scatters by 5 % of its range: a "
        "policy that has learned all is certain too, but its reward is then at rest",
        remedy=(
            "Check the sign of the entropy bonus and of the divergence from the reference.",
            "Raise the entropy bonus or the upper clip range; lower the learning rate or the number of epochs.",
            "Go back to a checkpoint before the fall: a policy without entropy samples nothing new.",
        ),
        references=(_ENTROPY_PAPER,),
    ),
    Rule(
        name="EntropyExplosion",
        title="The entropy of the policy exploded",
        family="policy_entropy",
        summary="The policy becomes random: its entropy is several times what it was at first.",
        description="The entropy ('{signal}') is {entropy:.3g}, {entropy_to_first_ratio:.3g} times its first level.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("entropy_to_first_ratio", above=3.0), Condition("entropy_rise", above=1.0)),
                for_points=3,
            ),
        ),
        abnormal=(Condition("entropy_to_first_ratio", above=2.0), Condition("entropy_rise", above=0.5)),
        warm_up=12,
        source="three times the first level and 1 nat more, so that 2.7 times as many choices are open",
        remedy=(
            "Lower the entropy bonus or the upper clip range.",
            "Check that samples and log-probabilities belong together: mask, temperature, sampler.",
        ),
        references=(_ENTROPY_PAPER,),
    ),
    _collapse(
        "reward",
        "RewardCollapse",
        "The reward collapsed",
        (
            "Go back to the checkpoint before the fall.",
            "Look at the KL divergence, the entropy and the clip fraction from that step on: too large updates?",
            "Lower the learning rate or the number of epochs per batch; raise the KL penalty or the entropy bonus.",
        ),
    ),
    _collapse(
        "accuracy",
        "AccuracyCollapse",
        "The accuracy collapsed",
        (
            "Look at the loss, the learning rate and the batches from that step on.",
            "Go back to the checkpoint before the fall.",
        ),
    ),
    Rule(
        name="DeadGroups",
        title="Groups without spread",
        family="dead_groups",
        summary="Nearly all groups have equal rewards: their advantages are zero, and nothing is learned from them.",
        description="{dead_groups_ratio:.0%} of the groups have no spread ('{signal}').",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("dead_groups_ratio", above=0.9), Condition("reward_reached_ratio", below=0.9)),
                for_points=4,
            ),
        ),
        abnormal=(Condition("dead_groups_ratio", above=0.75), Condition("reward_reached_ratio", below=0.9)),
        warm_up=8,
        source="nine in ten, while the reward is not at its best: where all is learned, rewards are equal too",
        remedy=(
            "Print the rewards of one group: does the reward function tell the answers apart at all?",
            "Are the tasks too hard or too easy? Mix in others, or sample until a group has spread.",
        ),
    ),
    Rule(
        name="TruncationSurge",
        title="More and more samples are truncated",
        family="truncated",
        summary="Most samples reach the longest length and are cut off.",
        description="{truncated_ratio:.0%} of the samples are truncated ('{signal}'), {truncated_rise:.0%} more than "
        "at first.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("truncated_ratio", above=0.5), Condition("truncated_rise", above=0.3)),
                for_points=4,
            ),
        ),
        abnormal=(Condition("truncated_ratio", above=0.3), Condition("truncated_rise", above=0.2)),
        warm_up=8,
        source="half of the samples, and three in ten more than at first: their rewards are those of cut answers",
        remedy=(
            "Look at some samples: do they repeat themselves, or is the end token never made?",
            "Check the mask of truncated samples, the length penalty and the longest length.",
        ),
    ),
)
