"""The agent as a child process: an agent that dies is started again, at once and then later, and gives no address."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings

import pytest

from stabwatch.config import Config
from stabwatch.runtime import agent_process
from stabwatch.runtime.agent_process import QUICK_RESTARTS, AgentProcess, _Child


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """An agent that ends at once, and what is reported of it."""
    monkeypatch.setattr(AgentProcess, "_command", lambda self: [sys.executable, "-S", "-c", "raise SystemExit(3)"])
    said: list[dict] = []
    agent = AgentProcess(tmp_path, Config(), lambda kind, **data: said.append({"kind": kind, **data}))
    return agent, said


def died(agent) -> None:
    agent._child.wait(60)


def test_an_agent_that_dies_again_and_again_is_started_later(dying, monkeypatch):
    agent, said = dying
    for _ in range(QUICK_RESTARTS + 3):
        died(agent)
        agent.check()
    assert [e["state"] for e in said] == ["restarted"] * QUICK_RESTARTS + ["waiting"]
    assert said[-1]["code"] == 3
    now = time.monotonic()
    monkeypatch.setattr(agent_process.time, "monotonic", lambda: now + 61.0)
    agent.check()
    assert said[-1] == {"kind": "agent", "state": "restarted", "code": 3, "restarts": QUICK_RESTARTS + 1}
    died(agent)
    agent.check()
    assert said[-1]["state"] == "waiting"
    monkeypatch.setattr(agent_process.time, "monotonic", lambda: now + 61.0 + 100.0)
    agent.check()
    assert said[-1]["state"] == "waiting", "the second pause is twice as long"
    died(agent)


def test_one_that_ran_for_long_is_started_at_once(dying, monkeypatch):
    agent, said = dying
    for _ in range(QUICK_RESTARTS):
        died(agent)
        agent.check()
    died(agent)
    now = time.monotonic()
    monkeypatch.setattr(agent_process.time, "monotonic", lambda: now + agent_process.STEADY_SECONDS)
    agent.check()
    assert said[-1] == {"kind": "agent", "state": "restarted", "code": 3, "restarts": 1}
    died(agent)


def test_a_dead_agent_has_no_address(tmp_path, monkeypatch):
    monkeypatch.setattr(AgentProcess, "_command", lambda self: [sys.executable, "-S", "-c", "input()"])
    agent = AgentProcess(tmp_path, Config(), lambda kind, **data: None)
    died(agent)
    (tmp_path / "agent.json").write_text(f'{{"pid": {agent._child.pid}, "url": "http://x/"}}')
    assert agent.url() is None


def test_an_agent_that_outlives_the_training_is_nothing_to_warn_of():
    child = _Child([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    pipe, number = child.stdin, child.pid
    child.stdin = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        child.__del__()
    pipe.close()
    os.waitpid(number, 0)
    child.returncode = 0
