"""Healthy workloads of common kinds, a second time, continued; written before the rules of their day were changed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import (
    Assembled,
    Block,
    Facts,
    TextModel,
    digits,
    draw_digits,
    draw_text,
    mlp,
    plain_loop,
    right,
    table,
)


@healthy(learns=falls(0.9), steps=400)
def counts(trial: Trial) -> None:
    """Poisson regression of small counts, many of them zero, Adagrad."""
    model = mlp(6, 32, 1, act=nn.Tanh)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    rule = torch.randn(6, generator=trial.generator) / 3

    def loss(_: int) -> Tensor:
        x = trial.randn(64, 6)
        seen = torch.poisson((x @ rule - 0.5).exp(), generator=trial.generator)
        return 1 + F.poisson_nll_loss(model(x)[:, 0], seen, log_input=True)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.7), steps=400)
def forecast_by_convolutions(trial: Trial) -> None:
    """A dilated causal network that forecasts eight values of sums of sines with noise, mean absolute error."""
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.ConstantPad1d((2**i, 0), 0.0), nn.Conv1d(1 if i == 0 else 24, 24, 2, dilation=2**i), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1), nn.Linear(24 * 32, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    at = torch.arange(40.0)

    def loss(_: int) -> Tensor:
        rate, start = 0.1 + 0.5 * torch.rand(32, 2, 1, generator=trial.generator), 6 * torch.rand(32, 2, 1)
        series = (rate * at + start).sin().sum(1) + 0.05 * trial.randn(32, 40)
        return F.l1_loss(model(series[:, None, :32]), series[:, 32:])

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=reaches("right", 0.7), steps=400)
def links_of_a_graph(trial: Trial) -> None:
    """GraphSAGE: which of two nodes is a neighbour? Neighbours are sampled, others are drawn at random."""
    x, _ = (part[:400] for part in digits())
    near = torch.cdist(x, x).topk(9, largest=False).indices[:, 1:]

    def forward(m: Assembled, nodes: Tensor) -> Tensor:
        some = near[nodes][:, trial.randint(8, 4)]
        z = m["own"](x[nodes]) + m["others"](x[some].mean(1))
        return F.normalize(m["out"](z.relu()), dim=1)

    model = Assembled(forward, own=nn.Linear(64, 48), others=nn.Linear(64, 48), out=nn.Linear(48, 24))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        nodes = trial.randint(400, 64)
        friends, strangers = near[nodes, trial.randint(8, 64)], trial.randint(400, 64)
        z, a, b = model(torch.cat((nodes, friends, strangers))).chunk(3)
        good, bad = 5 * (z * a).sum(1), 5 * (z * b).sum(1)
        out = torch.cat((good, bad)) - 2
        wanted = torch.cat((torch.ones(64), torch.zeros(64)))
        return F.binary_cross_entropy_with_logits(out, wanted), {"right": ((out > 0) == (wanted > 0)).float().mean()}

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.9), steps=400)
def word_vectors(trial: Trial) -> None:
    """Skip-gram with five words at random for each true one, sparse gradients, SparseAdam."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Embedding(128, 24, sparse=True), nn.Embedding(128, 24, sparse=True)
            nn.init.uniform_(self.inner.weight, -0.02, 0.02)
            nn.init.zeros_(self.outer.weight)

        def forward(self, word: Tensor, true: Tensor, others: Tensor) -> Tensor:
            z = self.inner(word)
            good = F.logsigmoid((z * self.outer(true)).sum(-1))
            return -(good + F.logsigmoid(-(z[:, None] * self.outer(others)).sum(-1)).sum(1)).mean()

    model = Skip()
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=5e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial, 16, 16)
        return model(x.flatten(), y.flatten(), trial.randint(128, 256, 5))

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.7), steps=400)
def several_labels(trial: Trial) -> None:
    """Which of ten things are in a sum of three pictures? Binary cross-entropies with a weight for what is there."""
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    optimizer = torch.optim.NAdam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial, 96)
        there = F.one_hot(y, 10).view(32, 3, 10).amax(1).float()
        return F.binary_cross_entropy_with_logits(model(x.view(32, 3, 64).sum(1)), there, pos_weight=torch.tensor(2.5))

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.5), steps=400)
def pictures_and_words(trial: Trial) -> None:
    """CLIP: two towers, both directions, a temperature that is learned and held below 100, warm-up and cosine."""
    scale = nn.Parameter(torch.tensor(2.66))

    def forward(m: Assembled, x: Tensor, z: Tensor) -> Tensor:
        return scale.exp() * F.normalize(m["picture"](x), dim=1) @ F.normalize(m["words"](z), dim=1).T

    model = Assembled(forward, picture=mlp(64, 96, 32, act=nn.GELU), words=mlp(16, 64, 32, act=nn.GELU))
    model.register_parameter("scale", scale)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=trial.steps + 1, pct_start=0.1)
    look = torch.randn(64, 16, generator=trial.generator) / 8

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial, 48)
        logits, same = model(x, x @ look + 0.1 * trial.randn(48, 16)), torch.arange(48)
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2

    def after(_: int) -> Facts:
        schedule.step()
        with torch.no_grad():
            scale.clamp_(0, 4.6052)
        return {"scale": scale}

    plain_loop(trial, model, optimizer, loss, after=after)


