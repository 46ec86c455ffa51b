"""`stabwatch runbook`."""

from __future__ import annotations

from typer.testing import CliRunner

from stabwatch.alerts.runbooks import runbook
from stabwatch.cli.app import app


def test_a_runbook_is_shown_and_listed():
    shown = CliRunner().invoke(app, ["runbook", "LossSpike"])
    assert shown.exit_code == 0 and shown.output.strip() == runbook("LossSpike").strip()
    listed = CliRunner().invoke(app, ["runbook"])
    assert "LossSpike" in listed.output.splitlines()
    unknown = CliRunner().invoke(app, ["runbook", "Nothing"])
    assert unknown.exit_code == 2
