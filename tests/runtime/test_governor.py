"""The governor: the sum of all costs stays inside the budget, and nothing is left unseen for too long."""

from __future__ import annotations

import itertools
import random

import pytest

from stabwatch.hooks.base.flags import PHASES
from stabwatch.runtime.governor import AT_ONCE, EXPENSIVE, LONGEST, MAX_PHASES, WARM_UP, Governor


def _simulate(governor, steps, step_seconds, cost, hidden=0.0):
    """Run a training of constant pace; gives (share spent after the warm-up, plans)."""
    spent = total = 0.0
    plans = []
    for step in range(steps):
        plan = governor.plan(step)
        ran = {"always": plan.always, "sampled": plan.sampled, "deep": plan.deep}
        paid = {tier: cost[tier] if ran[tier] else 0.0 for tier in cost}
        extra = hidden if plan.sampled else 0.0
        seconds = step_seconds + sum(paid.values()) + extra
        governor.observe(plan, seconds, paid)
        plans.append(plan)
        if step >= 200:
            spent += sum(paid.values()) + extra
            total += seconds
    return spent / total if total else 0.0, plans


@pytest.mark.parametrize("budget", [0.003, 0.01, 0.05])
@pytest.mark.parametrize(
    "cost",
    [
        {"always": 1e-5, "sampled": 1e-4, "deep": 1e-3},
        {"always": 1e-3, "sampled": 5e-3, "deep": 1e-2},
        {"always": 2e-4, "sampled": 2e-2, "deep": 5e-2},
    ],
)
def test_the_cost_stays_inside_the_budget(budget, cost):
    share, _ = _simulate(Governor(budget), 3000, 0.1, cost)
    assert share <= budget * 1.05


def test_what_is_cheap_is_measured_at_every_step_but_for_the_controls():
    _, plans = _simulate(Governor(0.01), 300, 1.0, {"always": 1e-4, "sampled": 5e-4, "deep": 5e-4})
    assert all(p.always for p in plans)
    assert sum(p.sampled for p in plans) > 270


def test_the_first_steps_see_everything():
    governor = Governor(0.01)
    assert all(p.always and p.sampled and p.deep for p in _simulate(governor, WARM_UP, 1e-3, _DEAR)[1])


_DEAR = {"always": 1.0, "sampled": 1.0, "deep": 1.0}


def _gaps(plans, tier):
    at = [-1, *(i for i, p in enumerate(plans) if getattr(p, tier)), len(plans)]
    return [b - a for a, b in itertools.pairwise(at)]


def test_however_dear_no_tier_is_silent_for_longer_than_its_limit():
    _, plans = _simulate(Governor(0.01), 6000, 1e-3, _DEAR)
    for tier, limit in LONGEST.items():
        assert max(_gaps(plans, tier)) <= limit, tier


_GPU = {"always": 2e-4, "sampled": 7e-3, "deep": 3e-2}


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("deep", [2e-4, 5e-4, 1e-3, 3e-3, 1e-2, 5e-2, 0.1, 0.2])
def test_every_tier_comes_as_often_as_its_interval_says(deep, overlapped):
    governor = Governor(0.01, overlapped=overlapped)
    _, plans = _simulate(governor, 6000, 0.1, {"always": 1e-5, "sampled": 3e-4, "deep": deep})
    for tier in LONGEST:
        often = sum(getattr(p, tier) for p in plans[3000:])
        assert often >= 0.8 * 3000 // governor.interval[tier], (tier, governor.interval)


def test_first_steps_that_compile_do_not_silence_a_tier():
    """Measured on an H100: the first three steps cost 71 ms (sampled) and 560 ms (deep), the later ones a tenth."""
    governor, at = Governor(0.01), {"sampled": [], "deep": []}
    for step in range(3000):
        plan = governor.plan(step)
        dear = 10 if step < WARM_UP else 1
        cost = {tier: dear * c * (tier in plan.tiers) for tier, c in _GPU.items()}
        governor.observe(plan, 0.06 + sum(cost.values()), cost)
        for tier, steps in at.items():
            steps.extend([step] * (tier in plan.tiers))
    assert governor.interval["sampled"] < LONGEST["sampled"]
    assert [sum(s < 256 for s in steps) >= 8 for steps in at.values()] == [True, True]


