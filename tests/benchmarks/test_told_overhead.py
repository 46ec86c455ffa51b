"""What a run says of its own cost, and whether every step is recorded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "told_overhead.py"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quick_mode_writes_a_row_for_every_size(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--results", str(tmp_path / "told.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\d+ ms) \|.* (\S+)% \| \[", (tmp_path / "told.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == ["2 ms", "5 ms", "20 ms", "100 ms"]
    assert all(float(recorded) >= 99.0 for _, recorded in rows)
