"""The bounded past: nothing worth seeing gets lost in it."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stabwatch.agent.history import History
from stabwatch.runlog import Accumulator, RecordBatch, RecordLayout

TABLE = RecordLayout.build([Accumulator("loss", "", "mean"), Accumulator("activation", "a", "moments")])
WANTED = frozenset({"loss", "activation_abs_max"})


def losses(values: list[float], first: int = 0) -> RecordBatch:
    rows = np.full((len(values), TABLE.width), np.nan, np.float32)
    rows[:, 0], rows[:, 1], rows[:, 2] = 1, values, 0
    return RecordBatch(TABLE, first + np.arange(len(values)), np.arange(len(values), dtype=np.float64), rows)


def test_short_runs_are_shown_as_they_are():
    h = History(WANTED, buckets=10)
    h.observe(losses([3.0, 2.0, np.nan, 1.0]))
    points = h.since(-1, 0).to_dict()
    assert points["steps"] == [0, 1, 2, 3]
    assert points["values"] == [[3.0, 2.0, None, 1.0], [None] * 4]
    assert [str(k) for k in h.keys] == ["loss", "activation_abs_max[a]"]


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=400), st.integers(1, 60))
@settings(max_examples=60)
def test_bounded_and_both_extremes_stay(values, chunk):
    h = History(WANTED, buckets=16)
    for i in range(0, len(values), chunk):
        h.observe(losses(values[i : i + chunk], first=i))
    points = h.since(-1, 0).to_dict()
    seen = [v for v in points["values"][0] if v is not None]
    assert len(points["steps"]) == len(points["values"][0]) <= 32
    assert points["steps"] == sorted(points["steps"])
    assert np.isclose(max(seen), max(values), rtol=1e-3)
    assert np.isclose(min(seen), min(values), rtol=1e-3)


def test_order_inside_a_bucket_is_kept():
    h = History(WANTED, buckets=2)
    h.observe(losses([1.0, 9.0, 9.0, 1.0]))
    assert h.stride == 2
    assert h.since(-1, 0).to_dict()["values"][0] == [1.0, 9.0, 9.0, 1.0]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
@settings(max_examples=60)
def test_increments_add_up_to_the_whole(sizes):
    """What a page puts together from answers to `since` is what a new page is given."""
    h = History(WANTED, buckets=16)
    steps: list[int] = []
    values: list[float | None] = []
    epoch, bucket, step = -1, 0, 0
    for size in sizes:
        h.observe(losses([float(i % 7) for i in range(step, step + size)], first=step))
        step += size
        answer = h.since(epoch, bucket).to_dict()
        start = answer["from"] * answer["per_bucket"]
        steps = steps[:start] + answer["steps"]
        values = values[:start] + answer["values"][0]
        epoch, bucket = answer["epoch"], answer["next"]
    whole = h.since(-1, 0).to_dict()
    assert (steps, values) == (whole["steps"], whole["values"][0])


def test_a_step_counter_that_goes_back_makes_the_page_start_again():
    h = History(WANTED, buckets=16)
    h.observe(losses([1.0] * 10))
    before = h.since(-1, 0).to_dict()
    h.observe(losses([5.0], first=3))
    after = h.since(before["epoch"], before["next"]).to_dict()
    assert after["from"] == 0
    assert after["values"][0][3] == 5.0


def test_layers_that_appear_later_and_steps_far_apart():
    h = History(WANTED, buckets=16)
    h.observe(losses([1.0]))
    h.observe(losses([2.0], first=10**12))
    wider = RecordLayout.build([*TABLE.accumulators, Accumulator("activation", "b", "moments")])
    h.observe(RecordBatch(wider, np.array([10**12 + 1]), np.array([0.0]), np.ones((1, wider.width), np.float32)))
    points = h.since(-1, 0).to_dict()
    assert len(points["values"]) == 3
    assert len({len(v) for v in points["values"]} | {len(points["steps"])}) == 1


def test_values_are_sent_with_four_digits():
    h = History(WANTED)
    h.observe(losses([0.0, -1.23456e-7, 123456.0, 1.23456e30, 0.0099999, -3.0]))
    assert json.dumps(h.since(-1, 0).to_dict()["values"][0]) == "[0.0, -1.235e-07, 123500.0, 1.235e+30, 0.01, -3.0]"


def test_points_have_times_that_go_on():
    h = History(WANTED, buckets=16)
    for first in range(0, 100, 10):
        h.observe(RecordBatch(TABLE, first + np.arange(10), first + np.arange(10.0), losses([1.0] * 10).rows))
    points = h.since(-1, 0).to_dict()
    assert len(points["times"]) == len(points["steps"]) and points["times"] == sorted(points["times"])
