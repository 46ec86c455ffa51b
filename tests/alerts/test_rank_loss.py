"""Which rank has another loss than the others."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.alerts import Engine
from stabwatch.runlog import Accumulator, RecordBatch, RecordLayout

CALM, BAD = 60, 40
LAYOUT = RecordLayout.build(Accumulator(tap, "", "rank_spread") for tap in ("rank_loss", "rank_loss_low"))


def _told(losses):
    """Descriptions of the alerts of a job, by rule. losses: (steps, ranks)."""
    steps = np.arange(len(losses))
    ends = (losses, -losses)
    fields = [column for x in ends for column in (0 * steps + x.shape[1], x.sum(1), x.max(1), x.argmax(1), x.min(1))]
    engine = Engine()
    engine.observe(RecordBatch(LAYOUT, steps, 1000.0 + steps, np.stack(fields, 1).astype(np.float32)))
    return {a.rule: a.description for a in engine.history if a.state == "firing" and a.rule.startswith("RankLoss")}


def _job(ranks, rank, factor, begins=CALM, falls=0.0):
    """Losses with noise, all falling, of which one is another one from some step on."""
    generator = np.random.default_rng(ranks)
    losses = 2 * (1 + 0.05 * generator.standard_normal((CALM + BAD, ranks)))
    losses *= np.exp(-falls * np.arange(CALM + BAD))[:, None]
    losses[begins:, rank] *= factor
    return losses


@pytest.mark.parametrize("ranks", [2, 3, 4, 64])
@pytest.mark.parametrize("falls", [0.0, 0.01])
def test_a_rank_whose_loss_is_lower_is_named(ranks, falls):
    told = _told(_job(ranks, 1, 0.3, falls=falls))
    assert set(told) == {"RankLossLower"} and "Rank 1 has the smallest loss" in told["RankLossLower"]


@pytest.mark.parametrize("ranks", [2, 3, 4, 64])
@pytest.mark.parametrize("falls", [0.0, 0.01])
def test_a_rank_whose_loss_is_higher_is_named(ranks, falls):
    told = _told(_job(ranks, 1, 3.0, falls=falls))
    assert set(told) == {"RankLossHigher"} and "Rank 1 has the largest loss" in told["RankLossHigher"]


def test_of_two_that_are_apart_from_the_start_no_one_is_said_to_have_changed():
    assert set(_told(_job(2, 1, 0.3, begins=0))) == {"RankLossHigher"}


@pytest.mark.parametrize("ranks", [2, 4])
def test_losses_that_differ_in_turn_are_healthy(ranks):
    losses = _job(ranks, 0, 1.0)
    losses[np.arange(len(losses)), np.arange(len(losses)) // 4 % ranks] *= 0.3
    assert not _told(losses)


@pytest.mark.parametrize("ranks", [2, 4])
def test_equal_ranks_with_small_batches_are_healthy(ranks):
    for seed in range(3):
        assert not _told(np.random.default_rng(seed).lognormal(0, 0.8, (3000, ranks)))


def test_a_rank_with_another_loss_is_found_in_small_batches_too():
    losses = np.random.default_rng(0).lognormal(0, 0.8, (200, 4))
    losses[:, 2] *= 12
    assert "RankLossHigher" in _told(losses)
