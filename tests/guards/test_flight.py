"""An alert brings a closer look, and says which batch it began with."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.alerts import Engine, diagnose
from stabwatch.analysis.analyze import analyze
from stabwatch.hooks.nonfinite import NonFiniteTrace
from stabwatch.hooks.probes.batches import KEPT, Batches
from stabwatch.runtime.governor import ESCALATE_AGAIN, Governor, Plan
from stabwatch.runtime.session import Session

BROKEN = 60


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50)

    def forward(self, ids, scale=1.0):
        return self.head(self.embed(ids) * scale)


def train(watch, model, optimizer, steps, say=True, pause=0.0, micro=1):
    batches = {}
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(micro):
            x = torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(step * micro + part))
            batches.setdefault(step, []).append(x)
            if say:
                watch.log_batch(np.arange(4) + 4 * step, epoch=0)
            out = model(x, scale=float("nan") if step == BROKEN else 1.0)
            F.cross_entropy(out.flatten(0, 1), x.flatten()).backward()
        optimizer.step()
        time.sleep(pause)
    return batches


def test_the_batch_of_the_onset_is_kept_with_the_alert(attach):
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer, on_alert=lambda alert: None)
    batches = train(watch, model, optimizer, 90, micro=2)
    run = attach.finish()
    [flight] = [e for e in run.events if e.kind == "flight" and e.data["rule"] == "NonFinite"][:1]
    mine = [b for b in flight.data["batches"] if b["step"] == BROKEN]
    said = [b for b in mine if "indices" in b]
    seen = [b for b in mine if "fingerprint" in b]
    assert [b["indices"] for b in said] == [[240, 241, 242, 243]] * 2 and said[0]["epoch"] == 0
    assert [b["fingerprint"] for b in seen] == [stabwatch.fingerprint(x) for x in batches[BROKEN]]
    assert [b["first"] for b in seen] == [x.flatten()[:8].tolist() for x in batches[BROKEN]]
    assert {b["step"] for b in flight.data["batches"]} >= {BROKEN - 2, BROKEN - 1, BROKEN}
    told = " ".join(e for c in analyze(run.path).diagnosis.causes for e in c.evidence)
    assert f"Batch of step {BROKEN}: samples 240, 241, 242, 243; epoch 0" in told
    assert seen[0]["fingerprint"] in told


def test_where_few_steps_are_recorded_all_that_it_can_have_been_are_kept(attach, monkeypatch):
    """As where records are lost on a slow disk: the batch lies somewhere between two records."""
    monkeypatch.setattr(NonFiniteTrace, "backward_begins", lambda *args: None)
    monkeypatch.setattr(NonFiniteTrace, "gradients_complete", lambda *args: None)
    record = Session._record
    monkeypatch.setattr(
        Session, "_record", lambda self, step, *more: record(self, step, *more) if step % 7 == 0 else None
    )
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer, on_alert=lambda alert: None)
    train(watch, model, optimizer, 90)
    run = attach.finish()
    flight = next(e for e in run.events if e.kind == "flight" and e.data["rule"] == "NonFinite")
    since, onset = flight.data["since"], flight.data["onset"]
    assert (since, onset) == (57, 63)
    assert {b["step"] for b in flight.data["batches"]} >= set(range(since, onset + 1))
    told = [e for c in analyze(run.path).diagnosis.causes for e in c.evidence]
    assert any(f"Steps {since} to {onset} were measured together" in e for e in told)


def test_on_the_host_the_step_is_known_where_few_are_measured(attach, monkeypatch):
    monkeypatch.setattr(Governor, "plan", lambda self, step: Plan(*[step % 7 == 0] * 3))
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer, on_alert=lambda alert: None)
    batches = train(watch, model, optimizer, 90, say=False)
    run = attach.finish()
    flight = next(e for e in run.events if e.kind == "flight" and e.data["rule"] == "NonFinite")
    assert (flight.data["since"], flight.data["onset"]) == (BROKEN, BROKEN)
    [batch] = [b for b in flight.data["batches"] if b["step"] == BROKEN]
    assert batch["fingerprint"] == stabwatch.fingerprint(batches[BROKEN][0])


def test_an_agent_s_alerts_come_back_and_bring_a_closer_look(attach):
    """Nothing is judged in the training process; the agent's words are enough."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer, agent=True, port=0, linger=0.0, escalate=8, every_step=False)
    assert watch.wait_for_agent()
    train(watch, model, optimizer, 150, say=False, pause=0.02)
    run = attach.finish()
    watch._session._output._agent._child.wait(timeout=60)
    assert [e.data["rule"] for e in run.events if e.kind == "flight"][:1] == ["NonFinite"]
    assert watch._session._pace.governor._until > BROKEN, "every tier was measured for some steps"


