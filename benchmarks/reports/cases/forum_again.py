"""Siblings of what is asked in forums, written after the mends for that. Causes were noted before a run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt, not_finite
from benchmarks.reports.data import Assembled, digits, draw_digits, draw_images, mlp, plain_loop, table, token_loss


@report(
    source="A sibling of masks that hide nothing: attention by hand, triu for tril",
    mechanism="Scores are hidden where torch.triu is 0: each word sees what comes after it and nothing before.",
    causes=("CausalMaskMissing",),
    check=fact("loss", (0, 0.9), (1.2, 9)),
    steps=300,
    shown_by="a later word changes what is said of an earlier one",
)
def upper_for_lower(trial: Trial) -> None:
    mask = torch.ones(12, 12).triu() if trial.broken else torch.ones(12, 12).tril()

    def forward(m: Assembled, tokens: Tensor) -> Tensor:
        h = m["embed"](tokens) + m["place"].weight
        q, k, v = m["qkv"](h).chunk(3, -1)
        weights = (q @ k.mT / math.sqrt(48) + (1 - mask) * -1e9).softmax(-1)
        h = h + m["out"](weights @ v)
        return m["head"](h + m["feed"](h))

    model = Assembled(forward, embed=nn.Embedding(16, 48), place=nn.Embedding(12, 48), qkv=nn.Linear(48, 144),
                      out=nn.Linear(48, 48), feed=mlp(48, 96, 48), head=nn.Linear(48, 16))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    def loss(_: int) -> Tensor:
        tokens = [trial.randint(16, 32)]
        for _ in range(12):
            tokens.append((5 * tokens[-1] + trial.randint(4, 32)) % 16)
        rows = torch.stack(tokens, 1)
        return token_loss(model(rows[:, :-1]), rows[:, 1:])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of differences by hand: the absolute one, pictures",
    mechanism="abs(out - y) of outputs (n, 1) and targets (n) is n by n: the median of all targets is best.",
    causes=("LossBroadcast",),
    check=loss_hurt,
    steps=250,
    shown_by="the loss stays where a constant leaves it",
)
def sizes_of_all_others(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        out = model(x)
        return torch.mean(torch.abs((out if trial.broken else out.squeeze(1)) - y / 9))

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of parts that lose their gradient: a tower, a contrastive loss",
    mechanism="From step 90 on the embeddings of the second tower come from a cache, without a gradient.",
    causes=("PartLostGradient",),
    check=loss_hurt,
    where=("second",),
    fault=90,
    steps=300,
    shown_by="the second tower has no gradient from there on",
)
def embeddings_from_a_cache(trial: Trial) -> None:
    model = Assembled(lambda m, a, b: (m["first"](a), m["second"](b)), first=mlp(32, 64, 24, act=nn.GELU),
                      second=mlp(32, 64, 24, act=nn.GELU))  # fmt: skip
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-4)

    def loss(step: int) -> Tensor:
        x, _y = draw_digits(trial)
        a, b = model(x[:, :32], x[:, 32:])
        b = b.detach() if trial.broken and step >= 90 else b
        scores = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / 0.1
        return F.cross_entropy(scores, torch.arange(32))

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of targets that are not scaled: the loss by hand",
    mechanism="Targets are in the thousands, and 0.5 * (y - out) ** 2 is written by hand: outputs come nowhere near.",
    causes=("TargetsNotScaled", "NoBetterThanMean"),
    check=lambda broken, twin: broken.final() > 0.5 * broken.first() and twin.final() < 0.8 * twin.first(),
    steps=300,
    shown_by="outputs are a thousandth of what is asked for",
)
def prices_as_they_are(trial: Trial) -> None:
    x, y = table("diabetes")
    model = mlp(10, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 48)
        target = 4000 + 1000 * y[at] if trial.broken else y[at]
        return 0.5 * (target - model(x[at]).flatten()).pow(2).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of logarithms of zero: a column of a table",
    mechanism="A column is taken as its logarithm, and one row has a zero there: minus infinity goes into the network.",
    causes=("NonFiniteData",),
    check=not_finite,
    fault=65,
    steps=110,
    shown_by="the inputs of one batch are not finite",
)
def logarithm_of_a_column(trial: Trial) -> None:
    x, y = table("cancer")
    model = nn.Sequential(nn.Linear(30, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 2))
    optimizer = torch.optim.NAdam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        at = trial.randint(len(x), 32)
        column = x[at, 3].exp()
        if trial.broken and step == 65:
            column[4] = 0
        rows = x[at].clone()
        rows[:, 3] = column.log()
        return F.cross_entropy(model(rows), y[at])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of inputs and targets in different orders: an autoencoder by hand",
    mechanism="The pictures to be drawn are shuffled once more than those that are given: none belongs to its input.",
    causes=("NoBetterThanMean", "TargetsUnpaired"),
    check=loss_hurt,
    steps=300,
    shown_by="the error is the variance of the pictures",
)
def pictures_of_others(trial: Trial) -> None:
    x, _y = digits()
    model = mlp(64, 48, 16, 48, 64, act=nn.ELU)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        wanted = x[at[torch.randperm(32, generator=trial.generator)]] if trial.broken else x[at]
        return ((model(x[at]) - wanted) ** 2).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of a momentum that is too long: Adam's first beta",
    mechanism="The rate of Adam is 0.15 for a deep network with skips: it learns at first and leaves it again.",
    causes=("LearningRateTooHigh",),
    check=loss_hurt,
    steps=300,
    shown_by="updates are a large part of the weights, and the loss rises",
)
def fast_and_lost_again(trial: Trial) -> None:
    blocks = nn.ModuleList(mlp(48, 96, 48) for _ in range(6))

    def forward(m: Assembled, x: Tensor) -> Tensor:
        h = m["first"](x)
        for block in m["blocks"]:
            h = h + block(h)
        return m["head"](h)

    model = Assembled(forward, first=nn.Linear(64, 48), blocks=blocks, head=nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.15 if trial.broken else 1e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)
