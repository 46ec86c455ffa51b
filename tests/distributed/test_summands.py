"""Gradients of which each rank has a summand: added up where rows merge, and used only if all ranks are in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stabwatch.distributed.layout import MergeLayout
from stabwatch.distributed.stages import Measured, Stage, StagedLayout
from stabwatch.distributed.summands import Piece, Summands
from stabwatch.kernels.moments import naive
from stabwatch.runlog import Accumulator, RecordLayout

A, B = (Accumulator("gradient", name, "moments") for name in "ab")
GROUP = Accumulator("group", "group0", "group")
TABLE = RecordLayout.build([A, B, GROUP])
RNG = np.random.default_rng(0)
FIRST, SECOND = (RNG.standard_normal((2, 3, n)).astype(np.float32) for n in (5, 7))
"""(groups, ranks, numbers): the summands of a parameter of `a` and of one of `b`."""
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


def summands(rank, ranks=(0, 1, 2), group=0):
    return Summands(
        [Piece(A, GROUP, ranks, 5), Piece(B, GROUP, ranks, 7)], Copied(FIRST[group, rank], SECOND[group, rank])
    )


def merge(found, use, world=3):
    """What rank 0 makes of partials that went over the wire and met in a tree."""
    sent = [use.unpack(each.ranks, use.pack(each)) for each in found]
    first, *others = sent
    below = others[0]
    for each in others[1:]:
        below = use.merge(each, below)
    return use.row(use.merge(first, use.unpack(below.ranks, use.pack(below))), len(found) == world)


def expected(groups=1, used=FIRST, other=SECOND):
    a, b = (np.concatenate([each[g].astype(np.float64).sum(0) for g in range(groups)]) for each in (used, other))
    a, b = (naive.moments(torch.from_numpy(each)).numpy() for each in (a, b))
    whole = np.array([a[0] + 4, a[1] + 2.0, a[2], max(a[3], 1.5)])
    return np.concatenate([whole, b, [a[0] + b[0] + 4, a[1] + b[1] + 2.0]])


@pytest.mark.parametrize("sharded", [True, False])
def test_the_moments_are_those_of_the_sum(sharded):
    use = layout(sharded)
    rows = [ROW, NOTHING, NOTHING] if sharded else [ROW] * 3
    found = [use.partial(rank, row, summands=summands(rank)) for rank, row in enumerate(rows)]
    np.testing.assert_allclose(merge(found, use), expected(), rtol=1e-6)


def test_shards_that_are_sums_each_add_up_as_squares():
    """Two groups of three ranks, each of which has another part of the parameters."""
    use = layout()
    found = [
        use.partial(3 * g + r, ROW if g == r == 0 else NOTHING, summands=summands(r, tuple(range(3 * g, 3 * g + 3)), g))
        for g in range(2)
        for r in range(3)
    ]
    np.testing.assert_allclose(merge(found, use, 6), expected(2), rtol=1e-6)


def test_a_rank_whose_summands_are_sent_by_others_adds_nothing_and_lacks_nothing():
    use = layout()
    silent = Summands([Piece(A, GROUP, (), 0), Piece(B, GROUP, (), 0)], None)
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
        found[2] = use.partial(2, NOTHING, summands=Summands([Piece(A, GROUP, (0, 1, 2), 5)], Copied(FIRST[0, 2])))
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
        staged[n].partial(n, nothing, summands=Summands([Piece(A, GROUP, (n,), 5)], Copied(FIRST[0, n])))
        for n in range(2)
    ]
    row = staged[0].row(staged[0].merge(*found), True)
    layers = [a for a in staged[0].layout.accumulators if a.tap == "gradient"]
    squares = [row[staged[0].layout.start(a) + 1] for a in layers]
    np.testing.assert_allclose(squares, [np.square(FIRST[0, n]).sum() for n in range(2)], rtol=1e-6)
    assert row[staged[0].layout.start(GROUP) + 1] == pytest.approx(sum(squares))
