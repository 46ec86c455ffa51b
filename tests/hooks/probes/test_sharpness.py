"""The largest eigenvalue of the Hessian: against the dense Hessian in float64, and its limits by optimizer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian

from stabwatch.hooks.probes import sharpness
from stabwatch.hooks.probes.sharpness import NO_LIMIT, NO_LOSS, OTHER_OUTPUT, limit_of
from stabwatch.kernels.sharpness.naive import largest
from stabwatch.signals.reductions import SHARPNESS, MergeOperators


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def dense(model, x, y, scales=None, loss=F.cross_entropy):
    """The largest eigenvalue of the Hessian at the model's weights, of all parameters in order."""
    matrix = flat_hessian(model, lambda p, wide: loss(functional_call(wide, p, x.double()), y))
    return largest(matrix, scales)


def data():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(32, 5, generator=draw)
    return x, x[:, :3].argmax(1)


def train(model, optimizer, x, y, steps=12):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("double", [True, False], ids=["differentiated twice", "difference of gradients"])
@pytest.mark.parametrize(
    ("beta", "nesterov"), [(0.0, False), pytest.param(0.9, False, marks=pytest.mark.slow), (0.9, True)]
)
def test_of_sgd_it_is_that_of_the_hessian(beta, nesterov, double, attach, monkeypatch):
    model, (x, y) = net(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=beta, nesterov=nesterov)
    watch = attach(model, optimizer, sharpness=True)
    monkeypatch.setattr(watch._session._taps.now.steps._sharpness, "_double", double)
    train(model, optimizer, x, y, 30)
    log = attach.finish()
    truth = dense(model, x, y)
    limit = {(0.0, False): 40.0, (0.9, False): 76.0, (0.9, True): 3.8 / 2.8 / 0.05}[beta, nesterov]
    assert log.series("sharpness_ratio")[1][-1] == pytest.approx(truth / limit, rel=0.02)
    assert log.series("sharpness")[1][-1] == pytest.approx(truth, rel=0.02)
    assert log.series("sharpness_residual_ratio")[1][-1] < 0.2


def flat_hessian(model, loss):
    """Of a model's parameters in order, in float64."""
    wide = copy.deepcopy(model).double()
    names, shapes = zip(*((n, p.shape) for n, p in wide.named_parameters()), strict=True)

    def value(theta):
        parts = theta.split([s.numel() for s in shapes])
        return loss({n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}, wide)

    return hessian(value)(torch.cat([p.detach().flatten() for p in wide.parameters()]))


@pytest.mark.parametrize("double", [True, False], ids=["differentiated twice", "difference of gradients"])
def test_the_trace_of_a_diagonal_hessian_is_exact(double, attach, monkeypatch):
    """Then any vector of signs gives it. Each input moves one weight alone."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False)
    x, y = torch.diag(torch.arange(1.0, 7.0)), torch.ones(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watch = attach(model, optimizer, sharpness=True)
    monkeypatch.setattr(watch._session._taps.now.steps._sharpness, "_double", double)
    for _ in range(4):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    truth = 2 / 6 * sum(i * i for i in range(1, 7))
    found = attach.finish().series("hessian_trace")[1]
    assert found.tolist() == pytest.approx([truth] * 4, rel=2e-3)


def test_the_mean_of_the_traces_is_that_of_the_dense_hessian(attach):
    """Of 100 vectors, with Hutchinson's variance: twice the squares beside the diagonal. The weights stay."""
    model, (x, y) = net(), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    attach(model, optimizer, sharpness=True)
    train(model, optimizer, x, y, 100)
    log = attach.finish()
    found = log.series("hessian_trace")[1]
    matrix = flat_hessian(model, lambda p, wide: F.cross_entropy(functional_call(wide, p, x.double()), y))
    variance = 2 * (matrix.square().sum() - matrix.diagonal().square().sum()).item()
    assert len(found) == 100 and np.isfinite(found).all()
    assert found.mean() == pytest.approx(matrix.trace().item(), abs=4 * (variance / 100) ** 0.5)
    assert found.std() == pytest.approx(variance**0.5, rel=0.3)
    rows = np.array([[1, a, 0, 0, 0] for a in found])
    merged = MergeOperators(SHARPNESS.ops, [0] * 5).merge(rows)
    assert merged[1] / merged[0] == pytest.approx(found.mean()), "a window has the mean"


def test_of_adam_it_is_preconditioned(attach):
    model, (x, y) = net(), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    attach(model, optimizer, sharpness=True)
    train(model, optimizer, x, y, 40)
    log = attach.finish()
    roots = []
    for p in model.parameters():
        state = optimizer.state[p]
        step = float(state["step"])
        roots.append(
            ((1 - 0.9**step) * ((state["exp_avg_sq"].double() / (1 - 0.999**step)).sqrt() + 1e-8)).rsqrt().flatten()
        )
    truth = dense(model, x, y, torch.cat(roots))
    assert log.series("sharpness_ratio")[1][-1] == pytest.approx(truth * 1e-3 / 38, rel=0.05)
    assert log.series("sharpness")[1][-1] == pytest.approx(truth, rel=0.05)


