"""The example in the README is run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from stabwatch.runlog import find_run, read_run

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs_and_leaves_a_run_log(tmp_path):
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    lines = [line for line in code[1].splitlines() if line.strip()]
    assert len(lines) <= 12
    done = subprocess.run(
        [sys.executable, "-c", code[1]],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "STABWATCH_LINGER": "0", "STABWATCH_PORT": "0", "PYTHONPATH": str(README.parent)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = read_run(find_run(tmp_path / "stabwatch-runs"))
    assert len(run.series("loss")[1]) > 0
    assert run.events[-1].kind == "end"


def test_every_file_that_the_readme_names_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
