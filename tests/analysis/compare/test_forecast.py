"""Power laws with prediction intervals: against scipy's own regression, by coverage, and where they are refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from stabwatch.analysis.compare.curve_set import load_curve_sets
from stabwatch.analysis.compare.forecast import Law, Point, forecast
from stabwatch.analysis.sources import open_sources
from stabwatch.runlog import Event
from tests.agent.synthetic import Log

SIZES = (1e4, 3e4, 1e5, 3e5, 1e6)


def points(rng, noise=0.1, rates=(1e-3, 1e-2), sizes=SIZES, a=0.5, b=0.5, c=1.0):
    return [
        Point(
            "r", n, rate, math.exp(math.log(a) + b * math.log(n) + c * math.log(rate) + noise * rng.standard_normal())
        )
        for n in sizes
        for rate in rates
    ]


def test_one_variable_agrees_with_linregress():
    mine = points(np.random.default_rng(0), rates=(1e-2,))
    law = Law(mine)
    x, y = np.log([p.parameters for p in mine]), np.log([p.value for p in mine])
    theirs = stats.linregress(x, y)
    (term,) = law.terms()
    half = stats.t.ppf(0.975, 3) * theirs.stderr
    assert (term.exponent, term.high - term.exponent) == pytest.approx((theirs.slope, half))
    assert law.r2 == pytest.approx(theirs.rvalue**2)
    new, n = math.log(1e7), len(x)
    s = math.sqrt(((y - theirs.intercept - theirs.slope * x) ** 2).sum() / (n - 2))
    width = stats.t.ppf(0.975, n - 2) * s * math.sqrt(1 + 1 / n + (new - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    value, low, high = (float(v[0]) for v in law.predict(parameters=np.array([1e7])))
    assert math.log(value) == pytest.approx(theirs.intercept + theirs.slope * new)
    assert (math.log(high / value), math.log(value / low)) == pytest.approx((width, width))


def test_ninety_five_of_a_hundred_intervals_hold_the_next_run():
    rng = np.random.default_rng(1)
    held = refused = 0
    for _ in range(600):
        try:
            law = Law(points(rng))
        except ValueError:  # it bends, by chance
            refused += 1
            continue
        (truth,) = points(rng, rates=(3e-2,), sizes=(1e7,))
        _, low, high = law.predict(parameters=np.array([1e7]), learning_rate=np.array([3e-2]))
        held += low[0] <= truth.value <= high[0]
    assert refused < 6 and 0.93 <= held / (600 - refused) <= 0.98


def test_where_a_limit_is_reached():
    law = Law(points(np.random.default_rng(2), noise=0.01))
    found = law.crossing(100.0, "parameters", {"learning_rate": 1e-2}, True)
    exact = (100 / (0.5 * 1e-2)) ** 2
    assert found.at == pytest.approx(exact, rel=0.1)
    assert found.first < found.at < found.last and found.beyond == pytest.approx(found.at / 1e6)
    near = law.crossing(1e-3, "parameters", {"learning_rate": 1e-2}, True)
    assert (near.at, near.beyond) == (1e4, 1.0), "before the first run"
    assert law.crossing(1e-8, "parameters", {"learning_rate": 1e-2}, False).at is None, "it grows, and never falls"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (points(np.random.default_rng(0))[:3], "3 runs have it, but a law over parameters .* needs at least 5"),
        (points(np.random.default_rng(0), sizes=(1e5,), rates=(1e-3,)) * 5, "do not differ in model size"),
        (points(np.random.default_rng(0), noise=3.0), "explains .* of its variation"),
        ([Point("r", n, 1e-2, n ** (0.1 * math.log(n))) for n in np.geomspace(1e3, 1e8, 8)], "is curved over"),
        ([Point("r", n, 1e-3 * n, n) for n in SIZES], "cannot be separated"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_words(given, reason):
    with pytest.raises(ValueError, match=reason):
        Law(given)


def test_from_run_logs(tmp_path):
    """Attention logits grow as size^0.5 * rate; the gradient RMS falls as size^-1, and epsilon stands in the log."""
    paths = []
    for size in (1e4, 1e5, 1e6):
        for rate in (1e-3, 1e-2):
            log = Log(tmp_path / f"{size:g}-{rate:g}", layers=["b"], model={"name": "GPT", "parameters": int(size)})
            log.folder.event(Event("optimizer", 1.0, 0, {"name": "AdamW", "groups": [{"lr": rate, "eps": 1e-6}]}))
            plain, peak = log.row, 10 * (size / 1e4) ** 0.5 * rate / 1e-2

            def row(step, log=log, plain=plain, peak=peak, rate=rate, size=size):
                values = plain(step)
                log.put(values, "host", "learning_rate", "host", last=rate)
                log.put(values, "attention", "b.attn", "attention_exact", max=peak)
                for site in log.weights:
                    log.put(values, "gradient", site, "moments", count=1, sumsq=1 / size**2, abs_max=1)
                return values

            log.row = row
            log.write(range(20))
            log.folder.close()
            paths.append(log.path)
    subjects = load_curve_sets(open_sources(paths))
    attention, gradient = forecast(subjects, parameters=1e8)
    assert not attention.refused and [t.exponent for t in attention.terms] == pytest.approx([0.5, 1.0], abs=1e-3)
    at = {(c.limit, c.fixed): c.at for c in attention.crossings if c.along == "parameters"}
    assert at[100.0, 1e-2] == pytest.approx(1e6, rel=0.01) and at[1e4, 1e-2] == pytest.approx(1e10, rel=0.01)
    assert attention.prediction.value == pytest.approx(10 * 100 * 10**-0.5, rel=0.01), "at the middle learning rate"
    (term, _) = gradient.terms
    assert term.exponent == pytest.approx(-1, abs=1e-3)
    assert {c.limit for c in gradient.crossings} == {1e-6}, "the logs name epsilon"
    assert next(c.at for c in gradient.crossings if c.along == "parameters") == pytest.approx(1e6, rel=0.01)
    assert any("only two values of the learning rate" in caution for caution in attention.cautions)
    json.dumps([attention.to_dict(), gradient.to_dict()], allow_nan=False)
    assert forecast(subjects, epsilon=1e-9)[1].crossings[0].limit == 1e-9
    assert all(one.refused for one in forecast(subjects[:2]))
