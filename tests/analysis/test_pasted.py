"""Shapes of logs in public bug reports: what the label says is found, and healthy ones are left alone."""

from __future__ import annotations

import csv

import pytest

from benchmarks.logs_findings import PASTED, expected, found
from stabwatch.analysis import analyze_source, open_source

with open(PASTED / "index.tsv", newline="") as _file:
    CASES = list(csv.DictReader(_file, delimiter="\t"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_pasted_log_is_judged_as_labelled(case):
    runs = [analyze_source(source) for source in open_source(PASTED.parent / case["file"])]
    events = expected(case["label"])
    assert all(any(found(event, run) for run in runs) for event in events)
    problems = [i for run in runs for i in run.incidents if i.is_problem]
    assert bool(problems) == bool(events), [i.text for i in problems]


def test_half_of_them_are_healthy_and_each_has_its_source():
    healthy = sum(not expected(case["label"]) for case in CASES)
    assert len(CASES) >= 60 and 0.4 < healthy / len(CASES) < 0.6
    assert all(case["source"].startswith("https://github.com/") for case in CASES)


@pytest.mark.parametrize("name", ["icefall-jump", "fairseq-ppl-diverges"])
def test_a_cause_and_its_evidence_name_one_step(name):
    (run,) = [analyze_source(source) for source in open_source(PASTED / f"{name}.txt")]
    (cause,) = run.diagnosis.causes
    assert f"from step {cause.since_step}:" in cause.evidence[0]
