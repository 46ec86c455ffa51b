"""Healthy workloads on tables, graphs and rare targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls
from benchmarks.reports.data import Assembled, digits, mlp, plain_loop, table


@healthy(learns=falls(0.85))
def quantile_regression(trial: Trial) -> None:
    """Three quantiles of the diabetes table by the pinball loss, RMSprop."""
    x, y = table("diabetes")
    model = mlp(10, 32, 3)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    levels = torch.tensor([0.1, 0.5, 0.9])

    def loss(step: int) -> Tensor:
        at = trial.randint(len(x), 32)
        error = y[at, None] - model(x[at])
        return torch.max(levels * error, (levels - 1) * error).mean()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8))
def multi_task(trial: Trial) -> None:
    """One body, a class and a number; the weights of both losses are learned, and the loss goes below zero."""
    x, y = table("cancer")
    body, classes, number = mlp(30, 32), nn.Linear(32, 2), nn.Linear(32, 1)

    def forward(parts: Assembled, x: Tensor) -> tuple[Tensor, Tensor]:
        h = parts["body"](x).relu()
        return parts["classes"](h), parts["number"](h)[:, 0]

    model = Assembled(forward, body=body, classes=classes, number=number)
    model.register_parameter("noise", nn.Parameter(torch.zeros(2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        at = trial.randint(len(x), 32)
        label, value = model(x[at])
        first, second = F.cross_entropy(label, y[at]), F.mse_loss(value, x[at, 0])
        return (-model.noise).exp() @ torch.stack([first, second]) + model.noise.sum()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.5))
def rare_targets(trial: Trial) -> None:
    """One target in fifty is positive: most batches hold none or one, and the loss is small and spiky."""
    model = mlp(20, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x = trial.randn(48, 20)
        y = (x[:, 0] + x[:, 1] > 2.9).float()
        return F.binary_cross_entropy_with_logits(model(x)[:, 0], y)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8))
def recommendation(trial: Trial) -> None:
    """Factorisation of ratings: most rows of both embeddings have no gradient in a step, Adagrad."""
    users, items = 0.7 * trial.randn(300, 4), 0.7 * trial.randn(120, 4)

    def forward(parts: Assembled, u: Tensor, i: Tensor) -> Tensor:
        return (parts["user"](u) * parts["item"](i)).sum(1)

    model = Assembled(forward, user=nn.Embedding(300, 8), item=nn.Embedding(120, 8))
    for part in model.values():
        nn.init.normal_(part.weight, 0, 0.3)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.2)

    def loss(step: int) -> Tensor:
        u, i = trial.randint(300, 64), trial.randint(120, 64)
        rating = (users[u] * items[i]).sum(1) + 0.1 * trial.randn(64)
        return F.mse_loss(model(u, i), rating)

    plain_loop(trial, model, optimizer, loss)


def _graph(trial: Trial, count: int = 150) -> tuple[Tensor, Tensor, Tensor]:
    """Features, classes, links with self-loops; most links are inside a class."""
    x, y = digits()
    x, y = x[:count], y[:count]
    near = (y[:, None] == y) & (trial.randn(count, count) > 1)
    links = (near | near.T | (trial.randn(count, count) > 2.8)).float().fill_diagonal_(1)
    return x + 0.4 * trial.randn(count, 64), y, links


@healthy(learns=falls(0.4), steps=300)
def graph_convolution(trial: Trial) -> None:
    """Two graph convolutions with dropout and weight decay, the whole graph at each step."""
    x, y, links = _graph(trial)
    scale = links.sum(1).rsqrt()
    near = scale[:, None] * links * scale
    first, second, drop = nn.Linear(64, 16), nn.Linear(16, 10), nn.Dropout(0.5)

    def forward(parts: Assembled) -> Tensor:
        h = parts["drop"]((near @ parts["first"](x)).relu())
        return near @ parts["second"](h)

    model = Assembled(forward, first=first, second=second, drop=drop)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)
    known = torch.arange(len(y)) % 3 == 0

    def loss(step: int) -> Tensor:
        return F.nll_loss(model().log_softmax(-1)[known], y[known])

    plain_loop(trial, model, optimizer, loss)


class GraphAttention(nn.Module):
    """Attention over neighbours, two heads added."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inner, 2 * outer, bias=False)
        self.left, self.right = (nn.Parameter(0.1 * torch.randn(2, outer)) for _ in range(2))

    def forward(self, x: Tensor, links: Tensor) -> Tensor:
        h = self.linear(x).view(len(x), 2, -1)
        scores = F.leaky_relu((h * self.left).sum(-1)[:, None] + (h * self.right).sum(-1)[None], 0.2)
        share = scores.masked_fill(links[..., None] == 0, -torch.inf).softmax(1)
        return torch.einsum("ijk,jkd->id", F.dropout(share, 0.3, self.training), h)


@healthy(learns=falls(0.5), steps=300)
def graph_attention(trial: Trial) -> None:
    """Two graph-attention layers with dropout of the attention."""
    x, y, links = _graph(trial)

    def forward(parts: Assembled) -> Tensor:
        return parts["second"](F.elu(parts["first"](x, links)), links)

    model = Assembled(forward, first=GraphAttention(64, 16), second=GraphAttention(16, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=5e-4)
    known = torch.arange(len(y)) % 3 == 0

    def loss(step: int) -> Tensor:
        return F.cross_entropy(model()[known], y[known])

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.01))
def polynomial(trial: Trial) -> None:
    """A polynomial of degree four by full gradient descent: the loss falls over four orders of magnitude."""
    x = torch.linspace(-1, 1, 64)[:, None]
    powers = torch.cat([x, x**2, x**3, x**4], 1)
    y = powers @ torch.tensor([[1.0], [-2.0], [0.5], [1.5]]) + 0.3
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
    plain_loop(trial, model, optimizer, lambda step: F.mse_loss(model(powers), y))


@healthy(learns=falls(0.75))
def noisy_labels(trial: Trial) -> None:
    """Three labels in ten are wrong, small batches of eight: a loud loss that falls slowly."""
    x, y = digits()
    model = mlp(64, 48, 10, act=nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss(step: int) -> Tensor:
        at = trial.randint(len(x), 8)
        wrong = torch.rand(8, generator=trial.generator) < 0.3
        return F.cross_entropy(model(x[at]), torch.where(wrong, trial.randint(10, 8), y[at]))

    plain_loop(trial, model, optimizer, loss)