@pytest.mark.parametrize("micro", [1, 3])
def test_batches_of_the_last_forwards_are_remembered(micro):
    batches = Batches(torch.device("cpu"))
    for step in range(KEPT):
        for _ in range(micro):
            batches.forward_begins(step, ({"ids": torch.full((3,), step), "mask": torch.ones(3)},))
    first = KEPT - KEPT // micro
    kept = batches.of(0, KEPT)
    assert len(kept) == KEPT and kept[-1]["first"] == [KEPT - 1] * 3 and kept[0]["step"] in (first, first - 1)


def test_what_is_no_batch_is_passed_over():
    batches = Batches(torch.device("cpu"))
    for inputs in ((), ("text",), (torch.empty(0),), (torch.zeros(2, dtype=torch.complex64),)):
        batches.forward_begins(0, inputs)
    assert batches.of(0, 0) == []


def test_fingerprints_tell_batches_apart():
    g = torch.Generator().manual_seed(0)
    prints = {stabwatch.fingerprint(torch.randint(0, 3, (4, 16), generator=g)) for _ in range(2000)}
    assert len(prints) == 2000
    x = torch.randn(64, 64, generator=g)
    assert stabwatch.fingerprint(x) == stabwatch.fingerprint(x.clone()) != stabwatch.fingerprint(x.T)
    assert len({stabwatch.fingerprint(x.to(d)) for d in (torch.float32, torch.bfloat16, torch.float64)}) == 3
    assert stabwatch.fingerprint(torch.arange(10)) == "d474a8e4eae8e823", "as it stands in logs of earlier versions"


def test_an_escalation_measures_everything_for_a_while_and_then_not_again_soon():
    governor = Governor(0.01)
    cost = {"always": 1e-4, "sampled": 1e-3, "deep": 1e-2}
    full = []
    for step in range(ESCALATE_AGAIN * 10 + 200):
        plan = governor.plan(step)
        governor.observe(plan, 0.01, {t: c for t, c in cost.items() if getattr(plan, t)} | dict.fromkeys(cost, 0.0))
        if step in (100, 105, 130, 100 + ESCALATE_AGAIN * 10):
            governor.escalate(10)
        if step > 100 and plan == Plan(True, True, True):
            full.append(step)
    assert full[:10] == list(range(101, 111))
    assert not [s for s in full if 111 <= s < 160 and s % 16 == 15], "control steps are back"
    assert {101 + ESCALATE_AGAIN * 10 + k for k in range(10)} <= set(full)


def test_a_flight_that_is_no_flight_hurts_nobody():
    engine = Engine()
    for batches in (None, 3, [4], [{"step": 3}, {"step": 3, "indices": "x", "shape": 7, "fingerprint": 4}]):
        engine.observe_event(stabwatch.runlog.Event("flight", 0.0, 3, {"onset": 3, "batches": batches}))
    for since in (None, "x", [1], 2):
        batches = [{"step": "3"}, {"step": None}, {"indices": 1}, {"step": 2}]
        engine.observe_event(stabwatch.runlog.Event("flight", 0.0, 3, {"onset": 3, "since": since, "batches": batches}))
    assert diagnose(engine).causes == ()
