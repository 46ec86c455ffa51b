"""Real trainings: healthy ones raise nothing, the demo's unstable one is caught early and named."""

from __future__ import annotations

import pytest
import torch

from benchmarks import calibration
from benchmarks.zoo import HEALTHY, UNSTABLE, cnn, gpt, gpt_hot, mlp, regression, train
from stabwatch.analysis import analyze
from tests.sampling import sample

QUICK = {gpt: 150, cnn: 200, mlp: 300, regression: 300}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are small
    yield
    torch.set_num_threads(before)


def _alerts(make, path, steps, **settings):
    train(make, 0, path, steps, **settings)
    return [(a.rule, a.severity, a.layer, a.step) for a in analyze(path).alerts if a.severity != "info"]


@pytest.mark.parametrize("make", sample(QUICK, mlp, regression), ids=lambda f: f.__name__)
def test_a_healthy_run_raises_nothing(make, tmp_path):
    assert _alerts(make, tmp_path / "run", QUICK[make], every_step=True) == []


def test_the_unstable_demo_is_caught_long_before_its_end(tmp_path):
    losses = train(gpt_hot, 0, tmp_path / "run", 60, every_step=True)
    analysis = analyze(tmp_path / "run")
    assert analysis.exit_code == 1
    assert analysis.diagnosis.causes[0].name == "AttentionLogitGrowth"
    first = min(a.step for a in analysis.alerts if a.severity == "critical")
    assert first < 40 and losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("density", [{"every_step": True}, {}], ids=["every step", "default"])
@pytest.mark.parametrize("make", HEALTHY, ids=lambda f: f.__name__)
def test_a_long_healthy_run_raises_nothing(make, density, tmp_path):
    assert _alerts(make, tmp_path / "run", 300, **density) == []


@pytest.mark.slow
def test_the_quick_calibration_finds_nothing_wrong(capsys):
    """Of the trainings of the other tests, a healthy and an unstable one."""
    assert calibration.main(["--quick", "--only", "mlp"]) == 0
    said = capsys.readouterr().out
    assert "| rule | nearness |" in said and "| mlp_diverges | 0 | every step |" in said


@pytest.mark.slow
@pytest.mark.parametrize("make", UNSTABLE, ids=lambda f: f.__name__)
def test_an_unstable_run_is_caught_and_named(make, tmp_path):
    train(make, 0, tmp_path / "run", every_step=True)
    assert analyze(tmp_path / "run").diagnosis.causes[0].name in UNSTABLE[make]
