"""Reinforcement and adversarial learning: what is lost, and what only looks like it."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.analysis.detectors import detect
from tests.analysis.curves import run_of


def _troubles(**columns):
    return [(f.condition, f.first_step) for f in detect(run_of(**columns)) if f.is_problem]


def _reward(rng, fall_at=None, back=False):
    values = 150 * (1 - np.exp(-np.arange(200) / 40)) + 8 * rng.standard_normal(200)
    if fall_at is not None:
        values[fall_at:] -= np.minimum(6.0 * np.arange(200 - fall_at), 145)
        if back:
            values[fall_at + 40 :] += 145
    return values


@pytest.mark.parametrize(
    "name", ["reward", "ep_rew_mean", "Mean reward", "AverageEpRet", "train_return", "rewards/mean"]
)
def test_a_reward_that_is_lost(name):
    rng = np.random.default_rng(0)
    run = run_of(loss=rng.random(200), **{f"other__{name}": _reward(rng, 150)})
    ((condition, step),) = [(f.condition, f.first_step) for f in detect(run) if f.is_problem]
    assert condition == "RewardCollapse" and 148 <= step <= 170


@pytest.mark.parametrize("names", [("D_A", "G_A"), ("D_real", "G_GAN"), ("loss_dis", "loss_gen")])
def test_losses_of_adversaries_rise_and_fall(names):
    rng = np.random.default_rng(7)
    ours = 0.05 + 0.02 * rng.random(300)
    ours[200:228] += np.linspace(0.9, 0.1, 28)
    run = run_of(**{f"loss__{names[0]}": ours, f"component__{names[1]}": 1 - ours})
    assert [f.condition for f in detect(run) if f.is_problem] == []


@pytest.mark.parametrize("name", ["D loss", "d_loss", "loss/d", "Discriminator Loss"])
def test_losses_of_adversaries_are_recognised_by_their_names(name):
    rng = np.random.default_rng(4)
    lost = np.concatenate((0.6 + 0.1 * rng.random(60), 1e-6 * rng.random(60)))
    run = run_of(loss=lost, **{f"component__{name}": lost, "component__G loss": 1 + lost})
    assert [f.condition for f in detect(run) if f.is_problem] == ["DiscriminatorCollapse"]


def test_rewards_that_fluctuate_are_calm():
    rng = np.random.default_rng(1)
    for other__reward in (
        _reward(rng),
        _reward(rng, 120, back=True),
        50 * rng.standard_normal(200),
        np.full(200, 1.0),
        np.cumsum(rng.standard_normal(200)),
        np.linspace(-200, -100, 200) + 30 * rng.standard_normal(200),
    ):
        assert _troubles(loss=rng.random(200), other__reward=other__reward) == []


def test_a_loss_of_zero_in_policy_optimisation_is_no_finding():
    rng = np.random.default_rng(2)
    reward = 1 + 0.3 * (1 - np.exp(-np.arange(60) / 20)) + 0.05 * rng.standard_normal(60)
    assert _troubles(loss=np.zeros(60), grad_norm=0.09 + 0.02 * rng.random(60), other__reward=reward) == []


def test_a_discriminator_that_has_won():
    rng = np.random.default_rng(3)
    d, g = 1.2 + 0.2 * rng.random(100), 0.9 + 0.3 * rng.random(100)
    assert _troubles(loss=d, component__g_loss=g, component__d_loss=d) == []
    lost = d.copy()
    lost[60:] = 1e-4
    assert ("DiscriminatorCollapse", 60) in _troubles(component__d_loss=lost, component__g_loss=g + lost)


def _values(rng, n=60):
    return 0.1 + 0.05 * rng.random(n)


@pytest.mark.parametrize("name", ["Mean value_function loss", "value_loss", "losses/value_loss", "train/critic_loss"])
@pytest.mark.parametrize(("high", "kind"), [(1, "LossSpike"), (3, "LossDivergence")])
def test_a_value_loss_that_no_reward_explains(name, high, kind):
    rng = np.random.default_rng(2)
    values = _values(rng)
    values[-high:] = 2e10
    found = detect(run_of(loss=rng.random(60), **{f"component__{name}": values, "other__reward": 40 + rng.random(60)}))
    ((condition, step, text),) = [(f.condition, f.first_step, f.text) for f in found if f.is_problem]
    assert condition == kind and step == run_of(loss=values).steps[-high]
    assert f"in {high} record" in text and "where the log ends" in text


def test_a_value_loss_that_comes_back():
    rng = np.random.default_rng(2)
    values = _values(rng)
    values[30] = 2e10
    found = detect(run_of(loss=rng.random(60), component__value_loss=values, other__reward=40 + rng.random(60)))
    assert [(f.condition, f.last_step is not None) for f in found if f.is_problem] == [("LossSpike", True)]


def test_value_losses_of_large_and_of_first_rewards_are_calm():
    rng = np.random.default_rng(3)
    first = np.where(np.arange(60) < 30, 1e-7, 0.8)
    large = np.where(np.arange(60) < 30, 5.0, 9e5)
    assert _troubles(loss=rng.random(60), component__value_loss=first, other__reward=np.arange(60) / 60) == []
    assert _troubles(loss=rng.random(60), component__value_loss=large, other__reward=np.full(60, 800.0)) == []


def test_a_policy_without_a_gradient_though_rewards_differ():
    zero = [0.0, 0.0]
    rates, spread = [4e-8, 7e-8], [0.13, 0.11]
    found = _troubles(
        loss=zero, grad_norm=zero, learning_rate=rates, other__reward=[0.7, 0.8], other__reward_std=spread
    )
    assert found == [("NotLearning", 0)]
    calm = {"loss": zero, "learning_rate": rates, "other__reward": [0.7, 0.8]}
    assert _troubles(grad_norm=zero, other__reward_std=[0.0, 0.0], **calm) == []  # all rewards are equal
    assert _troubles(grad_norm=[0.0, 0.2], other__reward_std=spread, **calm) == []
    assert _troubles(grad_norm=zero, **calm) == []  # whether rewards differ is not known


@pytest.mark.parametrize(
    ("made", "onset"), [([1.02, 255.0], 1), ([4.1, 3.9, 4.4, 2000.0, 3500.0], 3), ([0.9, 90.0, 0.8], None)]
)
def test_the_loss_of_a_generator_that_jumps_a_hundredfold(made, onset):
    found = _troubles(component__train_adversarial_loss=made, component__D_loss=[0.7] * len(made))
    assert found == ([] if onset is None else [("LossDivergence", onset)])


def test_a_discriminator_that_is_right_every_time():
    assert _troubles(component__D_loss=[4e-4], component__G_loss=[1380.0], other__acc=[100.0], steps=[604_000]) == [
        ("DiscriminatorCollapse", 604_000)
    ]
    assert _troubles(component__D_loss=[4e-4], component__G_loss=[8.0], other__acc=[100.0]) == []
    assert _troubles(component__D_loss=[0.2], component__G_loss=[1380.0], other__acc=[90.0]) == []


@pytest.mark.parametrize(
    ("reward", "lost"),
    [
        ([1.2, 1.3, -3.6, -3.9, -31.7, -88.3], True),
        ([22.6, 20.3, 17.0, 14.9, 14.1, 14.1, 13.8, 14.1], False),  # a mean of episodes drifts
        ([1.2, 1.3, -33.6, -3.9, -31.7, -88.3], False),
        ([-0.019, -0.020, -0.0201, -0.0194, -0.0195], False),
    ],
)
def test_a_reward_that_falls_from_the_first_record(reward, lost):
    assert _troubles(other__Mean_Reward=reward) == ([("RewardCollapse", 0)] if lost else [])


def test_a_reward_that_rises_and_falls_in_an_excerpt_with_gaps():
    rises, high = [2.3, 4.1, 5.4, 6.5, 8.0], [69.9, 69.8, 70.3, 70.7, 69.4]
    falls = [56.7, 52.9, 53.6, 48.2, 41.7, 8.7, 7.5, 7.9, 7.4, 6.7, 0.2, 0.2, 0.4, 0.2]
    ((condition, step),) = _troubles(other__Mean_Reward=[*rises, *high, *falls])
    assert condition == "RewardCollapse" and 9 <= step <= 12
    assert _troubles(other__Mean_Reward=[*rises, *high, *falls[:5], *high]) == []


@pytest.mark.parametrize(
    ("name", "values", "calm"),
    [
        ("ε", [0.0] * 64, True),
        ("epsilon", [0.98**i for i in range(64)], True),
        ("rollout/exploration_rate", [max(0.05, 1 - i / 40) for i in range(64)], True),
        ("epsilon", [0.1 + 0.02 * i for i in range(64)], False),
        ("epsilon", [8.0] * 64, False),
    ],
)
def test_the_share_of_random_actions_shows_reinforcement_learning(name, values, calm):
    """The privacy loss of private training has the same name: it rises, and is a bound above 1."""
    loss = [1.0 + 0.02 * (i % 5) for i in range(64)]
    loss[40:50] = [18.0, 17.0, 19.0, 12.0, 10.0, 9.0, 15.0, 14.0, 13.0, 12.0]
    found = _troubles(loss=loss, **{f"other__{name}": values})
    assert (not found) == calm