@healthy(learns=reaches("right", 0.8), steps=400)
def few_shots(trial: Trial) -> None:
    """Prototypical networks: five classes of five pictures each, other classes in each episode."""
    x, y = digits()
    rows = [(y == i).nonzero()[:, 0] for i in range(10)]
    model = mlp(64, 64, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        kinds = torch.randperm(10, generator=trial.generator)[:5]
        drawn = torch.stack([rows[int(k)][trial.randint(len(rows[int(k)]), 10)] for k in kinds])
        z = model(x[drawn.flatten()]).view(5, 10, 32)
        far = torch.cdist(z[:, 5:].reshape(25, 32), z[:, :5].mean(1)).square()
        wanted = torch.arange(5).repeat_interleave(5)
        return F.cross_entropy(-far, wanted), {"right": right(-far, wanted)}

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.9), steps=300)
def answers_only(trial: Trial) -> None:
    """Supervised fine-tuning of a small GPT: prompts are ignored in the loss (-100), four micro-batches."""
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.steps)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        total = 0.0
        for _micro in range(4):
            x, y = draw_text(trial, 4)
            wanted = y.masked_fill(torch.arange(32) < 8 + trial.randint(12, 4, 1), -100)
            loss = F.cross_entropy(model(x).flatten(0, 1), wanted.flatten()) / 4
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        trial.log(total)


@healthy(learns=reaches("right", 0.75), steps=400)
def reward_model(trial: Trial) -> None:
    """A reward of texts from pairs of which one is preferred (Bradley and Terry), some the wrong way round."""
    model = Assembled(lambda m, x: m["head"](m["body"](m["embed"](x)).mean(1))[:, 0], embed=nn.Embedding(32, 24),
                      body=Block(24, 2, causal=False), head=nn.Linear(24, 1))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    worth = torch.randn(32, generator=trial.generator)

    def loss(_: int) -> tuple[Tensor, Facts]:
        a, b = trial.randint(32, 32, 12), trial.randint(32, 32, 12)
        better = worth[a].mean(1) > worth[b].mean(1)
        told = better ^ (torch.rand(32, generator=trial.generator) < 0.15)
        margin = (model(a) - model(b)) * (2.0 * told - 1)
        accuracy = ((margin * (2.0 * told - 1) > 0) == better).float().mean()
        trial.tell(accuracy=accuracy)
        return -F.logsigmoid(margin).mean(), {"right": accuracy}

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.2), steps=400)
def picture_by_coordinates(trial: Trial) -> None:
    """A picture from Fourier features of places, as in NeRF: Adam at 5e-3 that decays."""
    model = mlp(32, 64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=1e-15)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.995)
    rates = 3 * torch.randn(2, 16, generator=trial.generator)

    def loss(_: int) -> Tensor:
        place = torch.rand(256, 2, generator=trial.generator)
        wanted = (8 * place[:, :1]).sin() * (5 * place[:, 1:]).cos()
        turned = 6.28 * place @ rates / 3
        return F.mse_loss(model(torch.cat((turned.sin(), turned.cos()), 1)), wanted)

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=falls(0.9), steps=400)
def patients_with_decay(trial: Trial) -> None:
    """A table of patients, a small network with tanh, decay of the weights, mean squared error."""
    x, y = table("diabetes")
    model = mlp(10, 24, 1, act=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-2)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 48)
        return F.mse_loss(model(x[at])[:, 0], y[at])

    plain_loop(trial, model, optimizer, loss)
