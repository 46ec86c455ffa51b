"""Healthy curves of many kinds stay silent; unhealthy ones do not."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.analysis.detectors import detect
from tests.analysis.curves import HEALTHY, diverging, healthy, run_of, spiked

ALLOWED = 0.005
"""Share of healthy runs that may be warned about: a tenth of what is asked of real logs."""


def alarms(family: str, seeds: range) -> list[str]:
    """What is said of healthy runs above information, with the seed that repeats it."""
    said = []
    for seed in seeds:
        run = healthy(np.random.default_rng([seed, list(HEALTHY).index(family)]), family)
        said += [f"seed {seed}: {f.text}" for f in detect(run) if f.is_problem][:1]
    return said


def test_healthy_curves_are_silent():
    said = [text for family in HEALTHY for text in alarms(family, range(40))]
    assert len(said) <= ALLOWED * 40 * len(HEALTHY), said


@pytest.mark.parametrize("length", [14, 24, 200])
def test_a_loss_that_begins_at_zero_and_rises_has_lost_nothing(length):
    rng = np.random.default_rng(0)
    rises = np.abs(rng.normal(1e-3 * np.arange(length), 5e-4))
    rises[:4] = 0.0
    assert not [f.text for f in detect(run_of(loss=rises.tolist())) if f.is_problem]


def test_a_record_is_no_outlier_whose_neighbours_scatter_as_far():
    """Where a loss falls to a hundredth, its scatter does too: that of the end is no measure at the beginning."""
    rng = np.random.default_rng(0)
    level = np.geomspace(0.1, 0.001, 200).tolist() + [0.001] * 300
    loss = np.array(level) * np.exp(0.2 * rng.standard_normal(500))
    assert not [f.text for f in detect(run_of(loss=loss.tolist())) if f.condition == "LossOutliers"]
    loss[40] *= 8
    (odd,) = [f for f in detect(run_of(loss=loss.tolist())) if f.condition == "LossOutliers"]
    assert odd.first_step == odd.last_step == 40


@pytest.mark.slow
@pytest.mark.parametrize("family", HEALTHY)
def test_thousands_of_healthy_curves_are_silent(family):
    said = alarms(family, range(1000, 1500))
    assert len(said) <= 2 * ALLOWED * 500, said


@pytest.mark.parametrize(
    ("make", "kind", "near"),
    [(spiked, "LossSpike", 0.01), (diverging, "LossDivergence", 0.03)],
    ids=["spikes", "LossDivergence"],
)
def test_spikes_and_divergence_are_found_and_named(make, kind, near):
    found = 0
    for seed in range(100):
        run, at = make(np.random.default_rng([seed, 7]))
        troubles = [f for f in detect(run) if f.is_problem and f.condition == kind]
        found += any(abs(f.first_step - at) <= max(5, near * len(run.steps)) for f in troubles)
    assert found >= 95