def test_groups_have_their_own_limits(attach):
    model, (x, y) = net(), data()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.02}]
    optimizer = torch.optim.SGD(groups)
    attach(model, optimizer, sharpness=True)
    train(model, optimizer, x, y, 30)
    log = attach.finish()
    scales = torch.cat(
        [torch.full((p.numel(),), r) for m, r in ((model[0], 0.1), (model[2], 0.02)) for p in m.parameters()]
    )
    truth = dense(model, x, y, (scales / 2).sqrt())
    assert log.series("sharpness_ratio")[1][-1] == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_is_the_same_and_dropout_and_batch_norm_are_left_alone(optimizer, attach):
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        opt = optimizer(model.parameters(), lr=1e-2)
        if watched:
            attach(model, opt, sharpness=True)
        x, y = data()
        torch.manual_seed(3)
        train(model, opt, x, y, 5)
        ends.append(
            [*(p.detach().clone() for p in model.parameters()), *(b.clone() for b in model.buffers()), torch.rand(3)]
        )
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert len(attach.finish().series("sharpness_ratio")[0]) == 5


def test_rows_of_a_language_model_and_a_regression(attach):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(7, 6), nn.Linear(6, 7)

        def forward(self, x):
            return self.out(torch.tanh(self.embed(x)))

    torch.manual_seed(0)
    model, x = Tokens(), torch.randint(7, (4, 9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, sharpness=True)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), x.roll(-1, 1).flatten()).backward()
        optimizer.step()
    assert attach.finish().series("sharpness_ratio")[1][-1] > 0
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, sharpness=True)
    x, _ = data()
    for _ in range(30):
        optimizer.zero_grad()
        F.mse_loss(model(x)[:, 0], x[:, 0]).backward()
        optimizer.step()
    truth = dense(model, x, x[:, 0].double(), loss=lambda out, y: F.mse_loss(out[:, 0], y))
    assert attach.finish().series("sharpness")[1][-1] == pytest.approx(truth, rel=0.03)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        (torch.optim.SGD, 20.0), (torch.optim.AdamW, 380.0), (torch.optim.NAdam, NO_LIMIT),
        (torch.optim.RAdam, NO_LIMIT), (type("LARS", (torch.optim.Optimizer,), {}), NO_LIMIT),
        (type("Mine", (torch.optim.Adam,), {}), 380.0),
    ],
)  # fmt: skip
def test_the_limit_is_that_of_the_optimizers_kind(kind, most):
    """Muon, LARS and others have momentum buffers too, and other limits."""
    moments = {name: torch.ones(2) for name in ("exp_avg", "exp_avg_sq")} | {"step": torch.ones(())}
    state = moments if "betas" in kind.__init__.__code__.co_varnames or kind.__name__ == "Mine" else {}
    group = {"lr": 0.1, "momentum": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}
    found = limit_of(kind, group, state)
    assert (found if isinstance(found, str) else found.most) == (most if isinstance(most, str) else pytest.approx(most))


@pytest.mark.parametrize(
    ("case", "reason"), [("shifted", OTHER_OUTPUT), ("own loss", NO_LOSS), ("optimizer", NO_LIMIT)]
)
def test_what_cannot_be_measured_is_named(case, reason, attach):
    model, (x, y) = net(), data()
    optimizer = (
        torch.optim.RMSprop(model.parameters()) if case == "optimizer" else torch.optim.SGD(model.parameters(), lr=0.1)
    )
    attach(model, optimizer, sharpness=True)
    for _ in range(3):
        optimizer.zero_grad()
        out = model(x)
        loss = {
            "shifted": lambda out=out: F.cross_entropy(out[1:], y[1:]),
            "own loss": lambda out=out: (out - out.detach() + 1).square().mean(),
            "optimizer": lambda out=out: F.cross_entropy(out, y),
        }[case]()
        loss.backward()
        optimizer.step()
    told = {e["tap"]: e["reason"] for e in attach.watches[-1].coverage()["unmeasured"]}
    assert told["sharpness"] == reason
    assert not any(
        k.signal == "sharpness_ratio" and len(attach.finish().series(k.signal)[0]) for k in attach.finish().keys
    )


def test_the_batch_is_cut_to_what_is_allowed(attach, monkeypatch):
    monkeypatch.setattr("stabwatch.runtime.model_taps.SAMPLES", 8)
    model, (x, y) = net(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attach(model, optimizer, sharpness=True)
    train(model, optimizer, x, y, 40)
    assert attach.finish().series("sharpness")[1][-1] == pytest.approx(dense(model, x[:8], y[:8]), rel=0.03)
    assert sharpness.SAMPLES == 512
