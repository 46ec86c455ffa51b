"""Siblings of what is asked most often, written after the rules for `asked_*`. Causes were noted before a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt, not_finite
from benchmarks.reports.data import (
    Assembled,
    Facts,
    digits,
    digits_loss,
    draw_digits,
    draw_images,
    mlp,
    plain_loop,
    table,
)


@report(
    source="https://github.com/pytorch/pytorch/issues/30150, a description: out[-1] of an LSTM with batch_first",
    mechanism="`out[-1]` of a layer with batch_first is the last sample and not the last step: each step of one sample "
    "gets the label of another.",
    causes=("SamplesMixed", "TargetsUnpaired", "NotLearning"),
    check=loss_hurt,
    steps=300,
    shown_by="the loss stays at ln 10",
)
def last_sample_for_last_step(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        out = m["body"](x.view(-1, 8, 8))[0]
        return m["head"](out[-1] if trial.broken else out[:, -1])

    model = Assembled(forward, body=nn.LSTM(8, 48, batch_first=True), head=nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model, size=8))


@report(
    source="A description, common in forums: weights of classes are 1 / count, and one count is 0",
    mechanism="The weight of a class that the first samples lack is infinite: the loss is NaN when it comes.",
    causes=("NonFiniteLoss", "NonFiniteData"),
    check=not_finite,
    fault=120,
    steps=200,
    shown_by="all logits are finite; the loss is not, from the first batch with that class on",
)
def weight_of_a_missing_class(trial: Trial) -> None:
    x, y = digits()
    known, all_rows = (y != 7).nonzero()[:, 0], torch.arange(len(y))
    counts = torch.bincount(y[known] if trial.broken else y, minlength=10).float()
    weights = len(known) / 10 / counts
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    def loss(step: int) -> Tensor:
        rows = known if step < 120 else all_rows
        at = rows[trial.randint(len(rows), 48)]
        return F.cross_entropy(model(x[at].view(-1, 1, 8, 8)), y[at], weight=weights)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in forums: `nn.init.normal_(w, 0, 0.01)` in each layer of a deep network",
    mechanism="All weights begin at a deviation of 0.01: numbers shrink in each of eight layers.",
    causes=("VanishingOverDepth", "VanishingGradients", "OutputsConstant"),
    check=loss_hurt,
    steps=300,
    shown_by="outputs of the last layers are 1e-8 and the same for all samples; so are early gradients",
)
def begins_too_small(trial: Trial) -> None:
    model = mlp(64, *[48] * 8, 10)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.01 if trial.broken else (2 / layer.in_features) ** 0.5)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="A description, common in forums: argmax (or round) in the middle of a network",
    mechanism="A code is chosen by argmax, through which no gradient comes: the encoder is never trained.",
    causes=("PartWithoutGradient",),
    check=loss_hurt,
    where=("encoder",),
    shown_by="the parameters of the encoder have no gradient",
)
def code_by_argmax(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        p = (m["encoder"](x).view(-1, 6, 8)).softmax(-1)
        hard = F.one_hot(p.argmax(-1), 8).float()
        return m["decoder"]((hard if trial.broken else hard - p.detach() + p).flatten(1))

    model = Assembled(forward, encoder=mlp(64, 64, 48), decoder=mlp(48, 64, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial)
        return F.mse_loss(model(x), x)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in questions on SimCLR: two views are stacked in turn and paired by halves",
    mechanism="The views lie one after the other and their positives are looked for half a batch away: pairs do not "
    "belong together.",
    causes=("TargetsUnpaired", "NotLearning", "EmbeddingCollapse"),
    check=loss_hurt,
    steps=300,
    shown_by="the loss stays at ln(2N - 1)",
)
def views_paired_wrongly(trial: Trial) -> None:
    model = mlp(64, 96, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    mine = torch.arange(64) ^ 1 if not trial.broken else torch.arange(64).roll(32)

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial)
        both = x.repeat_interleave(2, 0)
        z = F.normalize(model(both + 0.1 * trial.randn(64, 64)), dim=1)
        return F.cross_entropy((z @ z.T / 0.2).masked_fill(torch.eye(64, dtype=torch.bool), -1e9), mine)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in questions on sales and counts: the logarithm of 0 is a target",
    mechanism="Targets are logarithms of sales, and on one day nothing was sold: minus infinity.",
    causes=("NonFiniteData", "NonFiniteLoss"),
    check=not_finite,
    fault=60,
    steps=120,
    shown_by="a target of the loss is infinite; inputs and weights are not",
)
def logarithm_of_no_sales(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x)[0][:, -1])[:, 0], body=nn.GRU(1, 24, batch_first=True),
                      head=nn.Linear(24, 1))  # fmt: skip
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        week = 2 + torch.rand(32, 1, generator=trial.generator) + 0.3 * trial.randn(32, 15).abs()
        if step == 60:
            week[5, -1] = 0 if trial.broken else 1
        return F.mse_loss(model(week[:, :14, None] - 2), week[:, 14].log())

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in questions on GaussianNLLLoss: the loss goes to minus infinity, then to NaN",
    mechanism="The variance is learned without a floor, and a few samples are learned by heart: the loss falls below "
    "any bound.",
    causes=("LossWithoutBound", "Overfitting"),
    check=fact("deviation", (0, 0.1), (0.2, 9)),
    steps=400,
    shown_by="the loss is below zero and falls on; deviations go to zero",
)
def variance_to_zero(trial: Trial) -> None:
    x, y = table("diabetes")
    few = 10 if trial.broken else len(x)
    model = mlp(10, 256, 256, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        at = trial.randint(few, 24)
        mean, logvar = model(x[at]).unbind(1)
        nll = 0.5 * (logvar + (y[at] - mean).square() * (-logvar).exp()).mean()
        return nll, {"deviation": (0.5 * logvar.detach()).exp().median()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in forums: `.long()` of numbers that were scaled to 0 to 1",
    mechanism="Categories were scaled to 0 to 1 like the other columns, and as whole numbers all are 0.",
    causes=("InputsConstant",),
    check=loss_hurt,
    shown_by="all indices of an embedding are 0",
)
def categories_scaled(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["embed"](x).flatten(1)), embed=nn.Embedding(32, 12), head=mlp(48, 32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        kinds = trial.randint(32, 64, 4)
        return F.cross_entropy(
            model((kinds / 32).long() if trial.broken else kinds), kinds.sum(1) % 4 // 2 + kinds[:, 0] // 16
        )

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in forums: the loss jumps in the middle of an epoch and does not come back",
    mechanism="The pictures of one batch are broken: one step of SGD throws the weights far away.",
    causes=("BadBatch", "OddBatches", "InputsNotScaled"),
    check=lambda broken, twin: broken.final() > 3 * twin.final(),
    fault=150,
    steps=300,
    shown_by="the inputs of one step are thousands of times larger; the loss jumps in it and stays above",
)
def one_broken_batch(trial: Trial) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss(step: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(100 * trial.randn(*x.shape) if trial.broken and step == 150 else x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in questions on the range test: the exponential schedule is left in",
    mechanism="The schedule of a search for the rate is left in: it grows by 3 per cent a step.",
    causes=("LearningRateTooHigh", "LearningRateSpike"),
    check=loss_hurt,
    fault=120,
    steps=300,
    shown_by="the rate grows without end; updates grow with it, then the loss",
)
def search_left_in(trial: Trial) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1.03 if trial.broken else 0.995)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model), schedule=schedule)
