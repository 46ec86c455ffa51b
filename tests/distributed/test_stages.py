"""The layouts of several stages side by side."""

from __future__ import annotations

import numpy as np
import pytest

from stabwatch.distributed.health import RankHealth
from stabwatch.distributed.layout import MergeLayout
from stabwatch.distributed.stages import Measured, Stage, StagedLayout, names_in_whole, whole_names
from stabwatch.runlog import Accumulator, RecordLayout
from stabwatch.signals.reductions import REDUCTIONS

LOSS = Accumulator("loss_source", "backward", "mean")
GROUP = Accumulator("group", "group0", "group")


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([["enter", "blocks.0.up"], ["blocks.0.up", "leave"]], [["enter", "blocks.0.up"], ["blocks.1.up", "leave"]]),
        ([["blocks.0", "blocks.1"], ["blocks.2"]], [["blocks.0", "blocks.1"], ["blocks.2"]]),
        ([["0", "2"], ["0"], ["0"]], [["0", "2"], ["3"], ["4"]]),
        ([["norm", "a.0"], ["norm", "b.0"]], [["norm", "a.0"], ["stage1.norm", "b.0"]]),
    ],
    ids=["numbered from 0", "kept numbers", "sequential", "the same name"],
)
def test_layers_have_the_names_of_the_whole_model(stages, expected):
    assert [list(names.values()) for names in whole_names(stages)] == expected


def _stage(index, layers, counts=True, sharded=False):
    """Layout of one rank, the parts that it has, its stage, what is measured, and what compares ranks."""
    device = [LOSS, GROUP, *(Accumulator("weight", layer, "moments") for layer in layers)]
    kinds = dict.fromkeys(device[1:], "part" if sharded else "replicated")
    health = RankHealth(RecordLayout.without_series(device))
    local = RecordLayout.without_series((*device, *health.sources))
    entries = [(a, kinds.get(a, "own")) for a in device]
    ranks = (0, 1) if counts else (2, 3)
    place = Stage(index, ranks, ((index, ""),))
    return local, frozenset(device[1:] if sharded else ()), place, Measured(place.parts, entries), health


def _row(local, health, values):
    row = np.full(local.width - health.width, np.nan)
    for accumulator, (field, value) in values.items():
        names = [f.name for f in REDUCTIONS[accumulator.reduction].fields]
        start = local.start(accumulator)
        row[start : start + len(names)] = 0.0
        row[start], row[start + names.index(field)] = 1.0, value
    return np.concatenate([row, health.own(0, row)])


def test_what_one_stage_has_is_its_own_and_what_all_have_is_added():
    first, last = _stage(0, ["enter", "blocks.0"]), _stage(1, ["blocks.0"])
    sets = [Measured.of(measured.describe()) for _, _, _, measured, _ in (first, last)]
    layouts = [StagedLayout(local, holds, stage, sets) for local, holds, stage, _, _ in (first, last)]
    assert layouts[0].digest == layouts[1].digest
    here = {GROUP: ("sumsq", 3.0), Accumulator("weight", "enter", "moments"): ("sumsq", 5.0)}
    there = {LOSS: ("sum", 2.0), GROUP: ("sumsq", 4.0), Accumulator("weight", "blocks.0", "moments"): ("sumsq", 7.0)}
    partials = [
        layout.partial(rank, _row(stage[0], stage[4], values))
        for rank, (layout, stage, values) in enumerate(zip(layouts, (first, last), (here, there), strict=True))
    ]
    row = layouts[0].row(layouts[0].merge(*partials), complete=True)
    value = dict(zip(layouts[0].layout.accumulators, np.split(row, layouts[0].layout.starts[1:]), strict=True))
    assert value[GROUP][1] == 7.0 and value[LOSS][1] == 2.0
    assert value[Accumulator("weight", "enter", "moments")][1] == 5.0
    assert np.isnan(value[Accumulator("weight", "blocks.0", "moments")]).all(), "the first stage did not measure it"
    assert value[Accumulator("weight", "blocks.1", "moments")][1] == 7.0


def test_a_pipeline_without_rank_0_does_not_count_again_what_replicas_have_alike():
    first, beside = _stage(0, ["enter"]), _stage(0, ["enter"], counts=False)
    sets = [first[3], _stage(1, ["leave"])[3]]
    layouts = [StagedLayout(local, holds, stage, sets) for local, holds, stage, _, _ in (first, beside)]
    values = {GROUP: ("sumsq", 3.0), Accumulator("weight", "enter", "moments"): ("sumsq", 5.0)}
    partials = [
        layout.partial(rank, _row(stage[0], stage[4], values))
        for rank, (layout, stage) in enumerate(zip(layouts, (first, beside), strict=True))
    ]
    row = layouts[0].row(layouts[0].merge(*partials), complete=True)
    value = dict(zip(layouts[0].layout.accumulators, np.split(row, layouts[0].layout.starts[1:]), strict=True))
    assert value[GROUP][1] == 3.0 and value[Accumulator("weight", "enter", "moments")][1] == 5.0


def _measured(parts, layers):
    return Measured(
        parts, [(LOSS, "own"), *((Accumulator("weight", layer, "moments"), "replicated") for layer in layers)]
    )


@pytest.mark.parametrize("v", [False, True], ids=["looped", "v"])
def test_stages_of_one_rank_that_do_not_follow_on_each_other_are_named_and_ordered_by_stage(v):
    """Rank 0 has the stages 0 and 2 (or 0 and 3), rank 1 the others."""
    mine, others = ((0, 3), (1, 2)) if v else ((0, 2), (1, 3))
    first = _measured(((mine[0], "0"), (mine[1], "1")), ["0.enter", "0.blocks.0", "1", "1.blocks.0"])
    second = _measured(((others[0], "0"), (others[1], "1")), ["0.blocks.0", "0.blocks.1", "1.blocks.0", "1.leave"])
    names = names_in_whole([first, second])
    after = {number: [0, 1, 3, 4][number] for number in range(4)}  # stage 1 has two blocks
    assert names[0] == {
        "0.enter": "enter", "0.blocks.0": "blocks.0", "1": f"stage{mine[1]}", "1.blocks.0": f"blocks.{after[mine[1]]}",
    }  # fmt: skip
    assert names[1] == {
        "0.blocks.0": "blocks.1", "0.blocks.1": "blocks.2", "1.leave": "leave",
        "1.blocks.0": f"blocks.{after[others[1]]}",
    }  # fmt: skip
    local = RecordLayout.without_series(a for a, _ in first.entries)
    layout = StagedLayout(local, frozenset(), Stage(0, (0, 1), first.parts), [first, second])
    blocks = [a.site for a in layout.device.accumulators if a.site.startswith("blocks")]
    assert blocks == [f"blocks.{i}" for i in range(5)]


def test_shards_of_a_stage_are_parts_on_every_rank():
    first, beside = _stage(0, ["enter"], sharded=True), _stage(0, ["enter"], counts=False, sharded=True)
    sets = [first[3], _stage(1, ["leave"], sharded=True)[3]]
    layouts = [StagedLayout(local, holds, stage, sets) for local, holds, stage, _, _ in (first, beside)]
    partials = [
        layout.partial(rank, _row(stage[0], stage[4], {GROUP: ("sumsq", 3.0)}))
        for rank, (layout, stage) in enumerate(zip(layouts, (first, beside), strict=True))
    ]
    merged = MergeLayout.merge(layouts[0], *partials)
    assert merged.values[layouts[0]._back[layouts[0].layout.start(GROUP) + 1]] == 6.0
