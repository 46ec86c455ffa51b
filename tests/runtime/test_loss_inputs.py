"""What losses are given: logits that are none, targets that do not fit, data in order; healthy losses are calm."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.analysis import analyze
from stabwatch.hooks.losses import broadcast_factor
from stabwatch.hooks.probes.layers import lost_updates

STEPS = 40
pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")


def _causes(loss, tmp_path, model=None, rate=0.1, steps=STEPS):
    """Trains on `loss(model, x, y)`; the names of the causes, in order."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False, every_step=True)
    x = torch.randn(steps * 16, 6)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    for step in range(steps):
        rows = slice(16 * step, 16 * step + 16)
        optimizer.zero_grad()
        loss(model, x[rows], y[rows]).backward()
        optimizer.step()
    watch.detach()
    found = analyze(watch.run_dir)
    assert not found.errors
    return [cause.name for cause in found.diagnosis.causes]


def _margin(cosine, y):
    """ArcFace: a margin is taken from the angle of the label, and all is scaled by 30."""
    own = F.one_hot(y, 4).bool()
    angle = torch.acos(cosine.clamp(-0.999, 0.999))
    return F.cross_entropy(30 * torch.where(own, torch.cos(angle + 0.5), cosine), y)


def _quantiles(model, x, y):
    """Each of four quantiles against each of four targets, as in QR-DQN: expanded on purpose."""
    targets = y.float()[:, None] + torch.randn(len(y), 4) / 10
    return F.smooth_l1_loss(model(x).unsqueeze(2).expand(-1, -1, 4), targets.unsqueeze(1).expand(-1, 4, -1))


def _ctc(given):
    """One label in sixteen frames."""
    return F.ctc_loss(given[:, None], torch.ones(1, 1, dtype=torch.long), torch.tensor([16]), torch.tensor([1]))


def _divergence(given):
    return F.kl_div(given, torch.full_like(given, 0.25), reduction="batchmean")


def _in_order(model, x, y):
    """Rows of one class, and the next class four batches later."""
    step = _in_order.step = getattr(_in_order, "step", -1) + 1
    return F.cross_entropy(model(x), torch.full_like(y, step // 4 % 4))


@pytest.mark.parametrize(
    ("loss", "cause"),
    [
        (lambda m, x, y: F.cross_entropy(m(x).softmax(-1), y), "DoubleSoftmax"),
        (lambda m, x, y: F.cross_entropy(m(x).relu(), y), "ReluOnLogits"),
        (lambda m, x, y: F.mse_loss(m(x)[:, :1], y.float()), "LossBroadcast"),
        (lambda m, x, y: F.nll_loss(m(x), y), "NotLogProbabilities"),
        (lambda m, x, y: F.nll_loss(m(x).softmax(-1), y), "NotLogProbabilities"),
        (lambda m, x, y: F.nll_loss(m(x).log_softmax(0), y), "NotLogProbabilities"),
        (lambda m, x, y: _ctc(m(x)), "NotLogProbabilities"),
        (lambda m, x, y: _divergence(m(x).softmax(-1)), "NotLogProbabilities"),
        (lambda m, x, y: F.cross_entropy(m(0 * x), y), "InputsConstant"),
        (lambda m, x, y: F.binary_cross_entropy_with_logits(m(x)[:, 0], y.float()), "TargetOutOfRange"),
        (lambda m, x, y: F.cross_entropy(60 * m(x), y), "InitialLossTooHigh"),
        (_in_order, "DataNotShuffled"),
    ],
)
def test_what_does_not_fit_is_named_first(loss, cause, tmp_path):
    causes = _causes(loss, tmp_path, rate=1e-3 if cause == "InitialLossTooHigh" else 0.1)
    assert causes[:1] == [cause]


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, x, y: F.cross_entropy(m(x), y),
        lambda m, x, y: F.cross_entropy(m(x).log_softmax(-1), y),
        lambda m, x, y: F.nll_loss(m(x).log_softmax(-1), y),
        lambda m, x, y: F.nll_loss(m(x).log_softmax(-1).T[None], y[None]),
        lambda m, x, y: _ctc(m(x).log_softmax(-1)),
        lambda m, x, y: _divergence(m(x).log_softmax(-1)),
        lambda m, x, y: _divergence(m(x).log_softmax(-1)[:, :2]),
        lambda m, x, y: _divergence(m(x).T[None].log_softmax(1)),
        lambda m, x, y: F.cross_entropy(m(x), y.clamp(max=1)),
        lambda m, x, y: F.mse_loss(m(x)[:, 0], y.float()),
        lambda m, x, y: F.mse_loss(m(x), y.float()[:, None]),
        lambda m, x, y: F.binary_cross_entropy_with_logits(m(x)[:, 0], (y > 1).float()),
        _quantiles,
    ],
)
def test_what_fits_is_left_in_peace(loss, tmp_path):
    assert _causes(loss, tmp_path) == []


