"""Clipping after the step, and steps without the scaler, are found; usual loops are calm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.analysis import analyze


def _first_causes(tmp_path, step, make=torch.optim.SGD, given=True):
    """Trains with `step(loss, parameters, optimizer, scaler)`; the names of the causes, in order."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer, scaler = make(model.parameters(), lr=1e-3), torch.amp.GradScaler("cpu", init_scale=64.0)
    watch = stabwatch.attach(model, optimizer if given else None, run_dir=tmp_path / "run", agent=False, verbose=False)
    for _ in range(16):
        x = torch.randn(16, 6)
        optimizer.zero_grad()
        step(F.cross_entropy(model(x), (x[:, 0] > 0).long()), list(model.parameters()), optimizer, scaler)
    watch.detach()
    found = analyze(watch.run_dir)
    assert not found.errors
    return [cause.name for cause in found.diagnosis.causes]


def late(loss, parameters, optimizer, scaler):
    loss.backward()
    optimizer.step()
    nn.utils.clip_grad_norm_(parameters, 1.0)


def in_time(loss, parameters, optimizer, scaler):
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def norm_asked_for(loss, parameters, optimizer, scaler):
    loss.backward()
    optimizer.step()
    nn.utils.clip_grad_norm_(parameters, float("inf"))


def values_late(loss, parameters, optimizer, scaler):
    loss.backward()
    optimizer.step()
    nn.utils.clip_grad_value_(parameters, 0.5)


def values_clipped_while_scaled(loss, parameters, optimizer, scaler):
    scaler.scale(loss).backward()
    nn.utils.clip_grad_value_(parameters, clip_value=0.01)
    scaler.step(optimizer)
    scaler.update()


def values_clipped_when_unscaled(loss, parameters, optimizer, scaler):
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_value_(parameters, 0.01)
    scaler.step(optimizer)
    scaler.update()


def without_scaler(loss, parameters, optimizer, scaler):
    scaler.scale(loss).backward()
    optimizer.step()


def with_scaler(loss, parameters, optimizer, scaler):
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def one_of_two_scaled(loss, parameters, optimizer, scaler):
    scaler.scale(loss).backward(retain_graph=True)
    (loss * 2).backward()
    scaler.step(optimizer)
    scaler.update()


def both_scaled(loss, parameters, optimizer, scaler):
    scaler.scale(loss).backward(retain_graph=True)
    scaler.scale(loss * 2).backward()
    scaler.step(optimizer)
    scaler.update()


def thrown_away_before(loss, parameters, optimizer, scaler):
    loss.backward(retain_graph=True)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def unscaled_and_clipped(loss, parameters, optimizer, scaler):
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    scaler.step(optimizer)
    scaler.update()


def divided_by_hand(loss, parameters, optimizer, scaler):
    scaler.scale(loss).backward()
    for p in parameters:
        p.grad.div_(scaler.get_scale())
    optimizer.step()


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("step", "cause"),
    [
        (late, "ClipAfterStep"),
        (values_late, "ClipAfterStep"),
        (values_clipped_while_scaled, "ClipOnScaledGradients"),
        (without_scaler, "GradientsNotUnscaled"),
        (one_of_two_scaled, "LossTermNotScaled"),
    ],
)
def test_a_wrong_order_is_named_first(step, cause, given, tmp_path):
    assert _first_causes(tmp_path, step, given=given)[:1] == [cause]


@pytest.mark.parametrize(
    "step",
    [
        in_time,
        norm_asked_for,
        with_scaler,
        unscaled_and_clipped,
        values_clipped_when_unscaled,
        divided_by_hand,
        both_scaled,
        thrown_away_before,
    ],
    ids=lambda f: f.__name__,
)
def test_a_usual_order_is_calm(step, tmp_path):
    assert _first_causes(tmp_path, step) == []


def test_a_run_without_a_step_is_told_when_it_ends(tmp_path):
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    for _ in range(80):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
    watch.detach()
    found = analyze(watch.run_dir)
    assert [a.rule for a in found.alerts] == ["OptimizerNeverSteps"] and not found.records
    assert [c.name for c in found.diagnosis.causes] == ["OptimizerNeverSteps"] and found.exit_code == 1


def test_a_running_statistic_that_is_not_finite_is_told_once_with_its_layer(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    for step in range(24):
        if step == 12:
            with torch.no_grad():
                model[3].running_var[2] = torch.nan
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
    watch.detach()
    found = analyze(watch.run_dir)
    first = found.diagnosis.causes[0]
    assert (first.name, first.layers) == ("NonFiniteBuffer", ("3",)) and not found.errors
    [alert] = [a for a in found.alerts if a.state == "firing"]
    assert alert.rule == "NonFinite" and alert.layer == "3" and 12 <= alert.step <= 14


def test_a_step_that_does_not_depend_on_the_size_of_the_gradient_is_calm(tmp_path):
    assert _first_causes(tmp_path, without_scaler, torch.optim.AdamW) == []
