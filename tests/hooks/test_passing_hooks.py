"""The hooks of modules are in the modules' tables only while something is measured there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stabwatch.hooks.base.entry import Hook
from stabwatch.runtime.governor import Plan

ALWAYS, DEEP = Plan(True, False, False), Plan(True, True, True)


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.outer(self.inner(x).tanh())


def _model():
    torch.manual_seed(0)
    return nn.Sequential(_Block(), _Block())


class _Training:
    """Trains a model step by step, each step with a plan."""

    def __init__(self, attach, model, **settings):
        self.model, self._plan = model, DEEP
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.watch = attach(model, self.optimizer, **settings)
        self.watch._session._pace.governor.plan = lambda step: self._plan

    def step(self, following, forward=None):
        self._plan = following
        (forward or self.model)(torch.ones(4, 8)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _hooked(module):
    return any(
        isinstance(hook, Hook) for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    )


def test_a_module_has_no_hook_of_ours_in_a_step_that_does_not_measure_it(attach):
    training = _Training(attach, _model())
    assert _hooked(training.model[0])
    training.step(ALWAYS)
    assert _hooked(training.model) and not any(_hooked(module) for module in training.model[0].modules())
    training.step(DEEP)
    assert _hooked(training.model[0])
    training.step(ALWAYS)
    training.watch.detach()
    assert not any(_hooked(module) for module in training.model.modules())


def test_hooks_of_others_keep_their_place_before_and_behind_ours(attach):
    model, calls = _model(), []
    model[0].register_forward_hook(lambda *_: calls.append("before"))
    training = _Training(attach, model)
    model[0].register_forward_hook(lambda *_: calls.append("behind"))
    order = [isinstance(hook, Hook) for hook in model[0]._forward_hooks.values()]
    training.step(ALWAYS)
    late = model[0].register_forward_hook(lambda *_: calls.append("late"))
    training.step(DEEP)
    assert [isinstance(hook, Hook) for hook in model[0]._forward_hooks.values()] == [*order, False]
    late.remove()
    training.step(DEEP)
    assert calls == ["before", "behind", "before", "behind", "late", "before", "behind"]


def test_a_copy_made_meanwhile_is_not_watched(attach):
    training = _Training(attach, _model())
    training.step(ALWAYS)
    copied = copy.deepcopy(training.model)
    training.step(DEEP)
    assert not any(_hooked(module) for module in copied.modules())


@pytest.mark.parametrize("blocks", [False, True])
def test_a_model_that_is_compiled_while_the_hooks_are_out_is_measured(attach, blocks):
    training = _Training(attach, _model())
    training.step(ALWAYS)
    training.step(ALWAYS)
    assert not _hooked(training.model[0])
    if blocks:
        for block in training.model:
            block.compile(backend="eager")
    forward = None if blocks else torch.compile(training.model, backend="eager")
    training.step(ALWAYS, forward)
    training.step(DEEP, forward)
    training.step(ALWAYS, forward)
    torch._dynamo.reset()
    steps, values = attach.finish().series("output_rms", "0")
    assert [step for step, value in zip(steps.tolist(), values.tolist(), strict=True) if value > 0] == [0, 4]
