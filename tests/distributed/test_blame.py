"""Which rank: the rank with the fault is named, or it is said that it is not known (`benchmarks/which_rank.py`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.which_rank import KINDS, SETTINGS, TRIALS, verdict
from tests.processes import run_python

SAMPLE = (0, 3)
"""Seeds: a NaN, and a slow backward pass."""
RIGHT = 0.95


def _judged(out: Path, seeds, setting: str) -> list[dict]:
    only = ("--healthy", "0", "--short", "--setting", setting)
    command = ("-m", "benchmarks.which_rank", out, *only, "--seeds", *seeds)
    done = run_python(*command, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads((out / f"{setting}-{seed}.json").read_text()) for seed in seeds]


OTHERS = tuple(seed for seed in range(len(KINDS)) if seed not in SAMPLE)


@pytest.mark.parametrize("seeds", [SAMPLE, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["sample", "others"])
def test_the_rank_with_the_fault_is_named(seeds, tmp_path):
    judged = _judged(tmp_path, seeds, "default")
    assert [verdict(result) for result in judged] == ["right"] * len(seeds), judged


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("setting", SETTINGS)
def test_no_other_rank_is_named_in_seeded_trials(setting, tmp_path):
    found = [verdict(result) for result in _judged(tmp_path, range(TRIALS), setting)]
    assert "wrong" not in found and found.count("right") >= RIGHT * TRIALS, found
