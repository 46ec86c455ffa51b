"""What people read of another trainer's log, and what scripts get."""

from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
from typer.testing import CliRunner

from stabwatch.cli.app import app
from stabwatch.cli.render.analysis import Report
from stabwatch.cli.render.console import console
from tests.analysis.curves import analysed, run_of

CALM = 2 + 5 / (1 + np.arange(300) / 5)
SPIKE = CALM + np.where(np.arange(300) >= 150, 30 * np.exp(-np.maximum(np.arange(300) - 150, 0) / 6), 0)


def rendered(*runs, width: int = 100, **options) -> str:
    out = console(file=StringIO(), width=width, **{"color_system": None, **options})
    out.print(Report([analysed(run, "train.log", ("a note of the reader",)) for run in runs]))
    return out.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_report_fits(width):
    text = rendered(run_of(loss=SPIKE, other__rouge=CALM), width=width)
    assert max(map(len, text.splitlines())) <= width


def test_the_report_of_a_spike():
    text = rendered(run_of(loss=SPIKE))
    assert text.startswith("The loss spiked at step 150")
    for part in (
        "What to do",
        "What happened, in order",
        "LossSpike",
        "What this log does not show",
        "a note of",
    ):
        assert part in text
    axis = next(i for i, line in enumerate(text.splitlines()) if "step 0" in line)
    assert text.splitlines()[axis + 1].strip() == "1"


def test_many_runs_are_listed_by_their_problems():
    calm = [run_of(loss=CALM, name=f"seed {i}") for i in range(12)]
    text = rendered(*calm, run_of(loss=SPIKE, name="seed 12"))
    assert text.startswith("13 runs in this log, 1 with problems.")
    assert "Run seed 12" in text
    assert "and 4 more" in text


def test_names_from_a_log_cannot_write_to_the_terminal():
    text = rendered(run_of(loss=SPIKE, name="\x1b[31mred"), run_of(loss=SPIKE), force_terminal=True)
    assert "\x1b[31mred" not in text


def test_logs_and_run_folders_together(sick_run, healthy_run, tmp_path):
    def invoke(*args: object):
        return CliRunner().invoke(app, ["analyze", *map(str, args)])

    for name, values in (("calm", CALM), ("spike", SPIKE)):
        rows = [f"{step},{value}" for step, value in enumerate(values)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["step,loss", *rows]) + "\n")
    calm, spike = tmp_path / "calm.csv", tmp_path / "spike.csv"
    assert invoke(calm).exit_code == 0
    assert invoke(spike).exit_code == 1
    assert invoke(calm, healthy_run).exit_code == 0
    both = invoke(calm, sick_run)
    assert both.exit_code == 1
    assert "calm.csv" in both.output
    data = json.loads(invoke(spike, "--json").output)
    assert (data["schema_version"], data["runs"][0]["format"]) == (2, "table")
    assert data["runs"][0]["incidents"][0]["condition"] == "LossSpike"
    listed = json.loads(invoke(spike, healthy_run, "--json").output)
    assert [run["format"] for run in listed["runs"]] == ["table", "stabwatch run folder"]
    broken = invoke(spike, tmp_path / "nothing", "--json")
    assert broken.exit_code == 2
    assert "nothing" in json.loads(broken.stdout)["unreadable"][0]["error"]
