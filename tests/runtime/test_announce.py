"""A change that was announced does not ring: live, in the training process, and in a replay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stabwatch.alerts import Engine
from stabwatch.analysis.analyze import analyze
from stabwatch.analysis.replay import replay_run
from stabwatch.runlog import Event, RunLog
from tests.alerts.scenarios import block, wave

CHANGE = 80


def train(attach, announced, **settings):
    """Labels mean something else from step 80 on, in which nothing can be learned within this run."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    heard = []
    watch = attach(model, optimizer, on_alert=heard.append, **settings)
    label = torch.randn(16, 8)
    for step in range(160):
        if announced and step == CHANGE:
            watch.announce("task B <b>")
        x = torch.randn(64, 16)
        y = (x @ label).argmax(1) if step < CHANGE else torch.randint(8, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return attach.finish(), {a.rule for a in heard if a.severity != "info"}


def test_it_rings_where_nobody_said_so(attach):
    _, heard = train(attach, announced=False)
    assert heard & {"LossSpike", "LossDivergence"}


def test_it_does_not_where_somebody_did(attach):
    run, heard = train(attach, announced=True)
    assert heard == set()
    [change] = [e for e in run.events if e.kind == "change"]
    assert (change.step, change.data["what"]) == (CHANGE, "task B <b>")
    assert not [a for a in analyze(run.path).alerts if a.severity != "info"]


def test_a_replay_says_what_the_agent_sent(attach):
    run, _ = train(attach, announced=True, agent=True, port=0, linger=0.0)
    attach.watches[-1]._session._output._agent._child.wait(timeout=60)
    found = replay_run(RunLog(run.path))
    assert (found.new, found.gone) == ((), ())
    assert not [a for a in found.alerts if a.severity != "info"]


@pytest.mark.parametrize("resumed", [False, True])
def test_what_is_really_wrong_afterwards_still_rings(resumed):
    engine = Engine()
    engine.observe_event(Event("change", 0.0, 100, {"what": "longer context"}))
    engine.observe(block({"loss": wave(100)}))
    if resumed:
        engine.observe(block({"loss": wave(50)}, first=50))
    assert not engine.observe(block({"loss": wave(60, level=6.0)}, first=100))
    assert {a.rule for a in engine.observe(block({"loss": [12.0] * 5}, first=160))} == {"LossSpike"}
