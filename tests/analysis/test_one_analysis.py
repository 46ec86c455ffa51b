"""One analysis of every log: causes in order, what could not be seen, and the data for scripts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabwatch.alerts import RULES
from stabwatch.alerts.conditions import CONDITIONS
from stabwatch.analysis.analyze import document
from stabwatch.analysis.readers.log import LogRun, Remark
from tests.analysis.curves import analysed, run_of

ROOT = Path(__file__).parents[2]
LOSS = 2 + 5 / (1 + np.arange(200) / 5)


def sick() -> LogRun:
    loss, norm = LOSS.copy(), np.ones(200)
    norm[150:] = 500
    loss[170:] += 20
    loss[190:] = np.nan
    return run_of(loss=loss, grad_norm=norm)


def test_causes_come_by_onset_with_the_live_runbooks():
    diagnosis = analysed(sick()).diagnosis
    assert [cause.name for cause in diagnosis.causes] == ["GradientNormExplosion", "LossDivergence", "NonFinite"]
    assert [cause.since_step for cause in diagnosis.causes] == [150, 170, 190]
    assert diagnosis.causes[0].runbook_url == CONDITIONS["GradientNormExplosion"].runbook_url
    assert [cause.confidence for cause in diagnosis.causes] == ["likely", "likely", "possible"]
    assert "Line 151 of the log" in diagnosis.causes[0].evidence[0]
    assert diagnosis.verdict.startswith("The gradient norm explodes at step 150")


def test_a_learning_rate_that_jumped_comes_first():
    loss, rate = LOSS.copy(), np.full(200, 1e-3)
    rate[150:], loss[155:] = 1e-1, 40
    causes = analysed(run_of(loss=loss, learning_rate=rate)).diagnosis.causes
    assert [cause.name for cause in causes] == ["LearningRateSpike", "LossDivergence", "LossStuck"]
    rate[:] = 1e-3
    rate[50:] = 1e-1
    causes = analysed(run_of(loss=loss, learning_rate=rate)).diagnosis.causes
    assert [cause.name for cause in causes] == ["LossDivergence", "LossStuck"]


def _named_by_detectors() -> set[str]:
    """Names of conditions in the source of the detectors."""
    sources = (ROOT / "stabwatch" / "analysis" / "detectors").glob("*.py")
    lines = (line for path in sources for line in path.read_text().splitlines() if "condition=" in line)
    return {name for line in lines for name in re.findall(r'"([A-Z]\w+)"', line)}


def test_every_problem_has_a_remedy():
    assert {rule.name for rule in RULES} <= set(CONDITIONS)
    silent = {"EarlyLossHump", "LossOutliers", "GradientNormOutliers", "LossScaleSearch", "TrainingPaused"}
    silent |= {"RunRestarted", "RunResumed", "LoggedError"}
    assert {name for name, condition in CONDITIONS.items() if not condition.remedy} == silent


def test_the_catalogue_knows_what_detectors_find():
    found = _named_by_detectors() | {"TrainingPaused"}
    assert found == {name for name, condition in CONDITIONS.items() if condition.detector}


def test_every_condition_of_a_detector_is_in_the_documentation():
    page = (ROOT / "docs" / "analyze.md").read_text()
    assert [name for name in sorted(_named_by_detectors()) if f"`{name}`" not in page] == []


def test_every_runbook_is_there():
    for name, condition in CONDITIONS.items():
        assert not condition.remedy or (ROOT / "docs" / "runbooks" / f"{name}.md").is_file(), name
        assert bool(condition.runbook_url) == bool(condition.remedy)


def test_a_calm_run():
    found = analysed(run_of(loss=LOSS, steps=range(0, 2000, 10)))
    assert found.calm
    assert found.diagnosis.verdict == "This log shows no problem, in 200 records, steps 0 to 1,990."


def test_a_log_of_evaluations_without_a_loss_says_so():
    run = run_of(**{"other__eval/reward": [3.0, 4.0, 5.0]})
    found = analysed(replace(run, steps=run.steps[:0], lines=run.lines[:0], times=run.times[:0]))
    assert found.diagnosis.verdict == (
        "This log has only evaluations ('eval/reward', 3 records), and no loss: it is not known how training went."
    )


def test_a_log_of_rewards_alone_is_judged_by_them():
    found = analysed(run_of(other__reward=[i / 9 for i in range(200)], other__length=[7.0] * 200))
    assert found.diagnosis.verdict == (
        "This log has no loss, and its reward ('reward') shows no problem, in 200 records, steps 0 to 199."
    )


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (run_of(loss=LOSS), "No gradient norm"),
        (run_of(loss=LOSS), "No learning rate"),
        (run_of(loss=LOSS), "No times"),
        (run_of(loss=LOSS), "No signals by layer"),
        (run_of(loss=LOSS, steps=range(0, 2000, 10)), "One record every 10 steps"),
        (run_of(loss=LOSS, grad_norm=[0.0] * 200), "it was not measured"),
        (run_of(loss=LOSS[:9]), "Only 9 records"),
        (run_of(eval_loss=LOSS), "the validation loss 'eval_loss' was judged instead"),
        (
            run_of(learning_rate=LOSS),
            "no name of its columns is that of a loss (learning_rate).",
        ),
        (run_of(loss=LOSS, other__policy_loss=LOSS), "it was not judged whether the loss falls"),
        (LogRun(**{**vars(run_of(loss=LOSS)), "step_unit": "ordinal"}), "its records were numbered"),
    ],
)
def test_what_a_log_cannot_show_is_said(run, words):
    assert any(words in line for line in analysed(run).limitations)


def test_a_log_without_a_loss_is_not_called_healthy():
    assert "This log has no loss" in analysed(run_of(learning_rate=LOSS)).diagnosis.verdict
    assert analysed(run_of()).diagnosis.verdict == "No training record was found."


def test_the_data_for_scripts_is_strict_json():
    runs = [analysed(run, "x.log", ("a note",)) for run in (sick(), run_of(loss=LOSS))]
    data = json.loads(json.dumps(document(runs, [(Path("y.log"), "is empty")]), allow_nan=False))
    assert (data["schema_version"], data["calm"]) == (2, False)
    assert [run["calm"] for run in data["runs"]] == [False, True]
    assert data["runs"][0]["incidents"][0]["condition"] == "GradientNormExplosion"
    assert data["unreadable"] == [{"path": "y.log", "error": "is empty"}]
    assert runs[0].exit_code == 1


COLUMNS = ("loss", "eval_loss", "grad_norm", "learning_rate", "loss_scale", "nan_steps", "step_seconds", "throughput")
NUMBERS = st.floats(width=64) | st.sampled_from([0.0, 1.0, 2.0, 1e-300, 1e300, float("nan"), float("inf")])


@st.composite
def any_run(draw: st.DrawFn) -> LogRun:
    length = draw(st.integers(0, 60))
    steps = draw(st.lists(st.integers(-5, 200) | st.integers(0, 2**40), min_size=length, max_size=length))
    columns = {
        role: draw(st.lists(NUMBERS | st.none(), min_size=length, max_size=length))
        for role in draw(st.sets(st.sampled_from(COLUMNS)))
    }
    times = np.array(draw(st.lists(NUMBERS, min_size=length, max_size=length)), dtype=np.float64)
    kinds = st.sampled_from(["overflow", "nan_message", "error", "checkpoint"])
    texts = st.text("lossNaN 0.1=:é\x1b", max_size=20)  # the alphabet of all characters takes seconds to build
    remarks = draw(
        st.lists(st.builds(Remark, kinds, st.none() | st.integers(0, 99), st.integers(1, 99), texts, NUMBERS))
    )
    made = run_of(remarks, sorted(steps) if draw(st.booleans()) else steps, **columns)
    return LogRun(**{**vars(made), "times": times if len(made.steps) == length else made.times})


@settings(max_examples=8, deadline=None)
@given(any_run())
def test_whatever_a_log_holds_it_is_judged(run):
    json.dumps(analysed(run).to_dict(), allow_nan=False)


FARTHEST = [0.0, 1.0, 5e-324, 1e-300, 1e300, 1.7e308, -1.7e308, float("nan"), float("inf"), -float("inf")]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(FARTHEST), min_size=2, max_size=30), st.randoms(use_true_random=False))
def test_numbers_at_the_ends_of_the_range_are_judged(values, order):
    made = run_of(loss=values, reward=order.sample(values, len(values)))
    run = LogRun(**{**vars(made), "times": np.array(order.choices(values, k=len(made.steps)))})
    json.dumps(analysed(run).to_dict(), allow_nan=False)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(any_run())
def test_whatever_many_logs_hold_they_are_judged(run):
    json.dumps(analysed(run).to_dict(), allow_nan=False)
