"""Modules that are called several times in one forward: against their outputs in float64, and what counts as a loop."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from stabwatch.alerts import Engine
from stabwatch.alerts.timeline import lead, timeline
from stabwatch.hooks.base.loops import POSITIONS, STARTS, names_of, place_of
from stabwatch.hooks.probes import loops
from stabwatch.kernels.loop import naive
from stabwatch.runlog import RunLog

D = 16


class Injection(nn.Module):
    """The state and the input in, the state out."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(
            torch.cat((torch.eye(D), torch.eye(D)), dim=1) if kind == "linear" else torch.zeros(D)
        )

    def forward(self, x, e):
        return torch.cat((x, e), -1) @ self.weight.T if self.kind == "linear" else x + e + 0 * self.weight


class Core(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.injection, self.norm, self.inner = Injection(kind), nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, x, e):
        x = self.injection(x, e)
        return x + self.inner(torch.tanh(self.norm(x)))


class Looped(nn.Module):
    """A core that is called `times` times: a list gives the number for each forward."""

    def __init__(self, times=(16,), kind="additive"):
        super().__init__()
        self.embed, self.core, self.out = nn.Linear(D, D), Core(kind), nn.Linear(D, 5)
        self.final = nn.LayerNorm(D)
        self.times, self.count = times, 0
        self.outputs = []

    def forward(self, x):
        e = self.embed(x)
        state, kept = torch.zeros_like(e), []
        for _ in range(self.times[self.count % len(self.times)]):
            state = self.core(state, e)
            kept.append(state.detach().double().numpy().copy())
        self.outputs.append(kept)
        self.count += 1
        return self.out(self.final(state))


def train(model, steps, attach=None, rate=1e-2, **settings):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    if attach is not None:
        attach(model, optimizer, **settings)
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randn(8, D)
        loss = nn.functional.cross_entropy(model(x), x[:, :5].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_each_call_is_measured_apart_and_the_growth_over_them_is_seen(attach):
    torch.manual_seed(0)
    model = Looped()
    train(model, 4, attach)
    log = attach.finish()
    at = {key.layer for key in log.keys if key.signal == "loop_output_rms"}
    assert at == {f"core[{i}]" for i in range(16)}, "the core, and nothing inside it"

    def at_step(signal, layer):
        steps, values = log.series(signal, layer)
        return values[list(steps).index(step)]

    for step in (1, 3):
        outputs = model.outputs[step]
        rms = [at_step("loop_output_rms", f"core[{i}]") for i in range(16)]
        np.testing.assert_allclose(rms, naive.rms(outputs), rtol=1e-5)
        assert at_step("loop_gain_ratio", "core") == pytest.approx(naive.gain(outputs), rel=1e-5)
        assert naive.gain(outputs) > 8, "an additive loop grows with its calls"
        slope = np.polyfit(range(16), np.log(naive.rms(outputs)), 1)[0]
        assert at_step("loop_growth", "core") == pytest.approx(slope, rel=1e-4)
        found = [at_step("loop_step_ratio", f"core[{i}]") for i in range(1, 16)]
        np.testing.assert_allclose(found, naive.relative_steps(outputs), rtol=1e-4)
    first = [k for k in log.keys if (k.signal, k.layer) == ("loop_step_ratio", "core[0]")]
    assert not any(len(log.series(k.signal, k.layer)[0]) for k in first), "nothing comes before the first call"


def test_the_number_of_calls_may_change_and_the_log_says_which_were_measured(attach):
    torch.manual_seed(0)
    model = Looped(times=(4, 4, 3, 40))
    train(model, 8, attach)
    log = attach.finish()
    for name, want in {"core[3]": {1, 3, 4, 5, 7}, "core[31]": {3, 7}, "core[32-39]": {3, 7}}.items():
        steps, values = log.series("loop_output_rms", name)
        assert {int(s) for s, v in zip(steps, values, strict=True) if not np.isnan(v)} == want
    _, values = log.series("loop_output_rms", "core[32-39]")
    whole = np.stack(model.outputs[3][32:40])
    assert values[~np.isnan(values)][0] == pytest.approx(np.sqrt(np.mean(whole**2)), rel=1e-5)


def test_places_cover_every_call_in_order():
    places = [place_of(call) for call in range(2000)]
    assert places[:32] == list(range(32)) and places == sorted(places) and set(places) == set(range(len(STARTS)))
    assert (
        names_of("core")[0] == "core[0]"
        and names_of("core")[32] == "core[32-39]"
        and names_of("core")[-1] == "core[448-]"
    )
    assert POSITIONS[31:34] == (31.0, 35.5, 43.5)


def test_modules_that_are_called_twice_or_once_are_no_loops(attach):
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, 5))

        def forward(self, x):
            return self.tower(x) - self.tower(-x)

    train(Towers(), 3, attach)
    assert not any(key.signal.startswith("loop_") for key in attach.finish().keys)


def test_shared_layers_are_loops_and_there_is_a_limit_to_them(attach, monkeypatch):
    class Shared(nn.Module):
        """Two layers, called in turn, six times each."""

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.Tanh()) for _ in range(2))
            self.out = nn.Linear(D, 5)

        def forward(self, x):
            for i in range(12):
                x = x + self.layers[i % 2](x)
            return self.out(x)

    train(Shared(), 3, attach)
    log = attach.finish()
    assert {k.layer for k in log.keys if k.signal == "loop_gain_ratio"} == {"layers.0", "layers.1"}
    monkeypatch.setattr(loops, "MOST", 1)
    train(Shared(), 3, attach)
    log = attach.finish()
    assert {k.layer for k in log.keys if k.signal == "loop_gain_ratio"} == {"layers.0"}
    told = {(e["tap"], e["site"]) for e in attach.watches[-1].coverage()["unmeasured"]}
    assert ("loop", "layers.1") in told


def test_training_with_and_without_is_the_same(attach):
    torch.manual_seed(0)
    one = Looped()
    two = copy.deepcopy(one)
    assert train(one, 4) == train(two, 4, attach)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_an_exploding_loop_is_found_while_the_loss_falls(attach):
    torch.manual_seed(0)
    losses = train(model := Looped(kind="linear"), 40, attach, rate=3e-2)
    log = attach.finish()
    engine, run = Engine(), RunLog(log.path)
    for item in timeline(run, run.poll_events()):
        lead(engine, item)
    alert = next(a for a in engine.history if a.rule == "LoopGrowth")
    assert alert.layer == "core" and alert.step < 20
    assert losses[alert.step] < losses[0], "the loss has fallen since the first step"
    names = {k.layer for k in log.keys if k.signal == "singular_value_max"}
    assert {"core.injection.weight.state", "core.injection.weight.input"} <= names
    state = log.series("singular_value_max", "core.injection.weight.state")[1]
    assert np.nanmax(state) > 1.1
    truth = torch.linalg.svdvals(model.core.injection.weight.detach()[:, :D].double())[0].item()
    assert state[~np.isnan(state)][-1] == pytest.approx(truth, rel=0.2)
