"""A rank is slow if the others wait for it longer than a busy machine explains."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.alerts import Engine
from stabwatch.runlog import Accumulator, RecordBatch, RecordLayout
from tests.alerts.scenarios import host_accumulator

CALM, BUSY = 60, Accumulator("rank_busy", "", "rank_spread")


def _alerts(step: float, waits: float, points: int, ranks: int = 4, rank=lambda i: 2):
    """Alerts of a job with steps of that many seconds, in whose last points the others wait for one rank."""
    layout = RecordLayout.build((BUSY, host_accumulator("step_seconds")))
    rows = []
    for i in range(CALM + points):
        slow = step * (waits if i >= CALM else 0.01)
        odd = rank(i) if i >= CALM else i % ranks
        rows.append([ranks, ranks * (step - slow) + slow, step, odd, step - slow, 1, step])
    steps = np.arange(len(rows))
    engine = Engine()
    engine.observe(RecordBatch(layout, steps, 1000.0 + steps, np.array(rows, np.float32)))
    return [a for a in engine.history if a.rule == "SlowRank" and a.state == "firing"]


@pytest.mark.parametrize(
    ("step", "waits", "points", "fires"),
    [
        (0.005, 0.4, 100, False),  # half a second of a busy machine
        (0.02, 0.4, 56, False),
        (0.005, 0.6, 24, False),  # a tenth of a second
        (0.02, 0.6, 60, True),
        (0.005, 0.7, 120, True),
        (1.0, 0.4, 40, True),
        (0.1, 0.4, 200, True),
    ],
)
def test_how_long_it_takes_depends_on_the_seconds_that_were_waited(step, waits, points, fires):
    found = _alerts(step, waits, points)
    assert bool(found) == fires
    assert all("Rank 2 is the slowest" in alert.description for alert in found)


def test_ranks_that_are_slow_in_turn_are_not_slow():
    assert not _alerts(1.0, 0.6, 200, rank=lambda i: i // 8 % 4)


def test_the_slowest_is_compared_with_the_mean_of_the_others():
    """Not with the shortest time, which says little of many."""
    [alert] = _alerts(1.0, 0.6, 40, ranks=8)
    assert alert.value == pytest.approx(0.6, abs=0.01)


def _host_alerts(slow, ranks: int = 8, points: int = 80, step: float = 1.0, waits: float = 0.4, rule: str = "SlowHost"):
    """Alerts of a job in which some ranks are slower than the others, each of them the slowest in turn."""
    layout = RecordLayout.build((BUSY, host_accumulator("step_seconds")))
    rows = []
    for i in range(CALM + points):
        late = step * (waits if i >= CALM else 0.01)
        odd, many = (slow[i * 7 % len(slow)], len(slow)) if i >= CALM else (i * 5 % ranks, 1)
        rows.append([ranks, ranks * (step - late) + many * late, step, odd, step - late, 1, step])
    steps = np.arange(len(rows))
    engine = Engine()
    engine.observe(RecordBatch(layout, steps, 1000.0 + steps, np.array(rows, np.float32)))
    return [a for a in engine.history if a.rule == rule and a.state == "firing"]


@pytest.mark.parametrize("slow", [(2, 3), (4, 5, 6, 7), (0, 1)])
def test_ranks_side_by_side_that_are_slow_in_turn_are_named_together(slow):
    [alert] = _host_alerts(slow)
    assert f"rank {slow[0]} to rank {slow[-1]}" in alert.description and alert.value == pytest.approx(0.4, abs=0.01)
    assert not _host_alerts(slow, rule="SlowRank")


@pytest.mark.parametrize("slow", [(0, 7), (1, 3, 5), (0, 1, 2, 3, 4), tuple(range(8)), (3,)])
def test_ranks_all_over_the_job_are_no_host(slow):
    assert not _host_alerts(slow)