def test_a_deep_step_that_is_dear_is_dealt_out_over_more_phases():
    governor = Governor(0.01)
    for step in range(20_000):
        plan = governor.plan(step)
        cost = {"always": 1e-5, "sampled": 0.0, "deep": plan.deep * 0.1 * PHASES / governor.phases}
        governor.observe(plan, 0.06 + sum(cost.values()), cost)
    assert 0.1 * PHASES / governor.phases <= EXPENSIVE * 0.06
    assert governor.phases <= 2 * PHASES * 0.1 / 0.06 / EXPENSIVE


@pytest.mark.parametrize("sites", [0, 400, PHASES * AT_ONCE, PHASES * AT_ONCE + 1, 10_000, 10**6])
def test_thousands_of_sites_are_dealt_out_before_their_cost_is_known(sites):
    few, all_at_once = Governor(0.01), Governor(0.01, every_step=True)
    few.spread(sites)
    all_at_once.spread(sites)
    assert all_at_once.phases == PHASES
    assert (few.phases == PHASES) == (sites <= PHASES * AT_ONCE)
    assert sites / few.phases <= AT_ONCE or few.phases == MAX_PHASES


def test_what_does_not_take_turns_does_not_make_rounds_longer():
    governor = Governor(0.01)
    _simulate(governor, 20_000, 0.06, {"always": 1e-5, "sampled": 0.0, "deep": 0.1})
    assert governor.phases == 2 * PHASES


def test_sampled_and_deep_do_not_fall_on_one_step():
    _, plans = _simulate(Governor(0.01), 2000, 0.1, {"always": 1e-4, "sampled": 5e-3, "deep": 2e-2})
    assert not any(p.sampled and p.deep for p in plans[200:])


def test_cost_that_the_host_clock_does_not_see_is_found_in_the_step_time():
    share, _ = _simulate(Governor(0.01), 3000, 0.1, {"always": 1e-5, "sampled": 1e-5, "deep": 1e-5}, hidden=0.02)
    assert share <= 0.012


def _overlapped(steps, step_seconds, host, kernels):
    """On an accelerator that has `step_seconds` of work a step: (share by which steps are longer, plans)."""
    governor, noise = Governor(0.01, overlapped=True), random.Random(0)
    longer, plans = [], []
    for step in range(steps):
        plan = governor.plan(step)
        ran = {"always": plan.always, "sampled": plan.sampled, "deep": plan.deep}
        paid = {tier: host[tier] if ran[tier] else 0.0 for tier in host}
        queueing = 0.04 + sum(paid.values())
        seconds = max(step_seconds + sum(kernels for tier in ran if ran[tier]), queueing)
        longer.append(seconds - max(step_seconds, 0.04))
        governor.observe(plan, seconds * noise.gauss(1.0, 0.002), paid)
        plans.append(plan)
    return sum(longer[200:]) / (len(longer) - 200) / max(step_seconds, 0.04), plans


def test_an_accelerator_with_work_queued_hides_the_time_of_the_host():
    share, plans = _overlapped(3000, 0.1, {"always": 5e-4, "sampled": 1e-2, "deep": 2e-2}, kernels=5e-5)
    assert share <= 0.01
    assert sum(p.sampled for p in plans[200:]) > 0.4 * 2800, "a hundredth of its host time is what it costs"


def test_an_accelerator_that_waits_for_the_host_does_not():
    share, plans = _overlapped(3000, 0.01, {"always": 1e-4, "sampled": 1e-2, "deep": 2e-2}, kernels=5e-5)
    assert share <= 0.011
    assert sum(p.sampled for p in plans[200:]) < 0.05 * 2800


def test_a_bracket_that_holds_the_limit_brings_the_exact_value_sooner():
    governor = Governor(0.01)
    _simulate(governor, 640, 0.1, {"always": 1e-4, "sampled": 1e-3, "deep": 5e-2})
    waits = governor.interval["deep"]
    assert waits >= 64
    governor.ask_deep()
    step = 640
    for _ in range(waits // 4):
        plan = governor.plan(step)
        governor.observe(plan, 0.1, {"always": 1e-4, "sampled": 0.0, "deep": 5e-2 if plan.deep else 0.0})
        if plan.deep:
            break
        step += 1
    assert plan.deep


def test_every_step_means_every_step():
    _, plans = _simulate(Governor(0.01, every_step=True), 50, 1e-3, _DEAR)
    assert all(p.always and p.sampled and p.deep for p in plans)
