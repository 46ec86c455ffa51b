"""Which rank: at default settings, the rank with the fault is named, or it is said that it is not known."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stabwatch.analysis.analyze import Analysis, analyze
from tests.distributed.blame_job import KINDS, trial

ROOT = Path(__file__).parents[2]
SAMPLE, OTHERS = (0, 2), (1, 3, 4)
"""Seeds: a NaN and a slow rank; the other faults."""
TRIALS = 40
RIGHT = 0.95


def named(found: Analysis, kind: str) -> int | None:
    """The rank that the alert names; None for none, or where it says that it is not known."""
    alerts = [a for a in found.alerts if a.rule == KINDS[kind] and a.state == "firing"]
    if not alerts:
        return None
    if kind == "nan":
        rank = alerts[0].context.get("rank_nonfinite_worst", -1.0)
        return int(rank) if rank >= 0 else None
    told = re.search(r"[Rr]ank (\d+)", alerts[0].description)
    return int(told[1]) if told else None


def _judged(out: Path, seeds) -> dict[int, tuple[str, int, int | None]]:
    command = [sys.executable, "-m", "tests.distributed.blame_job", str(out), *map(str, seeds)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=True)
    found = {}
    for seed in seeds:
        kind, odd, _ = trial(seed)
        found[seed] = (kind, odd, named(analyze(out / str(seed)), kind))
    return found


@pytest.mark.parametrize("seeds", [SAMPLE, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["sample", "others"])
def test_the_rank_with_the_fault_is_named(seeds, tmp_path):
    judged = _judged(tmp_path, seeds)
    assert [rank for _, _, rank in judged.values()] == [odd for _, odd, _ in judged.values()], judged


@pytest.mark.slow
def test_no_other_rank_is_named_in_seeded_trials(tmp_path):
    judged = _judged(tmp_path, range(TRIALS))
    wrong = [entry for entry in judged.values() if entry[2] not in (None, entry[1])]
    right = [entry for entry in judged.values() if entry[2] == entry[1]]
    assert not wrong and len(right) >= RIGHT * TRIALS, judged
