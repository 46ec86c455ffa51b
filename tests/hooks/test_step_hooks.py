"""Hooks of an optimizer's own that change gradients: what is measured is what the step uses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn


def halves(optimizer, args, kwargs) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad.mul_(0.5)


def train(model, optimizer, steps: int = 4) -> list[float]:
    """Norms of the gradients that the steps use."""
    torch.manual_seed(0)
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        norms.append(0.5 * torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        optimizer.step()
    return norms


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("settings", [{}, {"guard": "skip_step"}])
def test_a_hook_of_the_users_that_changes_gradients_comes_first(when, settings, attach) -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if when == "before":
        optimizer.register_step_pre_hook(halves)
    attach(model, optimizer, **settings)
    if when == "after":
        optimizer.register_step_pre_hook(halves)
    norms = train(model, optimizer)
    assert attach.finish().series("gradient_norm")[1].tolist() == pytest.approx(norms)
    assert list(optimizer._optimizer_step_pre_hooks.values()) == [halves]


def test_the_hook_that_goes_takes_nothing_with_it(attach) -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle = optimizer.register_step_pre_hook(halves)
    attach(model, optimizer)
    norms = train(model, optimizer)
    handle.remove()
    norms += [2 * norm for norm in train(model, optimizer)]
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.state_dict() == optimizer.state_dict()
    log = attach.finish()
    assert log.series("gradient_norm")[1].tolist() == pytest.approx(norms)
    assert not optimizer._optimizer_step_pre_hooks


def test_an_optimizer_of_another_model_gets_no_hook(attach) -> None:
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    attach(model, torch.optim.SGD(model.parameters(), lr=0.01))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.01)
    optimizer.register_step_pre_hook(halves)
    train(other, optimizer)
    assert list(optimizer._optimizer_step_pre_hooks.values()) == [halves]
