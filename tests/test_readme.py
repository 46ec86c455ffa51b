"""The example in the README runs as it is written there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stabwatch.runlog import find_run, read_run
from tests.processes import run_python

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Folder in which the example of the README has run, its number of steps, and the environment that it ran in."""
    folder = tmp_path_factory.mktemp("readme")
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    lines = [line for line in code[1].splitlines() if line.strip()]
    assert len(lines) <= 12
    env = {
        "PATH": "/usr/bin:/bin", "PYTHONPATH": str(README.parent),
        "OMP_NUM_THREADS": "1", "STABWATCH_LINGER": "0", "STABWATCH_PORT": "0",
    }  # fmt: skip
    done = run_python("-c", code[1], cwd=folder, env=env, timeout=200)
    assert done.returncode == 0, done.stderr
    steps = re.search(r"range\((\d+)\)", code[1])
    assert steps is not None
    return folder, int(steps[1]), env


def test_the_example_runs_and_leaves_a_run_log(example):
    folder, steps, _ = example
    run = read_run(find_run(folder / "stabwatch-runs"))
    assert len(run.series("loss")[1]) > steps / 2, "most steps are recorded"
    assert run.events[-1].kind == "end"


def test_the_example_warns_about_nothing(example):
    folder, _, env = example
    done = run_python("-m", "stabwatch", "analyze", cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing left its normal range" in done.stdout


def test_every_file_that_the_readme_names_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
