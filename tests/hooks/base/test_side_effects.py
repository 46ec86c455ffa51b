"""Modules that draw random numbers or keep state: asked once more by us, they and the training stay as they are."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.hooks.base.flags import PHASES
from stabwatch.hooks.base.side_effects import restore_side_effects
from stabwatch.hooks.probes.nonlinearity import OWN_CLASS


class DropGELU(nn.Module):
    """An activation with its own dropout."""

    def forward(self, x):
        return F.dropout(F.gelu(x), 0.3, self.training)


class MovingTanh(nn.Module):
    """An activation that keeps a running mean, in a buffer, in an attribute and in a number."""

    def __init__(self):
        super().__init__()
        self.register_buffer("middle", torch.zeros(()))
        self.last, self.calls = torch.zeros(()), 0

    def forward(self, x):
        if self.training:
            self.middle.mul_(0.9).add_(0.1 * x.detach().mean())
            self.last = 0.5 * self.last + x.detach().mean()
            self.calls += 1
        return torch.tanh(x - self.middle - 0.1 * self.last)


class Augmented(nn.Module):
    """Masks with numpy's and Python's random numbers, as speech models do."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        keep = torch.tensor(np.random.rand(x.shape[-1]) < 0.8).to(x.dtype)
        return self.outer(F.gelu(self.inner(x * keep)) * random.uniform(0.5, 1.5))


class Recurrent(nn.Module):
    """Carries its own past."""

    def __init__(self):
        super().__init__()
        self.inner, self.mean = nn.Linear(6, 4), torch.zeros(4)

    def forward(self, x):
        out = self.inner(x) - self.mean
        self.mean = 0.9 * self.mean + 0.1 * out.detach().mean(dim=0)
        return out


def mlp(activation):
    return lambda: nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 4))


MODELS = {
    "an activation with dropout": (mlp(DropGELU), False),
    "an activation with state": (mlp(MovingTanh), False),
    "masks of numpy": (Augmented, True),
    "state in an attribute": (Recurrent, True),
}


def train(make, attach=None, **settings):
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if attach:
        attach(model, optimizer, **settings)
    losses = []
    for step in range(PHASES + 4):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(model(x), torch.arange(16) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    state = [p.detach() for p in (*model.parameters(), *model.buffers())]
    return losses, state, (torch.rand(1).item(), np.random.rand(), random.random())


@pytest.mark.parametrize("name", MODELS)
def test_training_is_bit_identical(name, attach):
    make, taylor = MODELS[name]
    plain, watched = train(make), train(make, attach, taylor=taylor)
    log = attach.finish()
    assert not [e for e in log.events if e.kind == "error"]
    assert watched[0] == plain[0] and watched[2] == plain[2]
    assert all(a.equal(b) for a, b in zip(watched[1], plain[1], strict=True))
    if taylor:
        assert any(key.signal == "step_to_radius_ratio" for key in log.keys)
    else:  # no forward of a user's class is called unasked
        watch = attach.watches[-1]
        assert not log.series("activation_saturated_ratio", "1")[1].size
        assert OWN_CLASS in {e["reason"] for e in watch.coverage()["unmeasured"] if e["site"] == "1"}


def test_what_a_call_leaves_is_put_back():
    module = MovingTanh()
    module(torch.ones(3))
    before = (module.middle.clone(), module.last.clone(), module.calls)
    middle = module.middle
    with restore_side_effects(module, seed=0):
        module(torch.full((3,), 5.0))
        module.extra = 1
        module.middle = torch.ones(())
        drawn = torch.rand(1)
    assert (module.middle.equal(before[0]), module.last.equal(before[1]), module.calls) == (True, True, before[2])
    assert module.middle is middle and not hasattr(module, "extra")
    with restore_side_effects(module, seed=0, evaluating=True):
        assert torch.rand(1).equal(drawn) and not module.training
    assert module.training


def test_also_after_an_error():
    module, state = MovingTanh(), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), restore_side_effects(module):
        torch.rand(3)
        module.calls = 9
        raise ZeroDivisionError
    assert module.calls == 0 and torch.get_rng_state().equal(state)
