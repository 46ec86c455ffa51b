"""`stabwatch demo`, as a person without a terminal sees it."""

from __future__ import annotations

import socket
import subprocess
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from stabwatch.cli.commands.demo import EXPECTED_LR, EXPECTED_STEPS, done
from stabwatch.cli.render.console import console
from stabwatch.cli.render.demo_progress import Progress
from stabwatch.runlog import Event, append_event
from tests.processes import run_python


def demo(folder: Path, *args: object, timeout: float = 110) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "stabwatch", "demo", "--run-dir", folder / "run", *args, cwd=folder, timeout=timeout)


def test_a_short_demo_without_an_agent(tmp_path):
    result = demo(tmp_path, "--steps", 5, "--no-agent")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["run", "log", str(tmp_path / "run")]
    assert sum(line.startswith("step ") for line in lines) >= 5
    assert "The run" in lines
    assert "\x1b" not in result.stdout


@pytest.mark.slow
def test_the_demo_does_its_job_with_its_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = demo(tmp_path, "--port", port, "--linger", 0, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    page = next(line.split()[-1] for line in lines if line.startswith("live page"))
    assert f":{port}/" not in page
    raised = next(i for i, line in enumerate(lines) if line.startswith("step ") and "critical AttentionLogit" in line)
    last = max(i for i, line in enumerate(lines) if line.startswith("step 300 of 300"))
    assert raised < last, "the alert is raised while the training runs"
    assert "What to do" in result.stdout


def test_what_counts_as_done():
    calm, fired = SimpleNamespace(exit_code=0), SimpleNamespace(exit_code=1)
    assert done(fired, 1, 1.0)
    assert not done(calm, EXPECTED_STEPS, EXPECTED_LR)
    assert done(calm, EXPECTED_STEPS - 1, EXPECTED_LR)
    assert done(calm, 1000, 1e-3)


def alert(layer: str, **data: object) -> Event:
    facts = {
        "severity": "critical",
        "state": "firing",
        "rule": "R",
        "layer": layer,
        "description": f"{layer} is too\nlarge.",
    }
    return Event("alert", 1.0, 40, {**facts, **data})


def test_alerts_are_printed_once_grouped_and_clean(tmp_path, new_run):
    run = new_run(tmp_path / "run", sick=False, steps=2)
    watch = SimpleNamespace(run_dir=run, config=SimpleNamespace(agent=False))
    out = console(file=StringIO(), width=80, color_system=None)
    with Progress(out, 3) as progress:
        progress.start(watch)
        for event in (alert("a\x1b[2J"), alert("b"), alert("c", severity="warning"), alert("a", state="resolved")):
            append_event(run, event)
        progress.alerts()
        progress.alerts()
    assert out.file.getvalue().splitlines()[-2:] == [
        "step 40: critical R: a is too large. And 1 more.",
        "step 40: warning R: c is too large.",
    ]


def test_an_agent_that_does_not_serve_is_said(tmp_path, new_run):
    run = new_run(tmp_path / "run", sick=False, steps=2)
    watch = SimpleNamespace(run_dir=run, config=SimpleNamespace(agent=True), wait_for_agent=lambda: None)
    out = console(file=StringIO(), width=80, color_system=None)
    with Progress(out, 3) as progress:
        progress.start(watch)
    assert "not available: see agent.log" in out.file.getvalue()
    assert progress.page is None
