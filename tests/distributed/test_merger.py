"""When a step is complete at a node, by a clock made for it."""

from __future__ import annotations

from stabwatch.distributed.layout import MergeLayout
from stabwatch.distributed.merger import MOST_PENDING, OWN, START_PATIENCE, Merger
from stabwatch.runlog import Accumulator, RecordLayout

LAYOUT = MergeLayout(RecordLayout.build([Accumulator("loss", "", "mean")]), {}, frozenset())


def partial(rank):
    return LAYOUT.partial(rank, [1, float(rank), 0])


def taken(merger, now):
    return [(step, entry.partial.ranks) for step, entry in merger.take(now)]


def both(merger, step, now=0.0):
    merger.put(OWN, step, partial(0), now)
    merger.put(1, step, partial(1), now)


def node(root=True, patience=2.0, children=(1,)):
    merger = Merger(LAYOUT, root, patience)
    for child in children:
        merger.add(child)
    return merger


def test_a_step_is_complete_when_every_source_is_past_it():
    merger = node(children=(1, 2))
    both(merger, 0)
    assert taken(merger, 0.0) == []
    merger.put(2, 0, partial(2), 0.1)
    assert taken(merger, 0.1) == [(0, ((0, 3),))]


def test_who_is_past_a_later_step_has_nothing_for_the_earlier_one():
    merger = node()
    merger.put(OWN, 0, partial(0), 0.0)
    merger.put(OWN, 1, partial(0), 0.0)
    merger.put(1, 1, partial(1), 0.0)
    assert taken(merger, 0.0) == [(0, ((0, 1),)), (1, ((0, 2),))]


def test_a_source_is_waited_for_once_and_again_when_it_has_caught_up():
    merger = node()
    both(merger, 0)
    assert len(taken(merger, 0.0)) == 1
    merger.put(OWN, 1, partial(0), 10.0)
    assert taken(merger, 11.9) == []
    assert taken(merger, 12.1) == [(1, ((0, 1),))]
    merger.put(OWN, 2, partial(0), 12.2)
    assert taken(merger, 12.2) == [(2, ((0, 1),))], "behind: no wait"
    merger.put(1, 1, partial(1), 12.3)
    assert merger.dropped == 1 and merger.behind == [1]
    merger.put(1, 3, partial(1), 12.4)
    assert merger.behind == []
    assert taken(merger, 12.4) == [], "rank 0 waits for itself, however long it takes"
    assert taken(merger, 99.0) == []
    merger.put(OWN, 3, partial(0), 99.0)
    assert taken(merger, 99.0) == [(3, ((0, 2),))]


def test_a_source_that_was_never_heard_of_has_longer():
    merger = node()
    merger.put(OWN, 0, partial(0), 0.0)
    assert taken(merger, START_PATIENCE - 0.1) == []
    assert taken(merger, START_PATIENCE + 0.1) == [(0, ((0, 1),))]


def test_a_source_that_left_is_not_waited_for():
    merger = node()
    merger.put(OWN, 0, partial(0), 0.0)
    merger.remove(1)
    assert taken(merger, 0.0) == [(0, ((0, 1),))]
    merger.add(1)
    both(merger, 1)
    assert taken(merger, 0.0) == [(1, ((0, 2),))]


def test_below_the_root_the_node_itself_is_waited_for_no_longer_than_others():
    merger = node(root=False)
    both(merger, 0)
    assert len(taken(merger, 0.0)) == 1
    merger.put(1, 1, partial(1), 10.0)
    assert taken(merger, 10.0) == []
    assert taken(merger, 12.1) == [(1, ((1, 2),))]


def test_what_waits_is_bounded():
    merger = node()
    for step in range(MOST_PENDING + 10):
        merger.put(1, step, partial(1), 0.0)
    assert len(taken(merger, 0.0)) == 10
    assert merger.waits
    assert len(list(merger.flush())) == MOST_PENDING