def test_a_sigmoid_before_a_loss_that_has_one(tmp_path):
    def loss(m, x, y):
        return F.binary_cross_entropy_with_logits(m(x).sigmoid()[:, 0], (y > 1).float())

    assert _causes(loss, tmp_path, steps=80)[:1] == ["DoubleSigmoid"]


@pytest.mark.parametrize(
    ("loss", "cause"),
    [
        (lambda m, x, y: F.mse_loss(m(x)[:, 0], 5000 + y.float()), "TargetsNotScaled"),
        (lambda m, x, y: F.mse_loss(0 * m(x)[:, 0] + m[2].bias[0], x[:, 0] * x[:, 1]), "OutputsConstant"),
        (lambda m, x, y: F.cross_entropy(m(x), (y / 255).long()), "TargetsConstant"),
    ],
)
def test_what_shows_after_a_while(loss, cause, tmp_path):
    rate = 1e-6 if cause == "TargetsNotScaled" else 0.5
    steps = 90 if cause == "TargetsNotScaled" else 170
    assert cause in _causes(loss, tmp_path, rate=rate, steps=steps)[:3]


class Cosines(nn.Sequential):
    def forward(self, x):
        return F.linear(F.normalize(self[1](self[0](x))), F.normalize(self[2].weight))


@pytest.mark.parametrize("called", [False, True])
def test_a_margin_on_the_label_is_no_fault_of_the_initialisation(called, tmp_path):
    """Whether the loop calls the parts of the model, or the model."""
    torch.manual_seed(0)
    model = Cosines(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    cosines = Cosines.__call__ if called else Cosines.forward
    causes = _causes(lambda m, x, y: _margin(cosines(m, x), y), tmp_path, model, rate=1e-3)
    assert "InitialLossTooHigh" not in causes


def test_shapes_are_compared_as_torch_expands_them():
    def factor(*shapes):
        return broadcast_factor(*map(torch.Size, shapes))

    assert factor((8, 1), (8,)) == 8 and factor((8,), (8, 1)) == 8
    assert factor((8, 3), (3,)) == 1 and factor((8, 3), (8, 1)) == 1 and factor((), (8,)) == 1
    assert factor((8, 1), (8, 6)) == 6 and factor((1, 6), (8, 6)) == 1 and factor((8, 1, 5), (8, 5, 1)) == 1


def test_a_lost_update_has_a_gradient_and_the_same_number_after_it():
    p = nn.Parameter(torch.ones(100, dtype=torch.bfloat16))
    before = p.detach().clone()
    p.grad = torch.ones_like(p)
    p.grad[:20] = 0
    with torch.no_grad():
        p[20:50] += 0.1
        p[50:] += 1e-3  # less than half of the distance to the next number
    assert lost_updates(p.grad, p, before).tolist() == [80.0, 50.0]


@pytest.mark.parametrize(("first", "clipped"), [("unscale", False), ("clip", True)])
def test_gradients_that_are_clipped_before_they_are_unscaled(first, clipped, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    for _ in range(STEPS):
        optimizer.zero_grad()
        scaler.scale((model(torch.randn(16, 6)) - 20).square().mean()).backward()
        if first == "unscale":
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    watch.detach()
    found = analyze(watch.run_dir)
    assert [c.name for c in found.diagnosis.causes][:1] == (["ClipOnScaledGradients"] if clipped else [])
    assert math.isclose(next(s for s in found.series if s.signal == "clip_limit").last, 0.1, rel_tol=1e-6)
