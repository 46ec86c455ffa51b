"""`stabwatch doctor` and `stabwatch signals`."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stabwatch.alerts import DERIVED
from stabwatch.cli.app import app
from stabwatch.cli.doctor import environment
from stabwatch.cli.doctor.environment import Check, check_environment
from stabwatch.cli.doctor.run import check_run
from stabwatch.runlog import Event, Meta, RunFolder, append_event
from stabwatch.signals import CATALOGUE
from tests.agent.synthetic import Log


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_the_machine_of_the_tests_is_fit(tmp_path):
    checks = by_name(check_environment(tmp_path, port=0))
    assert {name for name, check in checks.items() if check.state == "bad"} == set()
    assert "built for" in checks["torch"].found


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    monkeypatch.setattr(environment, "LITTLE_SPACE", 1 << 80)
    monkeypatch.setattr(environment, "NEEDED", ("surely-not-installed",))
    monkeypatch.setenv("PATH", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        checks = by_name(check_environment(tmp_path / "not" / "yet", port=port))
    assert checks["torch"].state == checks["disk"].state == checks["surely-not-installed"].state == "bad"
    assert checks["promtool"].state == checks[f"port {port}"].state == "note"
    assert "--port" in checks[f"port {port}"].remedy


@pytest.mark.parametrize(
    ("text", "cuda", "hip"),
    [
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", "12.8", None),
        ("cuda = None\nhip = '6.2.41133'\n", None, "6.2.41133"),
        ("__version__ = '2.13.0+cpu'\ncuda = None", None, None),
    ],
)
def test_what_torch_is_built_for_is_read_from_its_version_file(text, cuda, hip):
    assert environment._built_for(text, "cuda") == cuda
    assert environment._built_for(text, "hip") == hip


def test_a_whole_run(sick_run):
    checks = by_name(check_run(sick_run))
    assert checks["records"].found.startswith("300 records over steps 0 to 299")
    assert not checks["records"].remedy
    assert checks["tap attention"].found == "4 layers, 28 series, all measured"
    assert checks["no attention"] == Check("no attention", "note", "blocks.9.attn: its forward never ran")
    assert checks["overhead"].state == checks["end"].state == "ok"


def test_a_run_of_which_few_steps_were_measured_says_so(tmp_path):
    log = Log(tmp_path / "run", layers=["a"])
    for step in range(0, 240, 6):
        log.folder.append(log.layout, step, log.now(step), log.row(step))
    log.folder.close()
    assert "one step in 6 was recorded" in by_name(check_run(tmp_path / "run"))["records"].remedy


def test_errors_losses_and_hostile_names_are_named(new_run, tmp_path):
    run = new_run(tmp_path / "run", sick=False, steps=12, layers=["a\x1b[2Jb"], end=None)
    for _ in range(2):
        append_event(run, Event("error", 1.0, 3, {"probe": "tap.\x1b[31mx", "message": "no\nspace", "traceback": ""}))
    with open(run / "events.jsonl", "ab") as file:
        file.write(b"{broken\n")
    checks = check_run(run)
    assert by_name(checks)["probe tap.x"].found == "no space (2 reports)"
    assert by_name(checks)["damage"].found == "1 unreadable line in events.jsonl, skipped"
    assert "\x1b" not in repr(checks).replace("\\x1b", "\x1b")
    result = CliRunner().invoke(app, ["doctor", str(run)])
    assert result.exit_code == 1
    assert "\x1b" not in result.output


def test_a_run_without_a_record_and_with_nonsense_in_it(tmp_path):
    meta = Meta(run="r", created=0.0, host="h", pid=1, pid_started=0.0, config=["not", "a", "mapping"])  # type: ignore[arg-type]
    folder = RunFolder(tmp_path / "run", meta)
    for missing in ("text", [1, {"tap": None}], None):
        folder.event(Event("coverage", 0.0, 0, {"missing": missing}))
        checks = by_name(check_run(folder.path))
        assert checks["records"].state == "bad"
    assert checks["overhead"].state == "note"


def test_json(sick_run):
    result = CliRunner().invoke(app, ["doctor", str(sick_run), "--json"])
    data = json.loads(result.output)
    assert data["schema"] == 1
    assert list(data) == ["schema", "machine", "run"]
    assert set(data["run"][0]) == {"name", "state", "found", "remedy"}


def test_signals_lists_the_whole_catalogue(monkeypatch):
    for width in ("80", "140"):
        monkeypatch.setenv("COLUMNS", width)
        text = CliRunner().invoke(app, ["signals"]).output
        assert all(signal.name in text for signal in (*CATALOGUE, *DERIVED))
        assert max(map(len, text.splitlines())) <= int(width)


def test_signals_json():
    data = json.loads(CliRunner().invoke(app, ["signals", "--json"]).output)
    assert data["schema"] == 1
    assert [s["metric"] for s in data["signals"]] == [s.metric for s in CATALOGUE]
    assert [d["metric"] for d in data["derived"]] == [d.metric for d in DERIVED]


def test_doctor_needs_no_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output


def test_doctor_takes_the_newest_run(sick_run, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stabwatch-runs").mkdir()
    Path("stabwatch-runs", "a").symlink_to(sick_run)
    data = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).output)
    assert list(data) == ["schema", "machine", "run"]
