"""Gradients of activations: against what autograd gives, with a gradient scaler, and where they cannot be seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.alerts import Engine
from stabwatch.alerts.timeline import lead, timeline
from stabwatch.demo import GPT, DemoConfig
from stabwatch.hooks.module_calls import KEPT
from stabwatch.hooks.probes.activation_gradient import NO_GRADIENT
from stabwatch.kernels.depth.naive import slope
from stabwatch.runlog import RunLog


def stack(**config):
    torch.manual_seed(0)
    return GPT(DemoConfig(width=32, layers=3, heads=2, context=16, batch=3, **config))


def recorded(model, places):
    """The gradients of the outputs of some modules, in the order of the backward passes."""
    found = {name: [] for name in places}

    def keeping(name):
        def hook(module, args, output):
            output.register_hook(lambda g: found[name].append(g.detach().double().numpy().copy()))

        return hook

    for name in places:
        model.get_submodule(name).register_forward_hook(keeping(name))
    return found


def step(model, optimizer, parts=1, scaler=None):
    optimizer.zero_grad()
    for _ in range(parts):
        data = torch.randint(256, (3, 17))
        loss = F.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten()) / parts
        (loss if scaler is None else scaler.scale(loss)).backward()
    optimizer.step() if scaler is None else scaler.step(optimizer)
    if scaler is not None:
        scaler.update()


def writer_places(model):
    return [name for name, _ in model.named_modules() if name.endswith(("mlp.2", "proj", "out"))]


@pytest.mark.parametrize("parts", [1, 2])
def test_they_are_those_that_autograd_gives(parts, attach):
    model = stack()
    places = ["blocks.0", "blocks.1", "blocks.2", *writer_places(model)]
    found = recorded(model, places)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    for _ in range(2):
        step(model, optimizer, parts)
    log = attach.finish()
    shown = {key.layer for key in log.keys if key.signal == "activation_gradient_rms"}
    assert shown == set(places) and len(shown) > 6
    for name in places:
        for i in range(2):
            whole = np.concatenate([x.ravel() for x in found[name][i * parts : (i + 1) * parts]])
            rms = log.series("activation_gradient_rms", name)[1][i]
            assert rms == pytest.approx(math.sqrt(np.mean(whole**2)), rel=1e-5)
            assert log.series("activation_gradient_abs_max", name)[1][i] == pytest.approx(np.abs(whole).max(), rel=1e-6)
            assert log.series("activation_gradient_nonfinite_total", name)[1][i] == 0
    if parts == 1:
        back = [found[f"blocks.{i}"][0] for i in (2, 1, 0)]
        assert log.series("backward_growth", "blocks")[1][0] == pytest.approx(slope(back), rel=1e-4)


def test_the_scale_of_a_gradient_scaler_is_taken_out(attach):
    rms = []
    for scale in (None, 2.0**13):
        model = stack()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        torch.manual_seed(1)
        for _ in range(2):
            step(model, optimizer, scaler=scaler)
        log = attach.finish()
        rms.append([log.series(f"activation_gradient_{x}", "blocks.1")[1].tolist() for x in ("rms", "abs_max")])
    np.testing.assert_allclose(rms[1], rms[0], rtol=1e-5)


def test_a_watched_run_is_bit_identical(attach):
    ends = []
    for watched in (False, True):
        model = stack()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if watched:
            attach(model, optimizer)
        torch.manual_seed(1)
        for _ in range(3):
            step(model, optimizer)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class Breaking(torch.autograd.Function):
    """The identity; one number of its gradient is NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        broken = gradient.clone()
        broken.view(-1)[3] = math.nan
        return broken


class Block(nn.Module):
    def __init__(self, breaks):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.breaks, self.now = breaks, False

    def forward(self, x):
        out = x + self.down(torch.tanh(self.up(self.norm(x))))
        return Breaking.apply(out) if self.breaks and self.now else out


def test_a_nan_that_is_born_in_the_backward_is_placed(attach):
    """The gradient of the output of block 2 is finite, that of the branch inside it is not: it broke between them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Sequential(*(Block(i == 2) for i in range(5))), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    attach(model, optimizer)
    for i in range(20):
        model[1][2].now = i == 12
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 4)), torch.randint(3, (8,))).backward()
        if i == 12:
            for p in model.parameters():
                p.grad = torch.nan_to_num(p.grad)
        optimizer.step()
    log = attach.finish()
    counts = {i: log.series("activation_gradient_nonfinite_total", f"1.{i}")[1][12] for i in range(5)}
    assert counts[4] == counts[3] == counts[2] == 0 and counts[1] > 0 and counts[0] > 0, "its own branch comes first"
    engine = Engine()
    run = RunLog(log.path)
    for item in timeline(run, run.poll_events()):
        lead(engine, item)
    alerts = [a for a in engine.history if a.rule == "NonFinite"]
    assert alerts[0].signal == "activation_gradient_nonfinite_total" and alerts[0].layer == "1.2.down"


def test_reentrant_checkpointing_and_double_backward_are_named(attach):
    model = stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    data = torch.randint(256, (3, 17))
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten()).backward(create_graph=True)
        optimizer.step()
    told = {e["tap"]: e["reason"] for e in attach.watches[-1].coverage()["unmeasured"]}
    assert told["activation_gradient"] == KEPT
    model = stack()
    for p in model.parameters():
        p.requires_grad_(False)
    model.head.weight.requires_grad_(True)
    optimizer = torch.optim.SGD([model.head.weight], lr=0.1)
    attach(model, optimizer)
    step(model, optimizer)
    told = {(e["tap"], e["site"]): e["reason"] for e in attach.watches[-1].coverage()["unmeasured"]}
    assert told["activation_gradient", "blocks.0"] == NO_GRADIENT
