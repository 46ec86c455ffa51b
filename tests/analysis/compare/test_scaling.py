"""The loss over the model size, the transfer of the learning rate and the ladder: against what they were made from."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from stabwatch.analysis.compare.curve_set import load_curve_sets
from stabwatch.analysis.compare.saturating import fit
from stabwatch.analysis.compare.scaling import ladder, loss_law, scaling, transfer
from stabwatch.analysis.sources import open_sources
from tests.agent.synthetic import Log

SIZES = np.geomspace(1e6, 1e9, 8)


def law(n, noise=0.0, seed=0):
    return (400 * n**-0.3 + 1.7) * np.exp(noise * np.random.default_rng(seed).standard_normal(np.shape(n)))


def test_the_constants_are_those_of_the_law():
    found = fit(SIZES, law(SIZES))
    assert (found.exponent, found.floor, found.scale) == pytest.approx((-0.3, 1.7, 400), rel=0.01)
    assert abs(found.held_out) < 1e-3 and found.at(1e10)[0] == pytest.approx(law(1e10), rel=1e-3)


def test_an_outlier_counts_little_and_intervals_hold_the_truth():
    y = law(SIZES, 0.003)
    y[2] *= 1.2
    found = fit(SIZES, y)
    value, low, high = found.at(1e10)
    assert low <= law(1e10) <= high and value == pytest.approx(law(1e10), rel=0.05)
    assert found.floors[0] <= 1.7 <= found.floors[1] and found.exponents[0] <= -0.3 <= found.exponents[1]


def test_a_floor_that_is_none_and_a_bend_at_the_end():
    assert fit(SIZES, 50 * SIZES**-0.2).floor < 0.02
    y = law(SIZES)
    y[-1] *= 1.1  # the largest run is worse than the law of the others
    assert fit(SIZES, y).held_out == pytest.approx(math.log(1.1), rel=0.1)


@pytest.mark.parametrize(
    ("x", "y", "reason"), [(SIZES[:3], law(SIZES[:3]), "needs at least 4"), (SIZES, 1 / law(SIZES), "does not fall")]
)
def test_where_there_is_no_law(x, y, reason):
    with pytest.raises(ValueError, match=reason):
        fit(x, y)
    assert reason in loss_law({n: {1e-3: v} for n, v in zip(x, y, strict=True)}).refused


def sweep(best, excess=0.1):
    """Losses by size and rate: a parabola in ln(rate) around `best(size)`."""
    rates = np.geomspace(1e-4, 1e-1, 9)
    return {n: {r: law(n) + excess * math.log(r / best(n)) ** 2 for r in rates} for n in SIZES[::2]}


def test_the_best_rate_its_drift_and_what_a_transfer_costs():
    still = transfer(sweep(lambda n: 3e-3))
    assert still.drift == pytest.approx(0, abs=1e-6) and max(r.excess for r in still.rungs[:-1]) < 1e-9
    moving = transfer(sweep(lambda n: 3e-3 * (n / 1e7) ** -0.25))
    assert moving.drift == pytest.approx(-0.25, rel=0.02) and not moving.fast
    first, second = moving.rungs[:2]
    away = 0.25 * math.log(second.parameters / first.parameters)
    assert first.excess == pytest.approx(0.1 * away**2, rel=0.05)
    assert first.gap == pytest.approx(law(first.parameters) - law(second.parameters)) and math.isnan(
        moving.rungs[-1].gap
    )
    near = transfer(sweep(lambda n: 3e-3 * math.exp(-((1e6 / n) ** 0.5)), 0.3))
    assert near.fast, "the best rate settles faster than the loss"
    edge = {n: {1e-3: 3.0, 1e-2: 2.0, 1e-1: 1.0} for n in SIZES}
    assert transfer(edge) is None, "the best rate was not between the others"


def run(folder, size, curve):
    log = Log(folder / f"{size:g}", layers=["b"], model={"name": "GPT", "parameters": int(size)})
    plain = log.row

    def row(step):
        values = plain(step)
        log.put(values, "host", "learning_rate", "host", last=1e-3)
        value = curve(step)
        log.put(values, "loss", "", "mean", sum=value)
        return values

    log.row = row
    log.write(range(200))
    log.folder.close()
    return log.path


def test_a_run_that_leaves_its_ladder(tmp_path):
    def curve(size, worse=lambda step: 0.0):
        draw = np.random.default_rng(int(size) % 97)
        wobble = 0.01 * draw.standard_normal()
        return lambda step: (law(size) + 5 / (1 + step / 10)) * math.exp(wobble) + worse(step)

    small = [run(tmp_path, n, curve(n)) for n in SIZES[:6]]
    good = run(tmp_path, 1e9, curve(1e9))
    bad = run(tmp_path, 1.1e9, curve(1.1e9, lambda step: 0.5 if step >= 100 else 0.0))
    subjects = load_curve_sets(open_sources([*small, good]))
    found = ladder(subjects)
    assert found.left is None and found.low < found.value < found.high and found.smaller == 6
    found = ladder(load_curve_sets(open_sources([*small, bad])))
    assert 95 <= found.left <= 130 and found.value > found.high
    assert ladder(subjects[:4]) is None, "three smaller runs are too few"
    whole = scaling(subjects, parameters=1e10)
    assert not whole.loss.refused and whole.loss.prediction is not None and whole.transfer is None
    json.dumps(whole.to_dict(), allow_nan=False)
