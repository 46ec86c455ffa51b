"""The report benchmark: its declarations, its arithmetic on made-up runs, and a few real cases."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.reports import run
from benchmarks.reports.case import MISSING, Outcome, Trial
from benchmarks.reports.cases import CASES
from benchmarks.reports.checks import hurt_step
from benchmarks.reports.healthy import WORKLOADS
from benchmarks.reports.page import page
from benchmarks.reports.verdicts import Alarm, Result, Said, episodes, first_found
from stabwatch.alerts.conditions import CONDITIONS
from stabwatch.alerts.root_causes import ROOT_CAUSES

KNOWN = {*CONDITIONS, *(cause.name for cause in ROOT_CAUSES)}
by_name = {case.name: case for case in CASES}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_there_are_enough_cases_and_each_says_what_is_needed():
    assert len(CASES) >= 40 and len(by_name) == len(CASES)
    for case in CASES:
        assert case.mechanism.endswith(".") and case.source and case.shown_by and case.causes, case.name
        assert 0 <= case.fault < case.steps and 100 <= case.steps <= 400, case.name


def test_every_accepted_cause_is_in_the_catalogue_or_is_declared_missing():
    used = {cause for case in CASES for cause in case.causes}
    assert used - KNOWN <= set(MISSING)
    assert not KNOWN & set(MISSING), "a condition that exists is not missing: take it out of MISSING"
    assert set(MISSING) <= used, "no case accepts it"


def test_there_are_enough_healthy_workloads():
    assert len(WORKLOADS) >= 30 and len({w.name for w in WORKLOADS}) == len(WORKLOADS)
    assert sum(w.steps for w in WORKLOADS) >= 20_000
    assert all(w.about for w in WORKLOADS)


def test_the_hurt_step_is_where_the_loss_leaves_its_twin():
    twin = [5.0 - i / 100 for i in range(200)]
    assert hurt_step(twin, twin) is None
    assert hurt_step([*twin[:50], *[6.0] * 150], twin) in range(50, 56)
    assert hurt_step([*twin[:90], math.nan, *twin[91:]], twin) == 90
    healed = [*twin[:100], *[9.0] * 20, *twin[120:]]
    assert hurt_step(healed, twin) is None, "for good"
    assert hurt_step(healed, twin, fault=100) in range(100, 106), "a late fault may heal"


def test_what_the_twin_also_raises_and_what_comes_before_the_fault_is_not_found():
    early, shared, own = (Alarm("A", "warning", s, s) for s in (10, 60, 90))
    assert first_found([early, shared, own], [Alarm("A", "warning", 65, 65)], fault=50) == own
    assert first_found([early], [], fault=50) is None
    assert first_found([shared], [Alarm("B", "warning", 60, 60)], fault=50) == shared
    assert episodes([5, 6, 20, 60, 61]) == [5, 60]


def test_a_right_cause_needs_a_finding_and_its_place_a_prefix():
    case = by_name["row_fully_masked"]
    said = Said(cause="NonFiniteForward", layers=("blocks.0.attention",))
    alarm = Alarm("NonFinite", "critical", 80, 80)
    result = Result(case, True, 80, alarm, said, Said(), 0, 130, 130)
    assert result.right and result.where_right and result.lead == 0
    nothing = Result(case, True, 80, None, said, Said(), 0, 130, 130)
    assert not nothing.right and not nothing.where_right and nothing.lead is None
    elsewhere = Result(case, True, 80, alarm, Said(cause="NonFinite", layers=("blocks.10",)), Said(), 0, 130, 130)
    assert not elsewhere.right and elsewhere.where_right is False


@pytest.mark.parametrize("name", ["nan_in_data", "eval_for_good", "adapters_stay_zero", "norm_of_zero_gradient"])
def test_the_fault_shows_and_the_twin_is_healthy(name):
    case = by_name[name]
    broken, twin = (Trial(bad, case.steps).run(case.train) for bad in (True, False))
    assert case.check(broken, twin)
    assert not case.check(twin, twin)


def test_a_run_is_the_same_each_time_and_with_and_without_stabwatch(tmp_path):
    case = by_name["double_softmax"]
    plain, again = (Trial(True, 100).run(case.train) for _ in range(2))
    watched = Trial(True, 100, tmp_path).run(case.train)
    assert plain.losses == again.losses == watched.losses
    assert [folder.parent for folder in watched.folders] == [tmp_path]
    watched.save(tmp_path / "outcome.json")
    assert Outcome.load(tmp_path / "outcome.json") == watched


def test_a_case_runs_from_end_to_end_and_is_written_down(tmp_path, capsys):
    file = tmp_path / "reports.md"
    argv = ["--default", "--cases", "--only", "nan_in_data", "--keep", str(tmp_path / "kept"), "--write", str(file)]
    assert run.main(argv) == 0
    printed, text = capsys.readouterr().out, file.read_text(encoding="utf-8")
    assert "nan_in_data" in printed and "| default | 1 / 1 |" in printed
    assert "### nan_in_data" in text and by_name["nan_in_data"].mechanism in text
    again = run.run_case(by_name["nan_in_data"], "default", tmp_path / "kept")
    assert again.found is not None and again.found.name == "NonFinite"
    assert page("x", {"default": [again]}, {"default": []}, 1.0).count("### nan_in_data") == 1
