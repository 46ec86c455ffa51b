"""Sums of attention weights, against weights that the module hands out; and why there are none elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.hooks.probes.row_sums import NOT_FOUND, STATE

STEPS = 16
T = 6


class Attention(nn.Module):
    """Two heads of 4 over six tokens; `way` is what is done with their scores."""

    def __init__(self, way):
        super().__init__()
        self.way, self.qkv, self.out = way, nn.Linear(8, 24), nn.Linear(8, 8)
        self.alpha, self.beta = nn.Parameter(torch.full((2, 1, 1), 0.7)), nn.Parameter(torch.full((2, 1, 1), 0.1))
        self.seen = []

    def forward(self, x):
        q, k, v = (y.view(len(x), T, 2, 4).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        y = getattr(self, self.way)(q, k, v)
        return self.out(y.transpose(1, 2).reshape(len(x), T, 8)) + x

    def fused(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)

    def softmax(self, q, k, v):
        return F.dropout((q @ k.mT / 2).softmax(-1), 0.2) @ v

    def affine(self, q, k, v):
        return self._with(F.dropout(self.alpha * (q @ k.mT / 2).softmax(-1) + self.beta, 0.0), v)

    def doubled(self, q, k, v):
        return self._with(2.0 * (q @ k.mT / 2).softmax(-1), v)

    def cut(self, q, k, v):
        seen = torch.ones(T, T, dtype=torch.bool).tril()
        return self._with((q @ k.mT / 2).softmax(-1).masked_fill(~seen, 0.0), v)

    def affine_and_cut(self, q, k, v):
        seen = torch.ones(T, T, dtype=torch.bool).tril()
        weights = (q @ k.mT / 2).masked_fill(~seen, -torch.inf).softmax(-1)
        return self._with(torch.where(seen, self.alpha * weights + self.beta, 0.0), v)

    def sparse(self, q, k, v):
        return self._with(((q @ k.mT / 2).softmax(-1) - 0.1).clamp(min=0.0), v)

    def lower(self, q, k, v):
        return self._with((q @ k.mT / 2).softmax(-1).tril(), v)

    def sigmoid(self, q, k, v):
        return self._with(torch.sigmoid(q @ k.mT / 2 - 1.8), v)

    def linear(self, q, k, v):
        q, k = F.elu(q) + 1, F.elu(k) + 1
        return q @ (k.mT @ v)

    def relu_einsum(self, q, k, v):
        return torch.einsum("bhtd,bhde->bhte", q.relu(), torch.einsum("bhsd,bhse->bhde", k.relu(), v))

    def efficient(self, q, k, v):
        return q.softmax(-1) @ (k.softmax(-2).mT @ v)

    def gated(self, q, k, v):
        return q.sigmoid() * v

    def _with(self, weights, v):
        self.seen.append(weights.detach().sum(-1))
        return weights @ v


def run(attach, way):
    torch.manual_seed(0)
    model = nn.Sequential(Attention(way))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = attach(model, optimizer, every_step=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(3, T, 8)).square().mean().backward()
        optimizer.step()
    coverage = str(watch.coverage())
    return model[0], coverage, attach.finish()


@pytest.mark.parametrize("way", ["affine", "doubled", "cut", "affine_and_cut", "sparse", "lower", "sigmoid"])
def test_weights_that_are_not_normalised_are_added_up(way, attach):
    model, _, log = run(attach, way)
    steps, mean = log.series("attention_row_weight", "0")
    assert len(steps) > 1
    seen = [model.seen[step] for step in steps.astype(int)]
    assert mean.tolist() == pytest.approx([s.mean().item() for s in seen], rel=1e-5)
    assert log.series("attention_row_weight_max", "0")[1].tolist() == pytest.approx([s.max().item() for s in seen])
    assert log.series("attention_row_weight_min", "0")[1].tolist() == pytest.approx([s.min().item() for s in seen])


@pytest.mark.parametrize("way", ["fused", "softmax"])
def test_of_a_softmax_nothing_is_said(way, attach):
    _, coverage, log = run(attach, way)
    assert "row_sum" not in coverage and not any(key.signal == "attention_row_weight" for key in log.keys)


@pytest.mark.parametrize(("way", "why"), [
    ("linear", STATE), ("relu_einsum", STATE), ("efficient", STATE),
    ("gated", NOT_FOUND),
])  # fmt: skip
def test_where_there_is_nothing_to_add_up_the_reason_is_said(way, why, attach):
    _, coverage, log = run(attach, way)
    assert not len(log.series("attention_row_weight", "0")[0])
    assert " ".join(why.split()) in " ".join(coverage.split())
