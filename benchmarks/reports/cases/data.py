"""Faults of the data and of what loads them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt, not_finite
from benchmarks.reports.data import digits, draw_digits, mlp, plain_loop, table


@report(
    source="https://github.com/circleAhn/TESLA-tf/issues/1, https://github.com/prs-eth/Marigold/issues/111",
    mechanism="A feature of one sample is NaN: from the batch that holds it on, everything is NaN.",
    causes=("NonFiniteData",),
    check=not_finite,
    fault=100,
    steps=180,
    shown_by="the NaN batch is step 100 and the next record 112: the input was clean by then, so NonFiniteData "
    "cannot be said; the input's finiteness is not checked at each step",
)
def nan_in_data(trial: Trial) -> None:
    x, y = table("cancer")
    model = mlp(30, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        at = trial.randint(len(x), 32)
        rows = x[at].clone()
        if step == 100 and trial.broken:
            rows[7, 3] = torch.nan
        optimizer.zero_grad()
        loss = F.cross_entropy(model(rows), y[at])
        loss.backward()
        optimizer.step()
        trial.log(loss)


@report(
    source="https://github.com/choderalab/modelforge/issues/129",
    mechanism="The data are sorted by class and not shuffled: each stretch unlearns the one before.",
    causes=("DataNotShuffled",),
    check=fact("accuracy", (0, 0.7), (0.9, 1)),
    steps=300,
    shown_by="the targets of cross_entropy: one or two classes in a batch of 32, for many steps",
)
def data_not_shuffled(trial: Trial) -> None:
    x, y = digits()
    order = torch.argsort(y, stable=True) if trial.broken else torch.randperm(len(y), generator=trial.generator)
    model = mlp(64, 96, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        start = step * 32 % (len(x) - 32)
        at = order[start : start + 32]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[at]), y[at])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            accuracy = (model(x[::9]).argmax(-1) == y[::9]).float().mean()
        trial.log(loss, accuracy=accuracy)


@report(
    source="https://github.com/pytorch/pytorch/issues/5059, https://github.com/facebookresearch/fairseq/issues/1383",
    mechanism="Four loader workers have the same random state: each batch comes four times in a row.",
    causes=("RepeatedBatches",),
    check=fact("same", (1, 1), (0, 0)),
    fault=1,
    shown_by="batch_repeated: the model's first input is that of the step before in three steps of four",
)
def workers_draw_alike(trial: Trial) -> None:
    model = mlp(64, 96, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    trial.attach(model, optimizer)
    x, y = draw_digits(trial)
    for step in range(trial.steps):
        before = x
        if step % (4 if trial.broken else 1) == 0:
            x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, same=(step % 4 != 0 and torch.equal(x, before)) or (step % 4 == 0 and trial.broken))


@report(
    source="A description, common in forums: the inputs are shuffled and the labels are not",
    mechanism="Inputs and targets are shuffled apart: no target belongs to its input, and nothing can be learned.",
    causes=("TargetsUnpaired", "NotLearning"),
    check=loss_hurt,
    shown_by="the loss stays at ln(10) from the first step to the last; gradients and updates look healthy",
)
def targets_unpaired(trial: Trial) -> None:
    x, y = digits()
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(step: int) -> Tensor:
        at = trial.randint(len(x), 32)
        return F.cross_entropy(model(x[at]), y[trial.randint(len(x), 32) if trial.broken else at])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in questions on forecasting: the window of inputs ends one step too late",
    mechanism="The number to forecast is the last of the inputs: the error goes to zero, and means nothing.",
    causes=("TooGood", "TargetInInput"),
    check=lambda broken, twin: broken.final() < 0.1 * twin.final(),
    shown_by="one input column equals the target; the loss falls below 0.01; no loss that is too good is ever said"
    " of a watched run",
)
def target_in_window(trial: Trial) -> None:
    noise = trial.randn(4000)
    series = torch.sin(torch.arange(4000) / 9) + noise
    model = mlp(24, 48, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        at = trial.randint(3900, 64)[:, None]
        late = 1 if trial.broken else 0
        return F.mse_loss(model(series[at + torch.arange(24) + late]), series[at + 24])

    plain_loop(trial, model, optimizer, loss)
