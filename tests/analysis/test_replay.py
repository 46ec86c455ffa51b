"""Replay says what the agent said that was there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stabwatch.agent.state import Follower
from stabwatch.alerts import RULES
from stabwatch.alerts.rule import Condition
from stabwatch.analysis.replay import replay, replay_run
from stabwatch.analysis.sources import open_sources
from stabwatch.errors import RunLogError
from stabwatch.runlog import Event, RunLog
from tests.agent.conftest import AgentProcess
from tests.agent.synthetic import CREATED, Log


class Process:
    """Of a training that runs elsewhere and is never missed."""

    local = False

    def gone(self, quiet: float) -> None:
        return None


def written(run: Path) -> list[dict]:
    return [{**e.data, "step": e.step, "time": e.time} for e in RunLog(run).poll_events() if e.kind == "alert"]


def said(found) -> list[dict]:
    events = [json.loads(a.to_event().to_json()) for a in found.alerts]
    return [{k: v for k, v in e.items() if k != "kind"} for e in events]


@pytest.fixture
def make_log(tmp_path):
    """Log(name), closed with the test."""
    made = []

    def make(name: str, **more) -> Log:
        made.append(Log(tmp_path / name, **more))
        return made[-1]

    yield make
    for log in made:
        log.folder.close()


@pytest.fixture
def watch():
    """An agent in this process."""
    agents = []

    def start(log: Log) -> Follower:
        agents.append(Follower(log.path, process=Process()))
        return agents[-1]

    yield start
    for agent in agents:
        agent.lease.release()


def live(log: Log, agent: Follower, steps: int, every: int = 7) -> None:
    """A log that grows, and an agent that looks now and then."""
    for step in range(0, steps, every):
        log.write(range(step, min(step + every, steps)))
        agent.poll()


def test_it_says_what_the_agent_said_record_by_record(make_log, watch):
    log = make_log("sick")
    agent = watch(log)
    live(log, agent, 300)
    log.end(300, "exception", error="RuntimeError: boom")
    agent.poll()
    found = replay_run(RunLog(log.path))
    assert len(written(log.path)) > 5
    assert said(found) == written(log.path)
    assert (found.new, found.gone, found.recorded) == ((), (), len(found.alerts))
    assert found.alerts[-1].rule == "TrainingStopped" and "boom" in found.alerts[-1].description


def test_a_restart_and_a_silence_are_replayed_too(make_log, watch):
    log = make_log("restarted")
    agent = watch(log)
    live(log, agent, 150)
    log.end(150, "exception")
    agent.poll()
    late = CREATED + 10_000
    log.now = lambda step: late + 0.1 * step
    log.folder.event(Event("start", log.now(99), 100))
    log.write(range(100, 200))
    agent.poll()
    log.now = lambda step: late + 500 + 0.1 * step
    log.write(range(200, 260))
    agent.poll()
    found = replay_run(RunLog(log.path))
    stalled = [a for a in found.alerts if (a.rule, a.severity, a.state) == ("TrainingStopped", "warning", "firing")]
    assert [a.step for a in stalled] == [199] and "60 s" in stalled[0].description
    rest = [s for s in said(found) if not (s["rule"] == "TrainingStopped" and s["step"] >= 199)]
    assert rest == written(log.path)
    assert len(found.new) == 2 and not found.gone, "no agent looked during the silence; nothing else differs"


def test_a_threshold_is_tried_over_many_runs(make_log, tmp_path):
    for name, sick in (("a", True), ("b", True), ("c", False)):
        log = make_log(name, sick=sick)
        log.write(range(200))
        log.end(200)
    runs = sorted(tmp_path.iterdir())
    growth = next(r for r in RULES if r.name == "AttentionLogitGrowth")
    (level,) = [level for level in growth.thresholds if level.severity == "critical"]
    strict = replace(level, when=(Condition("attention_logit_bound", above=1e9), *level.when[1:]))
    today = replay(map(RunLog, runs), [growth])
    (tally,) = today.tallies
    assert (tally.runs, len(tally.incidents), today.exit_code) == (2, 2, 1), "layers of one rule are one incident"
    assert len(tally.incidents[0][1].layers) > 1 and tally.incidents[0][1].last_step is None
    lax = replay(map(RunLog, runs), [replace(growth, thresholds=(strict,))])
    assert (lax.tallies[0].runs, lax.exit_code) == (0, 0)
    assert json.loads(json.dumps(today.to_dict(), allow_nan=False))["rules"][0]["severities"]["critical"] == 2


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(RunLogError, match="not a run folder"):
        replay(open_sources([tmp_path / "none"]))


@pytest.mark.slow
def test_a_real_training_with_its_real_agent(tmp_path):
    from stabwatch.demo import DemoConfig, train

    run = tmp_path / "run"
    run.mkdir()
    agent = AgentProcess(run, "--linger", "0.5")
    train(DemoConfig(steps=60, width=32, layers=2, batch=4, context=32, lr=1e-1, run_dir=run,
                     watch={"agent": False, "verbose": False, "every_step": True}))  # fmt: skip
    assert agent.process.wait(60) == 0, agent.said()
    assert written(run)
    assert said(replay_run(RunLog(run))) == written(run)
