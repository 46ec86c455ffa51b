"""Live sinks: fed while the run goes on, and no harm to anything when they fail, block or are slow."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.agent.conftest import events, until

PACKAGE = """
import os, time
from pathlib import Path
from stabwatch.agent import live_sink, sink_processes
from stabwatch.exporters.sink import SinkDeclaration

live_sink.SETTLE_SECONDS = 1.0
sink_processes.CLOSE_SECONDS = 8.0  # the agent waits as long for the blocked one
OUT = Path(os.environ["SINK_OUT"])


class Lines:
    def open(self, run):
        self.file = open(OUT / "lines", "a", buffering=1)

    def write(self, batch):
        self.file.write("".join(f"record {step}\\n" for step in batch.steps))

    def write_event(self, event):
        self.file.write(f"event {event.kind}\\n")

    def close(self):
        self.file.write("close\\n")
        return 0


class Failing(Lines):
    def write(self, batch):
        (OUT / "failing").open("a").write("x")
        raise RuntimeError("the store is full")


class Blocked(Lines):
    def write(self, batch):
        (OUT / "blocked").touch()
        time.sleep(3600)


class Dying(Lines):
    def write(self, batch):
        os.kill(os.getpid(), 9)


LINES, FAILING, BLOCKED, DYING = (
    SinkDeclaration(name=kind.__name__.lower(), help="", make=kind, target="none", live=True)
    for kind in (Lines, Failing, Blocked, Dying)
)
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "package"
    info = folder / "live_package-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "live_package.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: live-package\nVersion: 1.0\n")
    names = ("lines", "failing", "blocked", "dying")
    entries = "".join(f"{name} = live_package:{name.upper()}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[stabwatch.sinks]\n{entries}")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return {"SINK_OUT": str(tmp_path), "PYTHONPATH": path}


def _lines(tmp_path: Path) -> list[str]:
    try:
        return (tmp_path / "lines").read_text().splitlines()
    except OSError:
        return []


def test_sinks_that_fail_block_or_die_harm_no_other(new_log, start_agent, env, tmp_path):
    log = new_log()
    log.write(range(10))
    options = [part for name in ("failing", "blocked", "dying", "lines") for part in ("--sink", name)]
    agent = start_agent(log.path, *options, "--linger", "0", env=env)
    until(lambda: "record 9" in _lines(tmp_path) and (tmp_path / "blocked").exists(), 60)
    log.write(range(10, 20))
    until(lambda: "record 19" in _lines(tmp_path), 60)
    assert "stabwatch_step" in agent.metrics()
    until(lambda: {e["sink"] for e in events(log.path, "sink")} >= {"failing", "dying"}, 60)
    messages = {e["sink"]: e["message"] for e in events(log.path, "sink")}
    assert "RuntimeError: the store is full" in messages["failing"] and "signal 9" in messages["dying"]
    before = time.monotonic()
    log.end(19)
    agent.process.wait(60)
    assert time.monotonic() - before < 40, "a blocked sink is waited for, but not for long"
    assert [line for line in _lines(tmp_path) if "record" in line] == [f"record {i}" for i in range(20)]
    assert _lines(tmp_path)[-1] == "close" and "event end" in _lines(tmp_path)
    assert any("killed" in e["message"] for e in events(log.path, "sink") if e["sink"] == "blocked")


def test_a_sink_goes_on_where_it_was_after_the_agent_was_killed(new_log, start_agent, env, tmp_path):
    log = new_log()
    log.write(range(5))
    first = start_agent(log.path, "--sink", "lines", env=env)
    until(lambda: "record 4" in _lines(tmp_path), 60)
    first.process.kill()
    until(lambda: _lines(tmp_path)[-1] == "close", 60)
    log.write(range(5, 9))
    second = start_agent(log.path, "--sink", "lines", "--linger", "0", env=env)
    second.info()
    log.end(8)
    second.process.wait(60)
    assert [line for line in _lines(tmp_path) if "record" in line] == [f"record {i}" for i in range(9)]


def test_a_sink_that_cannot_be_used_is_said_and_nothing_is_served(new_log, start_agent):
    agent = start_agent(new_log().path, "--sink", "otpl")
    assert agent.process.wait(30) == 2 and "Did you mean 'otlp'" in agent.said()
