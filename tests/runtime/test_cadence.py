"""All ranks measure the same steps, whatever measuring costs on each of them."""

from __future__ import annotations

import random

import pytest

from stabwatch.runtime.cadence import RankCadence
from stabwatch.runtime.governor import Governor, Plan


class Wire:
    """One rank's end of an exchange whose messages take some steps."""

    def __init__(self, rank, late):
        self.rank, self.broken = rank, False
        self._late, self._coming, self.now = late, [], 0
        self.others = []

    def broadcast(self, topic, data):
        for other in self.others:
            other._coming.append((self.now + other._late, topic, data))

    def received(self, topic):
        here = [data for when, name, data in self._coming if name == topic and when <= self.now]
        self._coming = [each for each in self._coming if each[0] > self.now]
        return here


class Rank:
    """A rank whose deep tier takes `deep` seconds, with the plan and the phase of each step."""

    def __init__(self, rank, deep, late=2):
        self.wire, self.deep = Wire(rank, late), deep
        self.governor = Governor(0.01)
        self.cadence = RankCadence(self.governor, self.wire)
        self.phase, self.seen = 0, []

    def step(self, step):
        self.wire.now = step
        restarts = self.cadence.restarts(step, self.phase, 0.05)
        self.phase = self.phase if restarts is None else restarts
        plan = self.governor.plan(step)
        self.phase = (self.phase + plan.deep) % self.governor.phases
        self.seen.append((plan, self.phase if plan.deep else None))
        cost = {"always": 1e-5, "sampled": plan.sampled * 1e-3, "deep": plan.deep * self.deep * random.uniform(1, 2)}
        self.governor.observe(plan, 0.05 + sum(cost.values()), cost)


def _run(*ranks, steps=3000):
    for other in ranks[1:]:
        ranks[0].wire.others.append(other.wire)
    for step in range(steps):
        for rank in ranks:
            rank.step(step)


def test_ranks_of_unlike_cost_measure_the_same_steps_and_phases():
    first, second, third = Rank(0, 2e-3), Rank(1, 5e-2), Rank(2, 1e-5)
    _run(first, second, third)
    assert first.seen == second.seen == third.seen
    deep = [phase for _, phase in first.seen if phase is not None]
    assert len(deep) < 300 and set(deep) == set(range(8)), "the budget of rank 0 is kept, and every site has its turn"


def test_a_message_that_comes_late_applies_at_once():
    first, second = Rank(0, 2e-3), Rank(1, 5e-2, late=40)
    _run(first, second)
    assert first.seen[-1000:] == second.seen[-1000:]


def test_where_rank_0_never_speaks_the_cost_stays_small():
    alone = Rank(1, 1e-2)
    _run(alone, steps=4000)
    assert sum(plan.deep for plan, _ in alone.seen) < 120


@pytest.mark.parametrize("rank", [0, 1])
def test_the_tier_always_is_measured_at_every_step_until_rank_0_has_spoken(rank):
    alone = Rank(rank, 1e-2)
    _run(alone, steps=24 if rank == 0 else 400)
    assert all(plan.always for plan, _ in alone.seen)


def test_an_extra_deep_step_is_taken_by_all():
    first, second = Rank(0, 2e-3), Rank(1, 2e-3)
    _run(first, second, steps=2000)
    first.governor.ask_deep()
    before = len(first.seen)
    for step in range(before, before + 400):
        for rank in (first, second):
            rank.step(step)
    assert first.seen == second.seen


def test_without_an_exchange_a_rank_follows_itself():
    rank = Rank(1, 2e-3)
    rank.wire.broken = True
    _run(rank, steps=600)
    assert rank.governor.followed is None and rank.seen[0][0] == Plan(True, True, True)


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
