"""The tree of ranks, and sets of ranks as ranges."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabwatch.distributed.tree import ancestors, children, height, missing, size, union


@pytest.mark.parametrize(("world", "fan_out"), [(1, 24), (2, 24), (4, 2), (25, 24), (26, 24), (1000, 3), (10_000, 24)])
def test_every_rank_is_below_rank_0_exactly_once(world, fan_out):
    seen = {0}
    todo = [0]
    while todo:
        rank = todo.pop()
        below = children(rank, world, fan_out)
        assert len(below) <= fan_out
        for first, end in below:
            assert first not in seen and rank < first < end <= world
            assert world > 2000 or ancestors(first, world, fan_out)[0] == rank
            seen.add(first)
            todo.append(first)
    assert seen == set(range(world))


@pytest.mark.parametrize(("world", "levels"), [(1, 0), (2, 1), (4, 1), (5, 2), (13, 2), (14, 3), (10_000, 9)])
def test_levels_grow_with_the_logarithm(world, levels):
    assert height(0, world) == levels
    assert max(len(ancestors(rank, world)) for rank in range(0, world, 97)) <= levels


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_sets_of_ranks_are_sets(a, b):
    x, y = (union(((r, r + 1),) for r in ranks) for ranks in (a, b))
    both = union((x, y))
    assert {r for first, end in both for r in range(first, end)} == a | b
    assert size(both) == len(a | b)
    assert all(p[1] < q[0] for p, q in pairwise(both))
    assert missing(both, 64, 100) == sorted(set(range(64)) - a - b)
    assert missing(both, 64, 3) == sorted(set(range(64)) - a - b)[:3]
