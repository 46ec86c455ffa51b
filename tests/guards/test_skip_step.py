"""The guard skip_step: a bad step leaves no trace, a good one is untouched."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.guards import SkipStep
from tests.sampling import sample

STEPS = 100


def task(name="AdamW", seed=0, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
    return model, getattr(torch.optim, name)(model.parameters(), **{"lr": 1e-3, **settings})


def train(model, optimizer, steps, spoil=lambda step, x: x, clip=False):
    for step in steps:
        x = torch.randn(16, 20, generator=torch.Generator().manual_seed(step))
        target = x[:, :5].argmax(1)
        loss = F.cross_entropy(model(spoil(step, x)), target)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
        optimizer.step()


def numbers(model, optimizer):
    state = [t for p in model.parameters() for t in optimizer.state[p].values() if isinstance(t, torch.Tensor)]
    return torch.cat([t.detach().reshape(-1).float() for t in [*model.parameters(), *state]])


OPTIMIZERS = [
    ("SGD", {"momentum": 0.9}), ("AdamW", {}), ("AdamW", {"amsgrad": True}), ("AdamW", {"fused": True}),
    ("Adagrad", {}), ("NAdam", {}),
]  # fmt: skip


@pytest.mark.parametrize("setting", sample(OPTIMIZERS, every=2))
def test_a_spoiled_step_leaves_no_bit_behind(setting):
    """As if that step had never been: the same run without it ends at the same numbers."""
    name, settings = setting
    found = []
    for spoiled in (False, True):
        model, optimizer = task(name, **settings)
        guard = SkipStep(optimizer)
        steps = range(STEPS) if spoiled else [s for s in range(STEPS) if s != 80]
        train(model, optimizer, steps, lambda step, x: x * float("nan") if step == 80 else x)
        found.append(numbers(model, optimizer))
        assert int(guard.interventions) == spoiled
    assert torch.equal(*found)


@pytest.mark.parametrize("setting", sample(OPTIMIZERS, every=2))
def test_with_nothing_to_do_it_changes_no_bit(setting):
    name, settings = setting
    found = []
    for guarded in (False, True):
        model, optimizer = task(name, **settings)
        guard = SkipStep(optimizer) if guarded else None
        train(model, optimizer, range(STEPS))
        found.append(numbers(model, optimizer))
    assert guard is not None and int(guard.interventions) == 0
    assert torch.equal(*found)


def test_a_first_step_that_is_not_finite_leaves_a_fresh_state():
    model, optimizer = task()
    before = [p.detach().clone() for p in model.parameters()]
    SkipStep(optimizer)
    train(model, optimizer, [0], lambda step, x: x * float("inf"))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(float(t.abs().max()) == 0 for p in model.parameters() for t in optimizer.state[p].values())


def test_a_gradient_far_out_is_skipped_and_a_lasting_change_is_not_refused_for_ever():
    model, optimizer = task("SGD", lr=1e-4)
    guard = SkipStep(optimizer)
    train(model, optimizer, range(STEPS), lambda step, x: x * 1e3 if step == 80 else x)
    assert int(guard.interventions) == 1
    train(model, optimizer, range(STEPS, 2 * STEPS), lambda step, x: x * 1e3)
    assert int(guard.interventions) < 10


def test_the_norm_before_clipping_counts(attach):
    """Clipping makes every gradient the same length; the spike is seen before."""
    for spikes in ([], [80]):
        model, optimizer = task()
        attach(model, optimizer, guard="skip_step")
        train(model, optimizer, range(STEPS), lambda step, x, at=spikes: x * 1e4 if step in at else x, clip=True)
        steps, counts = attach.finish().series("guard_interventions_total")
        assert list(steps[counts > 0]) == spikes
