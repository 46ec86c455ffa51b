"""Spikes in curves of few records, and which of them are none."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.analysis.detectors import detect
from tests.analysis.curves import run_of


def _troubles(values, first=0, apart=10):
    run = run_of(loss=list(values), steps=[first + apart * i for i in range(len(values))])
    return [(f.condition, f.first_step, f.last_step) for f in detect(run) if f.is_problem]


DESCENT = [13.4, 5.4, 7.1, 5.7, 5.2, 4.7, 4.5, 3.8, 3.4, 3.7, 3.2, 3.1, 2.8, 2.97, 2.94]
AFTER = [2.9, 2.86, 2.84, 2.81, 2.83, 2.78, 2.74, 2.71, 2.72, *np.linspace(2.7, 2.5, 20)]


def test_a_jump_and_the_way_back_at_a_coarse_cadence():
    assert _troubles([*DESCENT, 6.6, 4.6, 3.5, 3.0, *AFTER]) == [("LossSpike", 150, 170)]


def test_a_single_record_is_an_odd_batch():
    assert _troubles([*DESCENT, 6.6, 2.93, *AFTER]) == []


def test_records_that_are_equally_high_and_then_gone_are_odd_batches():
    assert _troubles([*DESCENT, 6.6, 6.5, 2.93, *AFTER]) == []


def test_all_that_was_learned_is_lost_for_a_while():
    values = [6.9, 4.2, 2.8, 2.3, 2.1, 2.4, 2.9, 5.0, 6.1, 7.0, 7.4, 12.0, 8.3, 7.1, 4.7, 3.6, 2.7, 2.5, 2.3, 2.2, 2.1]
    assert _troubles(values) == [("LossSpike", 70, 140)]


@pytest.mark.parametrize(
    ("values", "onset"),
    [
        ([3.06, 3.11, 7.71], 2),
        ([3.32, 3.42, 3.68, 7.27, 4.13, 7.6], 3),
        ([6.44, 11.42, 7.16], 1),
        ([2.776, 2.773, 2.768, 7.34, 8.72, 7.65, 7.19, 6.85], 3),
    ],
)
def test_lines_that_were_pasted_because_of_a_spike(values, onset):
    assert _troubles(values, first=11_000, apart=1) == [("LossSpike", 11_000 + onset, None)]


def test_an_excerpt_that_goes_on_rising_diverges():
    assert _troubles([6.37, 7.1, 8.4, 9.6, 10.24], first=6900)[0][0] == "LossDivergence"


def test_what_the_curve_does_everywhere_is_its_noise():
    rng = np.random.default_rng(5)
    clean = 4 * np.exp(-np.arange(6000) / 900) + 0.005
    values = clean * np.where(np.arange(6000) % 97 < 8, 1 + 6 * rng.random(6000), 1 + 0.2 * rng.random(6000))
    assert _troubles(values, apart=1) == []


def test_the_slow_way_back_belongs_to_a_spike():
    rng = np.random.default_rng(3)
    values = np.full(600, 0.05) * (1 + 0.05 * rng.standard_normal(600))
    values[:100] += np.linspace(3, 0, 100)
    for at in (250, 330, 410):
        values[at : at + 25] += 0.3 * np.exp(-np.arange(25) / 9)
    assert [(kind, step) for kind, step, _ in _troubles(values, apart=1)] == [
        ("LossSpike", at) for at in (250, 330, 410)
    ]


def test_a_burn_in_moves_by_its_own_size():
    hump = 750 + 590 * np.sin(np.linspace(0, np.pi, 36))
    values = [*np.linspace(1958, 750, 40), *hump, *(750 * 0.97 ** np.arange(240))]
    assert _troubles(values, apart=1) == []
