"""What guards do at a critical alert: go back, take smaller steps, stop; and what an `on_alert` is told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.guards import LearningRateBackoff, Snapshots

BROKEN = 20


def task(name="AdamW", **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))
    return model, getattr(torch.optim, name)(model.parameters(), **{"lr": 1e-3, **settings})


def step(model, optimizer, number, broken=()):
    x = torch.randn(16, 20, generator=torch.Generator().manual_seed(number))
    loss = F.cross_entropy(model(x * float("nan") if number in broken else x), x[:, :5].argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def numbers(model, optimizer):
    state = [t for p in model.parameters() for t in optimizer.state[p].values()]
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers(), *state)]


@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"amsgrad": True}])
def test_a_snapshot_brings_everything_back(settings):
    model, optimizer = task(**settings)
    snapshots = Snapshots(model, every=10)
    kept = {}
    for number in range(50):
        if number % 10 == 0:
            kept[number] = numbers(model, optimizer) if number else None
        snapshots.before(optimizer, number)
        step(model, optimizer, number)
        snapshots.boundary(number + 1)
    assert snapshots.react(since=45) == {"did": "rolled back", "to_step": 40}
    assert all(torch.equal(a, b) for a, b in zip(kept[40], numbers(model, optimizer), strict=True))
    step(model, optimizer, 51)
    assert snapshots.react(since=33) == {"did": "rolled back", "to_step": 30}, "those since the onset are gone"
    assert all(torch.equal(a, b) for a, b in zip(kept[30], numbers(model, optimizer), strict=True))
    assert snapshots.react(since=12) is None, "none is that old"


def test_the_same_snapshot_is_gone_back_to_three_times():
    model, optimizer = task()
    snapshots = Snapshots(model, every=10)
    snapshots.before(optimizer, 0)
    assert [snapshots.react(5) is None for _ in range(4)] == [False, False, False, True]
    assert not optimizer.state, "there was none before the first step"


def test_backoff_multiplies_what_a_scheduler_sets_and_leaves_it_alone():
    model, optimizer = task("SGD", lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    backoff, used = LearningRateBackoff(), []
    optimizer.register_step_pre_hook(lambda o, *_: backoff.before(o, 0))
    optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
    optimizer.register_step_post_hook(lambda o, *_: backoff.after(o))
    for number in range(6):
        if number == 3:
            assert backoff.react(0) == {"did": "learning rate multiplied", "scale": 0.5}
        step(model, optimizer, number)
        schedule.step()
    assert used == pytest.approx([0.9**k * (0.5 if k > 2 else 1.0) for k in range(6)])
    assert [backoff.react(0) is None for _ in range(6)] == [False] * 5 + [True], "down to a 64th"


def test_backoff_of_a_rate_that_is_a_tensor():
    _, optimizer = task(lr=torch.tensor(1e-3), foreach=False)
    backoff = LearningRateBackoff()
    rate = optimizer.param_groups[0]["lr"]
    backoff.react(0)
    backoff.before(optimizer, 0)
    assert optimizer.param_groups[0]["lr"] is rate and float(rate) == pytest.approx(5e-4)
    backoff.after(optimizer)
    assert float(rate) == pytest.approx(1e-3)


def test_a_run_is_rolled_back_to_before_its_fault_and_goes_on(attach):
    """NaN in one batch ruins the weights; with the guard the run is at a good loss in the end."""
    model, optimizer = task()
    attach(model, optimizer, guard="snapshot, lr_backoff", snapshot_every=20)
    for number in range(110):
        loss = step(model, optimizer, number, broken=[BROKEN])
    run = attach.finish()
    done = [(e.data["guard"], e.data["did"]) for e in run.events if e.kind == "guard"]
    assert ("snapshot", "rolled back") in done and ("lr_backoff", "learning rate multiplied") in done
    [back] = [e.data for e in run.events if e.kind == "guard" and e.data["guard"] == "snapshot"]
    assert back["to_step"] <= BROKEN == back["onset"]
    assert float(loss) < 1.6
    rates = dict(zip(*run.series("learning_rate"), strict=True))
    assert rates[0] == pytest.approx(1e-3) and rates[109] == pytest.approx(5e-4)


def test_raise_stops_the_run_with_the_alert_in_the_message(attach):
    model, optimizer = task()
    attach(model, optimizer, guard="raise")
    with pytest.raises(stabwatch.TrainingUnstableError, match=r"runbooks/NonFinite.*md"):
        for number in range(2000):
            step(model, optimizer, number, broken=range(BROKEN, 2000))
    assert BROKEN <= number < 1000, "at the end of that step at the earliest"


def test_raise_beside_another_guard_is_the_last_resort(attach):
    """Three times back to the same snapshot, then no more."""
    model, optimizer = task()
    attach(model, optimizer, guard="snapshot,raise", snapshot_every=1000)
    with pytest.raises(stabwatch.TrainingUnstableError):
        for number in range(3000):
            step(model, optimizer, number, broken=range(BROKEN, 3000, 40))
    did = [e.data["did"] for e in attach.finish().events if e.kind == "guard"]
    assert did == ["rolled back"] * 3 + ["nothing", "raised"]


@pytest.mark.parametrize("guard", ["skip_step", "snapshot", "lr_backoff", "raise", "snapshot,skip_step,raise"])
def test_guards_with_nothing_to_do_change_no_bit(guard, attach):
    found = []
    for guarded in (False, True):
        model, optimizer = task()
        if guarded:
            attach(model, optimizer, guard=guard, snapshot_every=7)
        for number in range(40):
            step(model, optimizer, number)
        found.append(numbers(model, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not [e for e in attach.finish().events if e.kind in ("guard", "error")]


def test_on_alert_is_told_between_steps_and_its_mistakes_stop_nothing(attach):
    model, optimizer = task()
    heard = []

    def tell(alert):
        heard.append(alert)
        raise KeyError("a mistake of the callback's")

    watch = attach(model, optimizer, on_alert=tell)
    for number in range(120):
        step(model, optimizer, number, broken=[BROKEN])
    assert heard[0].state == "firing" and heard[0].onset == BROKEN and heard[0].rule == "NonFinite"
    assert watch._session.isolation.errors["on_alert"] >= 1
    alerts = [e for e in attach.finish().events if e.kind == "alert"]
    assert alerts[0].data["rule"] == "NonFinite" and alerts[0].step == heard[0].step, "no agent: written from here"


def test_a_callback_may_stop_the_run(attach):
    model, optimizer = task()

    def stop(alert):
        raise stabwatch.TrainingUnstableError(alert.summary)

    attach(model, optimizer, on_alert=stop)
    with pytest.raises(stabwatch.TrainingUnstableError):
        for number in range(2000):
            step(model, optimizer, number, broken=[BROKEN])


@pytest.mark.parametrize("guard", ["brake", "taylor,brake"])
def test_a_guard_that_does_not_exist_is_refused(guard):
    with pytest.raises(stabwatch.config.ConfigError, match="made of taylor, skip_step, snapshot"):
        stabwatch.Config(guard=guard)
