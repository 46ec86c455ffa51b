"""The Jacobian of models that map a tensor to one of the same shape: against the dense one in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev, vmap

from stabwatch.hooks.probes.jacobian import NO_MAP, NO_SECOND
from stabwatch.hooks.probes.sharpness import SYNCHRONISED
from stabwatch.kernels.jacobian import climb_rows
from stabwatch.kernels.jacobian.eager import unit_rows
from stabwatch.kernels.jacobian.naive import largest_and_norm
from stabwatch.signals.reductions import JACOBIAN, MergeOperators


class Step(nn.Module):
    """One step of a map on (B, 2, 5), with a condition that has another shape."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.outside, self.condition = nn.Linear(10, 16), nn.Linear(16, 10), nn.Linear(1, 16)

    def forward(self, time, state):
        hidden = self.inside(state.flatten(1)) + self.condition(time)
        return {"state": state + self.outside(torch.tanh(hidden)).view_as(state)}


def dense(model, time, state):
    wide = copy.deepcopy(model).double()
    parameters = dict(wide.named_parameters())

    def one(t, x):
        return functional_call(wide, parameters, (t[None], x[None]))["state"][0].flatten()

    return vmap(jacrev(one, argnums=1))(time.double(), state.double()).flatten(2)


def train(model, optimizer, steps, size=6):
    draw = torch.Generator().manual_seed(1)
    state, time = torch.randn(size, 2, 5, generator=draw), torch.rand(size, 1, generator=draw)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(time, state=state)["state"], 1.5 * state).backward()
        optimizer.step()
    return time, state


def test_it_is_that_of_the_dense_jacobian(attach):
    model = Step()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    attach(model, optimizer, jacobian=True)
    call = train(model, optimizer, 20)
    log = attach.finish()
    values, norms = largest_and_norm(dense(model, *call))
    assert log.series("jacobian_singular_value")[1][-1] == pytest.approx(values.mean().item(), rel=1e-3)
    assert log.series("jacobian_singular_value_max")[1][-1] == pytest.approx(values.max().item(), rel=1e-3)
    assert log.series("jacobian_residual_ratio")[1][-1] < 0.1
    near = log.series("jacobian_norm")[1][-5:]  # of random vectors, six in each
    assert (near**2).mean() == pytest.approx(norms.square().mean().item(), rel=0.2)


def test_the_norm_of_a_map_that_turns_and_stretches_is_exact(attach):
    """J'J is a multiple of the identity: every vector of signs is stretched alike."""
    model = nn.Linear(4, 4, bias=False)
    model.weight.data = 1.5 * torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer, jacobian=True)
    for _ in range(3):
        model(torch.randn(20, 4)).square().mean().backward()
        optimizer.step()
    log = attach.finish()
    for signal in ("jacobian_singular_value", "jacobian_singular_value_max"):
        assert log.series(signal)[1].tolist() == pytest.approx([1.5] * 3)
    assert log.series("jacobian_norm")[1].tolist() == pytest.approx([3.0] * 3)


def test_each_map_of_a_batch_climbs_by_itself():
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 7, 9, generator=draw) * torch.tensor([1e-3, 1.0, 1e3, 0.0, 1.0])[:, None, None]
    vectors = unit_rows(torch.randn(5, 9, generator=draw))
    for _ in range(60):
        vectors, values, residuals = climb_rows(
            lambda v: torch.einsum("bmn,bn->bm", maps, v), lambda w: torch.einsum("bmn,bm->bn", maps, w), vectors
        )
    assert values.tolist() == pytest.approx(largest_and_norm(maps)[0].tolist(), rel=1e-4)
    assert residuals.max() < 1e-2


def test_it_merges():
    rows = torch.tensor([[2.0, 8, 3, 2, 0.1], [4.0, 4, 4, 1, 0.2]]).numpy()
    assert MergeOperators(JACOBIAN.ops, [0] * 5).merge(rows).tolist() == pytest.approx([6, 12, 7, 2, 0.2])


class Noisy(nn.Module):
    """Batch norm, dropout and attention, with a buffer and an attribute that its forward changes."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.mix = nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Linear(8, 24)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        q, k, v = self.mix(self.drop(self.norm(x))).chunk(3, -1)
        return x + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


def test_training_is_the_same(attach):
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Noisy()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if watched:
            watch = attach(model, optimizer, jacobian=True)
        for _ in range(12):
            x = torch.randn(4, 6, 8)
            optimizer.zero_grad()
            F.mse_loss(model(x), x.flip(0)).backward()
            optimizer.step()
        assert model.calls == 12
        ends.append([*model.state_dict().values(), torch.randn(3)])
    assert not watch._session.isolation.errors
    assert len(attach.finish().series("jacobian_singular_value")[0]) == 12
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


class Rounds(nn.Linear):
    def forward(self, x):
        return Rounded.apply(super().forward(x))


WITHOUT = {
    "tokens": (lambda: nn.Embedding(8, 4), torch.arange(6), NO_MAP),
    "another shape": (lambda: nn.Linear(4, 3), torch.ones(6, 4), NO_MAP),
    "once": (lambda: Rounds(4, 4), torch.ones(6, 4), NO_SECOND),
    "synchronised": (lambda: nn.Sequential(nn.Linear(4, 4), Idle(4)), torch.ones(6, 4), SYNCHRONISED),
}


class Idle(nn.SyncBatchNorm):
    def forward(self, x):
        return x


@pytest.mark.parametrize("kind", WITHOUT)
def test_what_cannot_be_measured_says_why(kind, attach):
    make, x, why = WITHOUT[kind]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer, jacobian=True)
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
    assert [e["reason"] for e in watch.coverage()["unmeasured"] if e["tap"] == "jacobian"] == [why]
    assert not watch._session.isolation.errors
    attach.finish()


def test_who_does_not_ask_has_no_such_signal(attach):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    model(torch.ones(2, 4)).mean().backward()
    optimizer.step()
    assert not any(e["tap"] == "jacobian" for e in watch.coverage()["unmeasured"])
    assert not any(key.signal.startswith("jacobian") for key in attach.finish().keys)
