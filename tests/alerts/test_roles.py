"""What a number is, by the names of TRL, verl, Stable-Baselines3 and others; and what the rules say of healthy ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stabwatch.alerts import Engine
from stabwatch.alerts.roles import ROLES, is_called
from tests.alerts.scenarios import block, uneven

NAMES = {
    "reward": ("reward", "critic/rewards/mean", "rollout/ep_rew_mean", "objective/scores", "Train/mean_reward",
               "charts/episodic_return"),
    "accuracy": ("accuracy", "train_acc", "rewards/accuracies", "mean_token_accuracy"),
    "entropy": ("entropy", "actor/entropy", "actor/entropy_loss", "policy/entropy_avg", "losses/entropy",
                "train/entropy_loss", "objective/entropy"),
    "reference_kl": ("kl", "objective/kl", "actor/kl_loss", "critic/kl"),
    "old_kl": ("train/approx_kl", "policy/approxkl_avg", "actor/ppo_kl", "losses/old_approx_kl"),
    "clip_fraction": ("actor/pg_clipfrac", "policy/clipfrac_avg", "train/clip_fraction", "clip_ratio/region_mean"),
    "ratio_max": ("sampling/importance_sampling_ratio/max",),
    "effective_samples": ("rollout_corr/rollout_is_eff_sample_size",),
    "rollout_logp": ("sampling/sampling_logp_difference/mean",),
    "rollout_probability": ("training/rollout_probs_diff_mean",),
    "rollout_kl": ("rollout_corr/kl", "rollout_corr/k3_kl", "vllm_kl"),
    "rollout_correlation": ("training/rollout_actor_probs_pearson_corr",),
    "advantage_max": ("critic/advantages/max",),
    "dead_groups": ("frac_reward_zero_std",),
    "truncated": ("completions/clipped_ratio", "response_length/clip_ratio"),
    "continuous": ("train/std", "Policy/mean_noise_std"),
}  # fmt: skip
OTHERS = (
    "loss", "eval/reward", "eval_accuracy", "cross_entropy", "entropy_coef", "target_entropy", "kl_coef", "target_kl",
    "reward_std", "rewards/chosen", "critic/rewards/max", "prompt_length/clip_ratio", "val/clipfrac_avg",
    "attention_entropy", "critic/vf_clipfrac", "learning_rate", "step_time", "clip_ratio/high_max",
)  # fmt: skip


@pytest.mark.parametrize("role", NAMES)
def test_a_role_is_known_by_the_names_of_known_trainers(role):
    for name in NAMES[role]:
        assert [r.name for r in ROLES if is_called(r.name, name)] == [role], name


def test_other_names_have_no_role():
    assert {name: found for name in OTHERS if (found := [r.name for r in ROLES if is_called(r.name, name)])} == {}


def _fired(**series):
    engine = Engine()
    engine.observe(block({name.replace("__", " "): list(values) for name, values in series.items()}))
    return {alert.rule for alert in engine.history}


def _noise(scale):
    return scale * np.random.default_rng(1).standard_normal(300)


def test_a_policy_that_has_learned_all_is_certain_and_silent():
    t = np.arange(300)
    reward = 0.1 + 0.9 / (1 + np.exp(-(t - 100) / 15))
    entropy = 2.4 * np.exp(-t / 60) + 0.005
    dead = 1 / (1 + np.exp(-(t - 130) / 15))
    fired = _fired(logged__reward=reward, logged__entropy=entropy, logged__frac_reward_zero_std=dead,
                   logged__kl=2.4 - entropy)  # fmt: skip
    assert fired == set()
    unsettled = np.minimum(reward, 0.8) + 0.6 * np.array([uneven(int(i)) - 0.5 for i in t])
    assert _fired(logged__reward=unsettled, logged__entropy=entropy) == {"EntropyCollapse"}


def test_a_language_model_has_an_entropy_and_an_autoencoder_a_divergence():
    falls = 2.0 * np.exp(-np.arange(300) / 20) + 0.01
    grows = np.where(np.arange(300) < 200, 0.01, 9.0)
    assert _fired(logged__entropy=falls, logged__mean_token_accuracy=1 - falls / 3) == set()
    assert _fired(logged__kl=grows, logged__recon=falls) == set()
    assert _fired(logged__kl=grows, logged__reward=[uneven(i) for i in range(300)]) == {"KLRunaway"}


def test_the_entropy_of_a_normal_distribution_may_pass_zero():
    entropy = np.linspace(1.4, -2.0, 300)
    assert _fired(logged__entropy=entropy, logged__reward=300 * np.arange(300) / 300 + _noise(20.0)) == set()


def test_a_reward_that_only_scatters_has_lost_nothing():
    assert _fired(logged__reward=_noise(1.0), logged__accuracy=0.5 + _noise(0.1)) == set()
    assert _fired(logged__reward=np.cumsum(_noise(0.1))) == set()


def test_groups_without_spread_where_all_rewards_are_zero():
    assert _fired(logged__frac_reward_zero_std=np.ones(60), logged__reward=np.zeros(60)) == {"DeadGroups"}


def test_numbers_that_are_missing_or_not_finite_do_not_hide_the_others():
    entropy = [0.02 if i >= 100 else math.nan if i % 3 else 1.2 for i in range(260)]
    assert _fired(logged__entropy=entropy, logged__reward=[uneven(i) for i in range(260)]) == {"EntropyCollapse"}
