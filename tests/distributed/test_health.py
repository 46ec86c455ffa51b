"""One rank differs: which one is said, by real gloo processes and by rows made for it."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from stabwatch.alerts import Engine, diagnose
from stabwatch.distributed.health import BUSY_SOURCE, RankHealth
from stabwatch.distributed.layout import COMPARING, MergeLayout
from stabwatch.runlog import Accumulator, RecordLayout, read_run
from stabwatch.runtime.ranks import AVERAGED
from tests.distributed.local_job import WAYS
from tests.distributed.rank_job import AT, LASTING_AT
from tests.processes import run_ranks

WEIGHTS = (Accumulator("checksum", "a", "checksum"), Accumulator("checksum", "b", "checksum"))
BUFFER = Accumulator("buffer_checksum", "c", "checksum")


def _job(folder, world, *faults):
    """Runs a job, each fault with a run of its own in the folder; found.json has what each rank printed."""
    outs = run_ranks("tests.distributed.rank_job", world, world, folder / "store", folder, *faults)
    (folder / "found.json").write_text(json.dumps([json.loads(out.split("found ")[1]) for out, _ in outs]))


@pytest.fixture
def two(once):
    """The folder of one job of two ranks, and what each rank found, by fault."""
    folder = once("two-ranks", lambda folder: _job(folder, 2, "unwatched", "healthy", "nan"))
    return folder, json.loads((folder / "found.json").read_text())


@pytest.fixture
def others(once):
    """The folder of a job of two ranks with other faults."""
    return once("two-ranks-others", lambda folder: _job(folder, 2, "slow", "apart"))


def _judged(run):
    engine = Engine()
    for block in run.blocks:
        engine.observe(block)
    return engine


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_bit_that_turns_over_on_one_rank_names_the_rank_and_the_layer(tmp_path, world):
    _job(tmp_path, world, "flip")
    run = read_run(tmp_path / "flip")
    engine = _judged(run)
    [first] = [a for a in engine.history if a.rule == "ReplicasDiffer"][:1]
    assert first.onset == AT and first.layer == "blocks.1.mlp"
    assert first.context["replica_difference_rank"] == world - 1
    cause = diagnose(engine).causes[0]
    assert cause.name == "RankFault" and f"Rank {world - 1}" in " ".join(cause.evidence)
    calm, _ = run.series("replica_difference_ratio", "blocks.0.mlp")
    assert len(calm) > 10, "replicas were compared at every step"


def test_a_healthy_job_is_silent_and_the_same_as_unwatched(two):
    folder, found = two
    for rank in found:
        assert rank["healthy"]["sum"] == rank["unwatched"]["sum"]
    run = read_run(folder / "healthy")
    engine = _judged(run)
    assert not [a for a in engine.history if a.severity != "info"]
    differences = [run.series(k.signal, k.layer)[1] for k in run.keys if k.signal == "replica_difference_ratio"]
    assert differences and all((d == 0).all() for d in differences)
    low, high = (run.series(f"rank_loss_{end}")[1] for end in ("min", "max"))
    loss = dict(zip(*run.series("loss"), strict=True))
    steps = run.series("rank_loss_max")[0]
    np.testing.assert_allclose((low + high) / 2, [loss[s] for s in steps], rtol=1e-6)


def test_a_rank_whose_batch_is_not_finite_is_named(two):
    """Its batch too, and every rank is measured closely from then on."""
    folder, found = two
    run = read_run(folder / "nan")
    engine = _judged(run)
    for event in run.events:
        engine.observe_event(event)
    traced = [event for event in run.events if event.kind == "nonfinite" and event.data.get("rank") == 1]
    assert [(event.step, event.data["since"]) for event in traced] == [(AT, AT)], "by that rank, which writes no log"
    causes = diagnose(engine).causes
    assert "This was seen on rank 1." in causes[0].evidence
    [cause] = [c for c in causes if c.name == "NonFinite"]
    said = " ".join(cause.evidence)
    assert "Rank 1 counted the most non-finite values at first" in said
    assert f"Batch of step {AT}: samples {2 * AT}; shard shard-0" in said
    assert f"Batch of step {AT}: samples {2 * AT + 1}; rank 1; shard shard-1" in said
    assert all(AT < rank["nan"]["closer_until"] < AT + 64 for rank in found)


@pytest.mark.slow
def test_a_slow_rank_is_named(others):
    engine = _judged(read_run(others / "slow"))
    [first] = [a for a in engine.history if a.rule == "SlowRank"][:1]
    assert first.step > LASTING_AT and "Rank 1" in first.description and first.severity == "warning"


@pytest.mark.slow
def test_gradients_that_are_never_averaged_are_no_fault_of_a_device(others):
    causes = diagnose(_judged(read_run(others / "apart"))).causes
    assert causes[0].name == "GradientsNotAveraged" and "RankFault" not in {cause.name for cause in causes}
    assert "layers differ between ranks" in causes[0].evidence[0]
    assert "device" not in " ".join(causes[0].remedy)


def _layout(health):
    return MergeLayout(RecordLayout.build(health.sources), {}, frozenset())


def _merged(health, rows, step=0):
    """Values of `health.accumulators` from the device rows of several ranks, by way of what each states."""
    layout = _layout(health)
    each = [layout.partial(rank, health.own(rank, row)) for rank, row in enumerate(rows)]
    return health.compare(layout.row(functools.reduce(layout.merge, each), True), step)


def _health(layout=None, coupled=True, collectives=()):
    health = RankHealth(layout or RecordLayout.build(WEIGHTS))
    health.coupled = coupled
    health.collectives.update(enumerate(collectives))
    return health


def _rows(health, layout, values, step=0):
    """What is found of rows of ranks, from the sums of squares of some places on each; None: it did not measure.

    The checksum is a number that no two of these sums have alike, or is given: (checksum, sum).
    """
    rows = np.full((len(values), layout.width), np.nan)
    for row, mine in zip(rows, values, strict=True):
        for accumulator, value in zip(layout.accumulators, mine, strict=True):
            start = layout.start(accumulator)
            checksum, squares = value if isinstance(value, tuple) else (round(1000 * min(value or 0, 1e4)), value)
            row[start : start + 4] = 0 if value is None else [1, checksum, squares, not np.isfinite(squares)]
    return _merged(health, rows, step)[22:].reshape(-1, 3)


def test_which_rank_it_is():
    layout = RecordLayout.build(WEIGHTS)
    health = _health()
    assert _rows(health, layout, [(1, 2)] * 4).tolist() == [[4, 0, -1], [4, 0, -1]]
    a, b = _rows(health, layout, [(1, 2), (1, 2.2), (1, 2), (1, 2)])
    assert a.tolist() == [4, 0, -1] and b == pytest.approx([4, 0.1, 1])
    a, b = _rows(health, layout, [(1, 2), (1, 2), (np.inf, 2), (1, 2)])
    assert a.tolist() == [4, np.inf, 2] and b.tolist() == [4, 0, -1]
    a, b = _rows(health, layout, [(1, 2), (1, 1.5), (1, 2), (1, 2)])
    assert b == pytest.approx([4, 0.25, 1]), "the odd one may be the smallest"
    a, b = _rows(health, layout, [(1, 1.0), (1, 2.0), (1, 3.0), (1, 2.0)])
    assert b[1] > 0.4 and b[2] == -1, "several differ: which one it is, is not known"
    a, b = _rows(health, layout, [(np.inf, 2), (np.inf, 2), (np.inf, 2), (1, 2)])
    assert a.tolist() == [4, np.inf, 3]


def test_of_two_ranks_it_is_the_one_that_jumped_for_as_long_as_they_are_apart():
    layout = RecordLayout.build(WEIGHTS)
    health = _health()
    _rows(health, layout, [(1, 2), (1, 2)])
    for step in range(1, 4):
        a, _ = _rows(health, layout, [(1 + 0.01 * step, 2), (1.5 + 0.02 * step, 2)])
        assert a[2] == 1
    assert _rows(health, layout, [(1, 2), (1, 2)])[0].tolist() == [2, 0, -1]
    assert _rows(health, layout, [(3, 2), (1, 2)])[0][2] == 0
    _rows(health, layout, [(1, 2), (1, 2)])
    assert _rows(health, layout, [(1.001, 2), (1.002, 2)])[0][2] == -1, "both moved: unclear"


def test_a_rank_that_did_not_measure_a_layer_is_no_replica_of_it():
    layout = RecordLayout.build(WEIGHTS)
    a, b = _rows(_health(), layout, [(None, 2), (5, 2), (5, 2), (5, None)])
    assert a.tolist() == [3, 0, -1] and b.tolist() == [3, 0, -1]
    a, b = _rows(_health(), layout, [(None, None), (5, None)])
    assert np.isnan(a).all() and np.isnan(b).all(), "one alone is not compared, none is not measured"


def test_ranks_that_nothing_is_known_to_join_are_compared_once_they_were_equal():
    layout = RecordLayout.build(WEIGHTS)
    health = _health(coupled=False)
    a, b = _rows(health, layout, [(1, 2), (3, 2)])
    assert np.isnan(a).all() and b.tolist() == [2, 0, -1]
    a, b = _rows(health, layout, [(1, 2), (3, 4)])
    assert np.isnan(a).all() and b[1] > 0.1


def test_weights_that_are_averaged_by_hand_are_no_fault_and_a_forgotten_average_is_told(tmp_path):
    run_ranks("tests.distributed.local_job", 2, 2, tmp_path / "store", tmp_path, *WAYS)
    for way in WAYS:
        run = read_run(tmp_path / way)
        engine = _judged(run)
        told = {(a.rule, a.severity) for a in engine.history if a.rule == "ReplicasDiffer"}
        *_, coverage = (event.data for event in run.events if event.kind == "coverage")
        averaged = AVERAGED in {each["reason"] for each in coverage["unmeasured"] if each["tap"] == "replica"}
        assert averaged == (way != "never") and told <= {("ReplicasDiffer", "warning")}, way
        if way == "never":
            assert told and "GradientsNotAveraged" in {cause.name for cause in diagnose(engine).causes}


EQUAL, APART, ONE = [(3, 4), (3, 4)], [(3, 4), (3.1, 4.1)], [(3, 4), (3, 4.1)]


def _local(*steps, collectives=()):
    """What is told of two layers (difference over 0, rank; None: nothing) at some steps: (step, weights times)."""
    layout = RecordLayout.build(WEIGHTS)
    health = _health(coupled=False, collectives=collectives)
    told = []
    for n, (step, pairs) in enumerate(steps):
        rows = _rows(health, layout, [[x * (1 + n) for x in mine] for mine in pairs], step)
        told.append([None if np.isnan(row[1]) else (bool(row[1] > 0), row[2]) for row in rows])
    return told, health.averaged


SAME, ALONE, UNKNOWN = (False, -1), (True, -2), (True, -1)


def test_ranks_that_step_on_their_own_are_compared_after_averages_once_one_was_seen():
    """A difference of one layer right after an average is a fault; where weights do not take part, they are own."""
    told, averaged = _local((0, EQUAL), (5, APART), (16, EQUAL), (21, APART), (32, ONE), collectives=[0] * 40)
    assert averaged
    assert told == [[SAME] * 2, [ALONE] * 2, [SAME] * 2, [None] * 2, [SAME, (True, told[4][1][1])]]
    told, averaged = _local((0, EQUAL), (5, APART), (16, [(3, 4), (3, 4.1)]), (32, ONE), collectives=[0] * 40)
    assert not averaged, "half of the layers are not most"


def test_ranks_that_train_other_models_are_not_compared_in_what_begins_with_one_value():
    """As the weights of norms, in an ensemble."""
    layout = RecordLayout.build([Accumulator("checksum", name, "checksum") for name in "abc"])
    health = _health(layout, coupled=False, collectives=[0] * 100)
    for step in range(5):
        x = float(step + 1)
        rows = _rows(health, layout, [(x, 2 * x, 9.0 + step), (3 * x, 5 * x, 9.0 + 2 * step)], step)
        assert np.isnan(rows[:, 1]).all(), step
    assert health.never_equal


def test_ranks_below_ddp_that_average_their_weights_are_known_once_they_are_equal_again():
    """Before that it cannot be told from a model that is called without its wrapper."""
    layout, found = RecordLayout.build(WEIGHTS), []
    health = _health(coupled=True, collectives=[0] * 40)
    for step, pairs in enumerate((EQUAL, APART, EQUAL, APART)):
        found.append(_rows(health, layout, [[x * (1 + step) for x in mine] for mine in pairs], step)[:, 1].tolist())
    assert min(found[1]) > 0 and found[2] == [0, 0] and np.isnan(found[3]).all()


def test_ranks_that_step_on_their_own_for_long_and_call_nothing_are_a_mistake():
    steps = (0, EQUAL), (5, APART), (1000, APART), (1100, APART)
    assert _local(*steps, collectives=[0] * 1200)[0][2:] == [[ALONE] * 2, [UNKNOWN] * 2]
    often = [step % 20 == 0 for step in range(1200)]
    assert _local(*steps, collectives=often)[0][3] == [ALONE] * 2, "an average may not have been looked at"


def test_ranks_that_average_in_each_step_and_differ_once_are_a_fault_and_others_step_on_their_own():
    """Gradients are averaged by two collectives. After that there is none, or the loss is averaged by one."""
    calm = [(step, EQUAL) for step in range(0, 96, 16)]
    for later, told in ((2, UNKNOWN), (0, ALONE), (1, ALONE)):
        found, averaged = _local(*calm, (96, APART), collectives=[2] * 90 + [later] * 10)
        assert found[-1] == [told] * 2 and not averaged


@pytest.mark.parametrize("coupled", [True, False])
def test_weights_that_were_never_equal_are_said_to_be_that(coupled):
    layout = RecordLayout.build(WEIGHTS)
    health = _health(coupled=coupled)
    told = []
    for step in range(6):
        _rows(health, layout, [(1, 2), (3, 4)] if step < 5 else [(3, 3), (3, 3)])
        told.append(health.never_equal)
    assert told == [not coupled and 3 <= step < 5 for step in range(6)]


def test_bits_that_no_sum_shows_are_told_of_weights_that_stay_equal_while_they_change():
    """Of three ranks with the rank; where only equal arithmetic keeps ranks equal, as rounding."""
    layout, found = RecordLayout.build(WEIGHTS), {}
    for coupled in (True, False):
        health = _health(coupled=coupled)
        first = _rows(health, layout, [(1, 2), (1, 2), ((7, 1), 2)])[0]
        for value in (3, 4, 5, 6):
            assert not _rows(health, layout, [(value, 2)] * 3)[:, 1].any()
        found[coupled] = _rows(health, layout, [(8, 2), ((9, 8), 2), (8, 2)])[0].tolist()
        assert first.tolist() == [3, 0, -1] if coupled else np.isnan(first).all()
    assert found == {True: [3, 2.0**-24, 1], False: [3, 0, -1]}


def test_bits_of_frozen_weights_are_told_at_the_second_look():
    layout = RecordLayout.build(WEIGHTS)
    health = _health()
    found = [_rows(health, layout, [(3, 2), ((value, 3), 2)])[0].tolist() for value in (3000, 3000, 7, 7)]
    assert found == [[2, 0, -1]] * 3 + [[2, 2.0**-24, 1]]


def test_of_two_ranks_it_is_the_one_that_left_what_both_had():
    layout = RecordLayout.build(WEIGHTS)
    health = _health()
    for value in (1, 2, 3, 4):
        _rows(health, layout, [(value, 2), (value, 2)])
    for _ in range(2):
        a, b = _rows(health, layout, [((9, 4), 2), (4, 2)])
        assert a.tolist() == [2, 2.0**-24, 0] and b.tolist() == [2, 0, -1]


def _of_buffer(*steps):
    """The differences that are found in a buffer that has these checksums on each rank, step after step."""
    layout = RecordLayout.build((BUFFER,))
    health = _health(layout)
    return [_rows(health, layout, [((value, 1.0),) for value in ranks])[0].tolist() for ranks in steps]


def test_a_buffer_that_never_changes_is_told_when_it_stays_another_one():
    calm, told = [3, 0, -1], [3, 2.0**-24, 2]
    found = _of_buffer([5, 5, 5], [5, 5, 5], [5, 5, 6], [5, 5, 6], [5, 5, 6], [5, 5, 5])
    assert found[:2] == [calm] * 2 and np.isnan(found[2]).all() and found[3:] == [told, told, calm]
    assert _of_buffer([5, 5], [5, 6], [5, 6])[2] == [2, 2.0**-24, 1]


def test_a_buffer_that_all_ranks_change_alike_is_told_at_once():
    assert _of_buffer([1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4], [5, 9, 5])[4] == [3, 2.0**-24, 1]


def test_a_buffer_of_a_ranks_own_data_is_not_compared():
    """From the start, and one that ranks begin to write later: statistics that were frozen."""
    assert np.isnan(_of_buffer([1, 2], [3, 4], [5, 6])).all()
    found = _of_buffer([5, 5], [5, 5], [6, 7], [8, 9], [10, 11], [10, 11])
    assert found[:2] == [[2, 0, -1]] * 2 and np.isnan(found[2:]).all()


def test_ranks_that_step_on_their_own_are_no_replicas():
    layout = RecordLayout.build(WEIGHTS)
    health = _health()
    health.replicas = False
    assert np.isnan(_rows(health, layout, [(1, 2), (3, 2)])).all()


def test_extremes_and_their_ranks():
    """Busy time, loss, non-finite counts and minus the loss of three ranks; the third measured no loss."""
    loss, activation = Accumulator("loss_source", "function", "mean"), Accumulator("activation", "a", "moments")
    layout = RecordLayout.build((BUSY_SOURCE, loss, activation))
    rows = [[1, 0.1, 2, 4.0, 0, 8, 1, 0, 1], [1, 0.3, 2, 8.0, 0, 8, 1, 5, 1], [1, 0.2, 0, 0, 0, 8, 1, 0, 1]]
    busy, losses, bad, minus = _merged(_health(layout), np.array(rows))[:20].reshape(-1, 5)
    assert busy == pytest.approx([3, 0.6, 0.3, 1, 0.1])
    assert losses == pytest.approx([2, 6.0, 4.0, 1, 2.0])
    assert bad.tolist() == [3, 5, 5, 1, 0]
    assert minus == pytest.approx([2, -6.0, -2.0, 0, -4.0]), "the smallest loss is that of rank 0"


@pytest.mark.parametrize(("other", "alike"), [(4.0, 1.0), (float(np.nextafter(np.float32(4), 5)), 0.0)])
def test_ranks_with_data_of_their_own_have_other_losses(other, alike):
    """The third rank measured none. Of ranks that share their data nothing is said."""
    layout = RecordLayout.build((Accumulator("loss_source", "function", "mean"),))
    rows, health = np.array([[2, 8.0, 0], [2, 2 * other, 0], [0, 0, 0]]), _health(layout)
    assert np.isnan(_merged(health, rows)[20:22]).all()
    health.own_data = True
    assert _merged(health, rows)[20:22].tolist() == [1.0, alike]
    assert np.isnan(_merged(health, rows[:1])[20:22]).all(), "one rank is not compared"


def test_what_compares_ranks_is_known_by_its_tap():
    """A pipeline leaves it out of what its stages measure."""
    assert all(a.tap.startswith(COMPARING) for a in _health().sources)


def test_a_loss_made_of_gathered_outputs_is_one_on_all_ranks_and_their_data_are_not():
    """Activations are measured now and then; what they showed last holds until then."""
    loss, activation = Accumulator("loss_source", "function", "mean"), Accumulator("activation", "a", "moments")
    layout = RecordLayout.build((loss, activation))
    health = _health(layout)
    health.own_data = True

    def alike(*sums_of_squares):
        rows = np.zeros((len(sums_of_squares), layout.width))
        for row, value in zip(rows, sums_of_squares, strict=True):
            row[layout.start(loss) : layout.start(loss) + 2] = 2, 8.0
            row[layout.start(activation) : layout.start(activation) + 2] = (0, 0) if value is None else (4, value)
        return _merged(health, rows)[21]

    assert [alike(None, None), alike(3.0, 3.0), alike(None, None)] == [1.0, 1.0, 1.0]
    assert [alike(3.0, 3.5), alike(None, None), alike(3.0, 3.0)] == [0.0, 0.0, 1.0]


def test_where_every_rank_counted_non_finite_values_the_first_is_not_known():
    layout = RecordLayout.build((Accumulator("activation", "a", "moments"),))
    assert _merged(_health(layout), np.array([[8, 1, 2, 1], [8, 1, 5, 1.0]]))[10:15].tolist() == [2, 7, 5, -1, 2]


def test_one_rank_is_not_compared():
    layout = RecordLayout.build((BUSY_SOURCE, *WEIGHTS))
    assert np.isnan(_merged(_health(layout), np.ones((1, layout.width)))).all()
    assert len(_health(layout).absent) == 20 + 2 + 6
