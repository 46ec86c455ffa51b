"""Losses that cannot be compared from step to step: a healthy policy or value is calm, an explosion of it is not."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.alerts import Engine
from tests.alerts.scenarios import around, block
from tests.sampling import sample

STEPS = 300
RISES = [1.0 if step < 100 else 4.0 + 0.2 * (step % 3) for step in range(STEPS)]
"""A value's loss, when the policy begins to find rewards."""
AROUND_ZERO = [0.3 * (-1) ** step * (1 + step // 100) for step in range(STEPS)]
EXPLODES = [min(1.0 * 1.1 ** max(0, step - 100), 1e8) for step in range(STEPS)]
ACTS = {"acted": lambda step: float(step % 16 == 0)}
EPISODES = {"forwards": lambda step: 10.0 + step % 40, "passes": 1.0}
OPPOSED = {"opposed": lambda step: float(step % 2)}
REWARDED = {"logged episodic_return": lambda step: float(step)}


def _rules(loss, beside, each=1):
    engine = Engine()
    for first in range(0, len(loss), each):
        part = loss[first : first + each]
        engine.observe(block({"loss": part, **around(beside, first, len(part))}, first))
    return {a.rule for a in engine.history if a.severity != "info"}


@pytest.mark.parametrize("beside", [ACTS, OPPOSED, EPISODES, REWARDED], ids=["acts", "opposed", "episodes", "reward"])
@pytest.mark.parametrize("loss", [RISES, AROUND_ZERO], ids=["rises", "around zero"])
@pytest.mark.parametrize("each", sample([1, STEPS], STEPS))
def test_a_loss_that_says_nothing_of_the_model_is_not_judged(beside, loss, each):
    assert _rules(loss, beside, each) == set()


@pytest.mark.parametrize(("forwards", "compares"), [(lambda step: 10.0 + step, False), (lambda step: 10.0, True)])
def test_a_few_passes_of_lengths_of_their_own_are_episodes(forwards, compares):
    engine, loss = Engine(), [10.0 + step for step in range(12)]
    engine.observe(block({"loss": loss, **around({"forwards": forwards, "passes": 1.0}, 0, 12)}, 0))
    assert engine.comparable == compares


@pytest.mark.parametrize("each", [1, STEPS])
def test_a_distance_to_what_the_model_was_begins_at_zero_and_may_grow(each):
    rng = np.random.default_rng(0)
    grows = 1e-4 * np.arange(STEPS) / STEPS * np.exp(0.2 * rng.standard_normal(STEPS))
    assert _rules(grows.tolist(), {}, each) == set()
    assert "LossDivergence" in _rules((grows + 1e-5).tolist(), {}, each)


@pytest.mark.parametrize("each", [1, STEPS])
def test_nor_is_a_score_that_is_negative_from_the_beginning(each):
    rng = np.random.default_rng(0)
    converges = -0.4 * np.exp(-np.arange(STEPS) / 60) - 0.02 + 0.01 * rng.standard_normal(STEPS)
    converges[150:] /= 4
    assert _rules(converges.tolist(), {}, each) == set()


@pytest.mark.parametrize("each", [1, STEPS])
def test_a_new_task_is_learned_and_one_that_is_not_is_told(each):
    rng = np.random.default_rng(0)
    noise = np.exp(0.05 * rng.standard_normal(STEPS))
    learned = [0.2 if step < 100 else 0.2 + 2 * 0.94 ** (step - 100) for step in range(STEPS)]
    stays = [0.2 if step < 100 else 2.2 for step in range(STEPS)]
    assert not _rules((learned * noise).tolist(), {}, each) & {"LossShift", "LossDivergence"}
    assert _rules((stays * noise).tolist(), {}, each) >= {"LossShift", "LossDivergence"}


def test_a_loss_that_scatters_around_zero_needs_nothing_beside_it():
    rng = np.random.default_rng(0)
    scale = np.repeat([0.05, 0.05, 0.3], 100)
    assert _rules((scale * rng.standard_normal(STEPS)).tolist(), {}) == set()


@pytest.mark.parametrize(
    "beside",
    [
        {},
        {**ACTS, "token_loss": lambda step: RISES[step]},
        {"acted": lambda step: float(step == 0)},
        {"forwards": 8.0, "passes": 8.0},
        {"forwards": 3.0, "passes": 1.0},
    ],
    ids=["nothing", "a likelihood", "a look before training", "micro-batches", "a triplet"],
)
def test_others_are(beside):
    assert "LossDivergence" in _rules(RISES, beside)


@pytest.mark.parametrize("each", sample([1, STEPS], STEPS))
def test_an_explosion_is_told(each):
    grown = {"gradient_norm": lambda step: EXPLODES[step] ** 0.5}
    assert _rules(EXPLODES, {**ACTS, **grown}, each) >= {"LossDivergence"}
    assert "LossDivergence" not in _rules(EXPLODES, {**ACTS, "gradient_norm": 1.0}, each)


def test_a_hinge_that_is_met_nearly_everywhere_does_not_spike():
    loss = [max(0.5 - 0.005 * step, 0.0) for step in range(200)] + [0.05, 0.04, 0.05, 0.03, *([0.0] * 20)]
    assert _rules(loss, {}) == set()


@pytest.mark.parametrize("end", [[0.0] * 40, [0.25] * 40], ids=["no advantage", "a clamp"])
def test_a_policy_whose_loss_becomes_one_number(end):
    rng = np.random.default_rng(0)
    before = (-0.3 + 0.05 * rng.standard_normal(100)).tolist()
    assert "LossStuck" in _rules(before + end, {})


def test_a_coarse_loss_is_not_stuck():
    loss = [2.3125 - 0.015625 * (step // 40) + 0.015625 * (step % 7 == 0 and step % 40 < 20) for step in range(400)]
    assert "LossStuck" not in _rules(loss, {})


def test_a_hinge_that_comes_down_to_zero_is_learned():
    loss = [0.5 * 0.9**step for step in range(100)] + [0.0] * 100
    assert "LossStuck" not in _rules(loss, {})
