"""The overhead benchmark runs, compares every variant, and writes what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "overhead.py"
FAIR = "stabwatch, the naive hooks' numbers"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_quick_mode_writes_a_row_for_every_variant(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "overhead.json").read_text())
    rows = found["variants"]
    assert {"bare", "bare again", "stabwatch", "stabwatch, with agent", "stabwatch, every step"} <= set(rows)
    assert {"naive hooks", "composer-style activations", "composer-style, with norms"} <= set(rows)
    assert ("wandb.watch" in rows) == ("wandb" not in done.stderr)
    assert rows["bare"]["ratio"] == 1.0
    assert all(row["step_ms"] > 0 for row in rows.values())
    table = (tmp_path / "overhead.md").read_text()
    assert all(f"| {name} |" in table for name in rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_naive_hooks_and_stabwatch_read_the_same_tensors(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--results", str(tmp_path), "--only", "naive hooks", FAIR]
    subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "overhead.json").read_text())["variants"]
    read = {name: rows[name]["elements_per_step"] for name in ("naive hooks", "stabwatch, every step", FAIR)}
    assert 0 < read["naive hooks"] == read[FAIR] < read["stabwatch, every step"]
