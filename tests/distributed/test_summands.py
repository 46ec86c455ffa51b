"""Gradients of which each rank has a summand: added up where rows merge, and used only if all ranks are in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stabwatch.distributed.layout import MergeLayout
from stabwatch.distributed.stages import Measured, Stage, StagedLayout
from stabwatch.distributed.summands import LEAST, OVERHEAD, Piece, Place, Summands, buckets
from stabwatch.kernels.moments import naive
from stabwatch.runlog import Accumulator, RecordLayout

A, B = (Accumulator("gradient", name, "moments") for name in "ab")
GROUP = Accumulator("group", "group0", "group")
TABLE = RecordLayout.build([A, B, GROUP])
RNG = np.random.default_rng(0)
FIRST, SECOND = (RNG.standard_normal((2, 3, n)).astype(np.float32) for n in (5, 7))
"""(shards, ranks, numbers): the summands of a parameter of `a` and of one of `b`; each is exact."""
OF_ALL = Place((0, 1, 2), 0, 1, 0).group
ROW = np.array([4, 2.0, 0, 1.5, 0, 0, 0, 0, 4, 2.0])
"""Another parameter of `a` is measured by a rank itself."""
NOTHING = TABLE.operators.identity


class Copied:
    """Numbers that have arrived."""

    def __init__(self, *parts):
        self._numbers = np.concatenate(parts)

    def arrived(self):
        return True

    def wait(self):
        return self._numbers


def layout(sharded=True):
    kind = "part" if sharded else "replicated"
    return MergeLayout(TABLE, dict.fromkeys(TABLE.accumulators, kind), frozenset([A, B]) if sharded else frozenset())


def summands(rank, ranks=OF_ALL, shard=0):
    pieces = [Piece(A, GROUP, ranks, 5, 5), Piece(B, GROUP, ranks, 7, 7)]
    return Summands(pieces, Copied(FIRST[shard, rank], SECOND[shard, rank]))


def merge(found, use, world=3):
    """What rank 0 makes of partials that went over the wire and met in a tree."""
    sent = [use.unpack(each.ranks, use.pack(each)) for each in found]
    first, *others = sent
    below = others[0]
    for each in others[1:]:
        below = use.merge(each, below)
    return use.row(use.merge(first, use.unpack(below.ranks, use.pack(below))), len(found) == world)


def expected(used=FIRST, other=SECOND):
    a, b = (each[0].astype(np.float64).sum(0) for each in (used, other))
    a, b = (naive.moments(torch.from_numpy(each)).numpy() for each in (a, b))
    whole = np.array([a[0] + 4, a[1] + 2.0, a[2], max(a[3], 1.5)])
    return np.concatenate([whole, b, [a[0] + b[0] + 4, a[1] + b[1] + 2.0]])


@pytest.mark.parametrize("sharded", [True, False])
def test_the_moments_are_those_of_the_sum(sharded):
    use = layout(sharded)
    rows = [ROW, NOTHING, NOTHING] if sharded else [ROW] * 3
    found = [use.partial(rank, row, summands=summands(rank)) for rank, row in enumerate(rows)]
    np.testing.assert_allclose(merge(found, use), expected(), rtol=1e-6)


def test_shards_go_into_one_sketch_which_does_not_grow_with_ranks():
    """Two groups of three ranks, each of which has another part of the parameters."""
    use, every = layout(), Place(tuple(range(6)), 0, 2, 7).group
    pieces = [Piece(A, GROUP, every, 10, 10), Piece(B, GROUP, every, 14, 14)]
    found = []
    for g in range(2):
        for r in range(3):
            parts = [np.roll(np.pad(x[g, r], (0, x.shape[2])), g * x.shape[2]) for x in (FIRST, SECOND)]
            row = ROW if g == r == 0 else NOTHING
            found.append(use.partial(3 * g + r, row, summands=Summands(pieces, Copied(*parts))))
    used, other = (np.concatenate(list(x), axis=1)[None] for x in (FIRST, SECOND))
    np.testing.assert_allclose(merge(found, use, 6), expected(used, other), rtol=1e-6)
    both = use.merge(found[0], found[3])
    assert len(use.pack(both)) <= len(use.pack(found[0])) + 4 * len(ROW)


def test_of_an_estimate_the_largest_number_is_not_known():
    use = layout()
    pieces = [Piece(A, GROUP, OF_ALL, 5, 50), Piece(B, GROUP, OF_ALL, 7, 7)]
    mine = [Summands(pieces, Copied(FIRST[0, rank], SECOND[0, rank])) for rank in range(3)]
    row = merge([use.partial(rank, ROW if rank == 0 else NOTHING, summands=mine[rank]) for rank in range(3)], use)
    wanted = expected()
    assert np.isnan(row[3]) and row[0] == 54 and row[8] == 61
    np.testing.assert_allclose(np.delete(row, [0, 3, 8]), np.delete(wanted, [0, 3, 8]), rtol=1e-6)


def test_the_room_is_shared_and_what_it_leaves_of_small_gradients_goes_to_large_ones():
    assert buckets([10, 100, 5], 1000) == [10, 100, 5]
    assert buckets([8000, 10, 8000], 1010 + 3 * OVERHEAD) == [500, 10, 500]
    assert buckets([8000, 8000], 0) == [LEAST, LEAST] and buckets([], 0) == []


def test_a_rank_whose_summands_are_sent_by_others_adds_nothing_and_lacks_nothing():
    use = layout()
    silent = Summands([Piece(A, GROUP, None, 5, 5), Piece(B, GROUP, None, 7, 7)], None)
    found = [use.partial(rank, ROW if rank == 0 else NOTHING, summands=summands(rank)) for rank in range(3)]
    found.append(use.partial(3, NOTHING, summands=silent))
    np.testing.assert_allclose(merge(found, use, 4), expected(), rtol=1e-6)


@pytest.mark.parametrize("failure", ["no row", "no summands", "other pieces", "a rank is missing"])
def test_of_some_of_the_summands_nothing_is_made(failure):
    use = layout()
    found = [use.partial(rank, ROW if rank == 0 else NOTHING, summands=summands(rank)) for rank in range(3)]
    if failure == "no row":
        found[2] = use.partial(2, None)
    elif failure == "no summands":
        found[2] = use.partial(2, NOTHING)
    elif failure == "other pieces":
        found[2] = use.partial(2, NOTHING, summands=Summands([Piece(A, GROUP, OF_ALL, 5, 5)], Copied(FIRST[0, 2])))
    else:
        found.pop()
    assert np.isnan(merge(found, use)).all()


def test_a_summand_that_is_not_finite_is_counted():
    use, broken = layout(), FIRST.copy()
    broken[0, 1, 2] = np.nan
    mine = [Summands(summands(rank).pieces, Copied(broken[0, rank], SECOND[0, rank])) for rank in range(3)]
    found = [use.partial(rank, ROW if rank == 0 else NOTHING, summands=mine[rank]) for rank in range(3)]
    row = merge(found, use)
    assert row[2] == 1
    np.testing.assert_allclose(row, expected(used=broken), rtol=1e-6)


def test_without_a_group_of_parameters_only_layers_get_their_moments():
    use = layout()
    mine = [Summands([p._replace(group=None) for p in summands(r).pieces], summands(r).transfer) for r in range(3)]
    found = [use.partial(rank, ROW if rank == 0 else NOTHING, summands=mine[rank]) for rank in range(3)]
    row, wanted = merge(found, use), expected()
    np.testing.assert_allclose(row[:8], wanted[:8], rtol=1e-6)
    assert list(row[8:]) == [4, 2.0]


def test_stages_of_a_pipeline_add_up_their_own():
    """Both stages have a layer `a`; that of the second one is called otherwise in the whole model."""
    entries = [(A, "part"), (GROUP, "part")]
    own = RecordLayout.build([A, GROUP])
    ranks = [Measured(((n, ""),), entries) for n in range(2)]
    staged = [StagedLayout(own, frozenset([A]), Stage(n, (0, 1), ((n, ""),)), ranks) for n in range(2)]
    nothing = np.concatenate([own.operators.identity, np.zeros(staged[0].layout.width)])[: own.width]
    found = [
        staged[n].partial(
            n, nothing, summands=Summands([Piece(A, GROUP, Place((n,), 0, 1, 5).group, 5, 5)], Copied(FIRST[0, n]))
        )
        for n in range(2)
    ]
    row = staged[0].row(staged[0].merge(*found), True)
    layers = [a for a in staged[0].layout.accumulators if a.tap == "gradient"]
    squares = [row[staged[0].layout.start(a) + 1] for a in layers]
    np.testing.assert_allclose(squares, [np.square(FIRST[0, n]).sum() for n in range(2)], rtol=1e-6)
    assert row[staged[0].layout.start(GROUP) + 1] == pytest.approx(sum(squares))
