"""What users log of scores, errors and rewards: a lasting loss is told, rare events and noise are none."""

from __future__ import annotations

import math
import random

import pytest

from stabwatch.alerts.role_features import Gain
from stabwatch.alerts.themes.scores import direction


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("val/mIoU", 1), ("psnr", 1), ("eval_bleu", 1), ("success_rate", 1), ("valid_acc", 1), ("test/F1", 1),
        ("mAP", 1), ("val/top5", 1), ("AUROC", 1), ("rouge-L", 1), ("wer", -1),
        ("eval/perplexity", -1), ("fid", -1), ("val_mae", -1),
        ("accuracy", 0), ("reward", 0), ("best_acc", 0), ("disc_acc", 0), ("td_mse", 0), ("loss", 0), ("value_mse", 0),
        ("epoch", 0), ("target_fid", 0), ("recall_weight", 0),
    ],
)  # fmt: skip
def test_direction_of_a_name(name, which):
    assert direction(name) == which


def _lost(curve):
    gain, most, row = Gain(), 0, 0
    for x in curve:
        gain.push(x)
        row = row + 1 if (gain.lost or gain.fallen) > 0.8 else 0
        most = max(most, row)
    return most


def _learned(n, rng, noise):
    return [1 / (1 + math.exp(-(t - n / 5) / (n / 25))) + rng.gauss(0, noise) for t in range(n)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n", [100, 300, 1000])
def test_events_that_are_rare_and_noise_are_no_collapse(seed, n):
    rng = random.Random(seed)
    late = [float(rng.random() < 0.02 + 0.5 / (1 + math.exp(-(t - n / 2) / (n / 12)))) for t in range(n)]
    few = [float(rng.random() < 0.1) for _ in range(n)]
    batch = [sum(rng.random() < 0.05 for _ in range(8)) / 8 for _ in range(n)]
    for curve in (late, few, batch, _learned(n, rng, 0.25)):
        assert _lost(curve) < 16


@pytest.mark.parametrize("seed", range(10))
def test_a_reward_that_is_lost_in_noise_is_a_collapse(seed):
    rng = random.Random(seed)
    curve = [x if t < 180 else rng.gauss(0, 0.2) for t, x in enumerate(_learned(300, rng, 0.2))]
    assert _lost(curve) >= 16


def test_one_odd_point_is_none():
    rng = random.Random(0)
    curve = _learned(300, rng, 0.05)
    curve[200] = -4e5
    assert _lost(curve) < 6
