"""Sinks of other packages: found by entry point, fed in order, and harmless when they fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stabwatch.errors import SinkError
from stabwatch.exporters.registry import SINKS
from stabwatch.exporters.sink import write_run
from stabwatch.runlog import Event, RunLog
from tests.agent.synthetic import Log
from tests.cli.test_app import stabwatch

PACKAGE = """
from stabwatch.exporters.sink import SinkDeclaration


class Lines:
    def __init__(self, path):
        self.path, self.lines = path, []

    def open(self, run):
        self.lines.append(f"open {run.meta.run} {len(run.layouts)}")

    def write(self, batch):
        self.lines.append(f"records {batch.steps[0]} to {batch.steps[-1]}")

    def write_event(self, event):
        self.lines.append(f"event {event.kind} {event.step}")

    def close(self):
        self.path.write_text("\\n".join(self.lines))
        return len(self.lines)


class Broken(Lines):
    def write(self, batch):
        self.path.write_text("half")
        raise RuntimeError("the store is full")


class Service(Lines):
    def __init__(self):
        super().__init__(None)

    def close(self):
        return 7


LINES = SinkDeclaration(name="lines", help="Lines.", make=Lines, suffix=".txt", unit="lines")
BROKEN = SinkDeclaration(name="broken", help="Fails.", make=Broken)
SERVICE = SinkDeclaration(name="service", help="No file.", make=Service, target="none", unit="points")
NO_SINK = 3
"""


@pytest.fixture
def package(tmp_path: Path) -> dict[str, str]:
    """An installed package that offers sinks, two of which cannot be loaded."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "other_sinks.py").write_text(PACKAGE)
    info = tmp_path / "other" / "other_sinks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-sinks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[stabwatch.sinks]\nabsent = not_there:SINK\nno-sink = other_sinks:NO_SINK\nlines = other_sinks:LINES\n"
        "broken = other_sinks:BROKEN\nservice = other_sinks:SERVICE\n"
    )
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "other"), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    log = Log(tmp_path / "run", layers=["one"])
    log.write(range(5))
    log.folder.event(Event("coverage", log.now(2), 2, {}))
    log.write(range(5, 8))
    log.end(7)
    log.folder.close()
    return log.path


def test_a_sink_of_a_package_gets_records_and_events_in_order(package, run, tmp_path):
    done = stabwatch("export", run, "--sink", "lines", cwd=tmp_path, env=package)
    assert done.returncode == 0 and "run.txt: 7 lines" in done.stderr, done.stderr
    lines = (tmp_path / "run.txt").read_text().splitlines()
    assert [line for line in lines if "records" not in line] == [
        "open run 1", "event start 0", "event coverage 2", "event end 7",
    ]  # fmt: skip
    assert lines.index("records 1 to 2") < lines.index("event coverage 2") < lines.index("records 3 to 7")


def test_a_sink_that_fails_is_one_line_and_leaves_nothing(package, run, tmp_path):
    done = stabwatch("export", run, "--sink", "broken", "-o", tmp_path / "out" / "x", env=package)
    assert done.returncode == 2 and "RuntimeError: the store is full" in done.stderr and "bug" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_sinks_that_cannot_be_loaded_harm_no_other(package, run, tmp_path):
    done = stabwatch("export", run, "--sink", "nobody", env=package)
    assert done.returncode == 2 and "broken, lines, service" in done.stderr
    assert stabwatch("export", run, "--csv", "-o", "-", env=package).returncode == 0


def test_a_service_has_no_file(package, run, tmp_path):
    assert "service: 7 points" in stabwatch("export", run, "--sink", "service", cwd=tmp_path, env=package).stderr
    refused = stabwatch("export", run, "--sink", "service", "-o", "x", env=package)
    assert refused.returncode == 2 and "leave out -o" in refused.stderr


def test_an_unexpected_error_is_a_sink_error(run, tmp_path):
    class Strange:
        def open(self, run) -> None:
            raise KeyError("what")

    with pytest.raises(SinkError, match="Strange failed: KeyError"):
        write_run(RunLog(run), Strange())


def test_the_registry_has_the_flags_of_the_command():
    listed = stabwatch("export", "--help").stdout
    assert all(f"--{name}" in listed for name in SINKS)
