"""The detection benchmark: its arithmetic on made-up curves; a few real runs in half a minute."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.detection import __main__ as detection
from benchmarks.detection import score
from benchmarks.detection.case import Case
from benchmarks.detection.others import OTHERS, episodes
from benchmarks.detection.runs import Trained, hurt, pairs
from benchmarks.detection.unstable import UNSTABLE
from stabwatch.alerts.catalogue import BY_NAME
from stabwatch.alerts.root_causes import ROOT_CAUSES


def _run(losses, twin, fault=None):
    return Trained(Case("x", None, "A", ("BadBatch",), fault), 0, None, np.array(losses), None, np.array(twin))


def test_a_loss_is_hurt_where_it_leaves_its_twin_for_good():
    twin = list(np.linspace(5, 2, 400))
    spike = [*twin[:50], *[9.0] * 20, *twin[70:]]
    assert hurt(_run(spike, twin)) is None, "it came back"
    assert hurt(_run(spike, twin, fault=40)) == 50
    assert hurt(_run([*twin[:100], *[5.0] * 300], twin)) is not None
    assert hurt(_run([*twin[:100], *[np.nan] * 300], twin)) == 100


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_see_an_explosion_and_are_silent_on_a_calm_curve(name):
    rng = np.random.default_rng(0)
    norms = 1 + 0.02 * rng.standard_normal(400)
    losses = 3 + 0.02 * rng.standard_normal(400)
    calm = OTHERS[name](losses, norms)
    assert name.startswith("ZClip") or calm == []
    losses[300:], norms[300:] = 30.0, 100.0
    assert 300 in OTHERS[name](losses, norms) or 304 in OTHERS[name](losses, norms)


def test_the_others_get_the_least_threshold_that_rings_as_seldom_as_is_borne(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(score, "norms_of", lambda log, length: 1 + 0.02 * rng.standard_normal(length))
    losses = 3 + 0.02 * rng.standard_normal(2000)
    losses[500::300] += 0.3  # fifteen standard deviations
    runs = [Trained(Case("x", None, "A"), 0, None, losses)]
    quiet, loud = (score.calibrated(runs, budget)["SpikeScore (OLMo)"] for budget in (0.0, 1e4))
    assert loud < 1 < quiet
    found = OTHERS["SpikeScore (OLMo)"]
    assert found(losses, losses, quiet) == [] and found(losses, losses, quiet / 2**0.5)


def test_alarms_that_are_close_are_one():
    assert episodes([5, 6, 20, 60, 61], 20) == [5, 60]


def test_halves_have_their_own_cases_and_seeds_and_every_cause_exists():
    a, b = ({(case.name, seed) for case, seed in pairs(half)} for half in "AB")
    assert not {name for name, _ in a} & {name for name, _ in b}
    assert not {seed for _, seed in a} & {seed for _, seed in b}
    known = set(BY_NAME) | {cause.name for cause in ROOT_CAUSES}
    for case in UNSTABLE:
        assert set(case.causes) <= known, case.name
    for half in "AB":
        assert len({c.name for c, _ in pairs(half) if c.causes}) >= 16


@pytest.mark.slow  # `make detect` runs more of them
def test_two_real_runs_are_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detection, "QUICK", ("mlp_louder", "mlp"))
    assert detection.main(["--quick", "--keep", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| stabwatch | 1.00 |" in out and "AdamSecondMomentStale" in out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_benchmark_finds_nothing_wrong(tmp_path):
    assert detection.main(["--quick", "--keep", str(tmp_path)]) == 0
