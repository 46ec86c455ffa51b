"""From findings to a verdict: causes in order, what could not be seen, and the data for scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabwatch.analysis.causes import KNOWN
from stabwatch.analysis.findings import Kind
from stabwatch.analysis.readers.log import Log, LogRun, Remark
from stabwatch.analysis.remedies import RULES, remedies
from stabwatch.analysis.verdict import examine, examine_run
from tests.analysis.curves import run_of

LOSS = 2 + 5 / (1 + np.arange(200) / 5)


def sick() -> LogRun:
    loss, norm = LOSS.copy(), np.ones(200)
    norm[150:] = 500
    loss[170:] += 20
    loss[190:] = np.nan
    return run_of(loss=loss, grad_norm=norm)


def test_causes_come_by_onset_with_the_live_runbooks():
    diagnosis = examine_run(sick()).diagnosis
    assert [cause.name for cause in diagnosis.causes] == ["GradientNormExplosion", "LossDivergence", "NonFinite"]
    assert [cause.since_step for cause in diagnosis.causes] == [150, 170, 190]
    assert diagnosis.causes[0].runbook_url == KNOWN["GradientNormExplosion"].runbook_url
    assert diagnosis.causes[0].confidence > diagnosis.causes[1].confidence
    assert "line 151" in diagnosis.causes[0].evidence[0]
    assert diagnosis.verdict.startswith("The gradient norm explodes at step 150")


def test_a_learning_rate_that_jumped_comes_first():
    loss, rate = LOSS.copy(), np.full(200, 1e-3)
    rate[150:], loss[155:] = 1e-1, 40
    causes = examine_run(run_of(loss=loss, learning_rate=rate)).diagnosis.causes
    assert [cause.name for cause in causes] == ["LearningRateSpike", "LossDivergence"]
    rate[:] = 1e-3
    rate[50:] = 1e-1
    causes = examine_run(run_of(loss=loss, learning_rate=rate)).diagnosis.causes
    assert [cause.name for cause in causes] == ["LossDivergence"]


def test_every_trouble_has_a_remedy():
    for kind in get_args(Kind):
        assert RULES.get(kind, "LossSpike") in KNOWN
    silent = {"early_hump", "loss_outliers", "gradient_outliers", "loss_scale_search", "stall", "restart", "resume"}
    silent |= {"learning_rate_zero"}
    assert {kind for kind in get_args(Kind) if kind not in RULES and not remedies(kind).advice} == silent


def test_every_kind_is_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "analyze.md").read_text()
    assert [kind for kind in get_args(Kind) if f"`{kind}`" not in page] == []


def test_a_calm_run():
    examined = examine_run(run_of(loss=LOSS, steps=range(0, 2000, 10)))
    assert examined.calm
    assert examined.diagnosis.verdict == "Nothing went wrong that this log shows, in 200 records, steps 0 to 1,990."


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (run_of(loss=LOSS), "No gradient norm"),
        (run_of(loss=LOSS), "No learning rate"),
        (run_of(loss=LOSS), "No times"),
        (run_of(loss=LOSS), "Nothing by layer"),
        (run_of(loss=LOSS, steps=range(0, 2000, 10)), "One record in 10 steps"),
        (run_of(loss=LOSS, grad_norm=[0.0] * 200), "it was not measured"),
        (run_of(loss=LOSS[:9]), "9 records only"),
        (run_of(eval_loss=LOSS), "a validation loss, was judged in its place"),
        (run_of(learning_rate=LOSS), "No training loss in this log."),
        (run_of(loss=LOSS, other__policy_loss=LOSS), "whether the loss falls was not judged"),
        (LogRun(**{**vars(run_of(loss=LOSS)), "step_unit": "ordinal"}), "its records were numbered"),
    ],
)
def test_what_a_log_cannot_show_is_said(run, words):
    assert any(words in line for line in examine_run(run).limitations)


def test_a_log_without_a_loss_is_not_called_healthy():
    assert "There is no loss in this log" in examine_run(run_of(learning_rate=LOSS)).diagnosis.verdict
    assert examine_run(run_of()).diagnosis.verdict == "No record of training was found."


def test_the_data_for_scripts_is_strict_json():
    report = examine(Log(Path("x.log"), "text", (sick(), run_of(loss=LOSS)), ("a note",)))
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (data["schema"], data["kind"], data["calm"]) == (1, "log", False)
    assert [run["calm"] for run in data["runs"]] == [False, True]
    assert data["runs"][0]["findings"][0]["kind"] == "gradient_explosion"
    assert report.exit_code == 1


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
    remarks = draw(
        st.lists(st.builds(Remark, kinds, st.none() | st.integers(0, 99), st.integers(1, 99), st.text(), NUMBERS))
    )
    made = run_of(remarks, sorted(steps) if draw(st.booleans()) else steps, **columns)
    return LogRun(**{**vars(made), "times": times if len(made.steps) == length else made.times})


@settings(max_examples=150, deadline=None)
@given(any_run())
def test_whatever_a_log_holds_it_is_judged(run):
    json.dumps(examine_run(run).to_dict(), allow_nan=False)
