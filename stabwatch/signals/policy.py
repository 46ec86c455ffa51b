"""What `watch.log_policy` is given: how far a policy is from its reference, from itself, and from what sampled.

Of two policies, x is the logarithm of the probability of a sample under the one over that under the one that the sample
is from. k1 and k3 estimate their Kullback-Leibler divergence: the means of -x and of exp(x) - 1 - x.
"""

from __future__ import annotations

from stabwatch.signals.declaration import Signal, Worst

_SCHULMAN = "Schulman 2020, Approximating KL divergence"


def _log_ratio(
    name: str,
    help: str,
    tap: str,
    fields: tuple[str, ...],
    formula: str = "mean",
    worst: Worst = "max",
    unit: str = "1",
) -> Signal:
    return Signal(
        name=name, help=help, unit=unit, tap=tap, reduction="log_ratio", fields=fields, formula=formula, scope="run",
        tier="always", worst=worst, source=_SCHULMAN if "_k" in name else "",
    )  # fmt: skip


def _of_samples(
    name: str, help: str, tap: str, reduction: str, fields: tuple[str, ...], formula: str, unit: str = "1"
) -> Signal:
    return Signal(
        name=name, help=help, unit=unit, tap=tap, reduction=reduction, fields=fields, formula=formula, scope="run",
        tier="always",
    )  # fmt: skip


SIGNALS = (
    _of_samples(
        "policy_entropy_estimate", "Mean of minus the log-probability of the samples under the policy.",
        "policy", "mean", ("sum", "count"), "mean", "nat",
    ),
    Signal(
        name="policy_nonfinite_total",
        help="Log-probabilities and advantages that were NaN or infinite; they are left out of the other numbers.",
        unit="1",
        tap="policy",
        reduction="mean",
        fields=("nonfinite",),
        formula="total",
        scope="run",
        kind="counter",
        tier="always",
    ),
    _log_ratio(
        "policy_reference_kl_k1", "Divergence of the policy from its reference, estimate k1; it may be negative.",
        "policy_reference", ("k1", "count"), unit="nat",
    ),
    _log_ratio(
        "policy_reference_kl_k3", "Divergence of the policy from its reference, estimate k3.",
        "policy_reference", ("k3", "count"), unit="nat",
    ),
    _log_ratio(
        "policy_old_kl_k1", "Divergence from the policy before the update, estimate k1; it may be negative.",
        "policy_old", ("k1", "count"), unit="nat",
    ),
    _log_ratio(
        "policy_old_kl_k3", "Divergence from the policy before the update, estimate k3.",
        "policy_old", ("k3", "count"), unit="nat",
    ),
    _log_ratio(
        "policy_clip_ratio", "Share of the samples whose importance ratio is outside of the clip range.",
        "policy_old", ("clipped", "count"), unit="ratio",
    ),
    _log_ratio(
        "policy_ratio_max", "Largest importance ratio of a sample, policy over old policy; at most exp(20).",
        "policy_old", ("highest",), "exponential",
    ),
    _log_ratio(
        "policy_ratio_min", "Smallest importance ratio of a sample, policy over old policy; at least exp(-20).",
        "policy_old", ("lowest",), "inverse_exponential", "min",
    ),
    _log_ratio(
        "policy_effective_sample_ratio", "Effective sample size of the importance ratios over the number of samples.",
        "policy_old", ("ratio", "ratio_sumsq", "count"), "effective_share", "min", "ratio",
    ),
    _log_ratio(
        "rollout_kl_k3", "Divergence of the trained policy from the one that sampled, estimate k3.",
        "policy_rollout", ("k3", "count"), unit="nat",
    ),
    _log_ratio(
        "rollout_logp_difference", "Mean absolute difference of the log-probabilities of trainer and sampler.",
        "policy_rollout", ("absolute", "count"), unit="nat",
    ),
    _log_ratio(
        "rollout_ratio_max", "Largest probability of a sample for the trainer over that for the sampler.",
        "policy_rollout", ("highest",), "exponential",
    ),
    _of_samples(
        "advantage_deviation", "Standard deviation of the advantages.",
        "advantage", "advantage", ("sum", "sumsq", "count"), "deviation",
    ),
    _of_samples(
        "advantage_abs_max", "Largest absolute advantage.", "advantage", "advantage", ("abs_max",), "same",
    ),
    _of_samples(
        "advantage_zero_ratio",
        "Share of the samples whose advantage is zero: those of groups in which all rewards are equal.",
        "advantage", "advantage", ("zero", "count"), "quotient", "ratio",
    ),
)  # fmt: skip
