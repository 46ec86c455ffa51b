"""Siblings of the most usual reports, written after the rules that those had led to. Causes were noted before a run."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt, not_finite
from benchmarks.reports.data import Assembled, Facts, digits, draw_digits, draw_images, mlp, plain_loop, table


@report(
    source="A description, common in forums: the rows of the table are sorted, and the column of the targets is not",
    mechanism="Rows and targets of a regression are put in different orders: no target belongs to its row.",
    causes=("TargetsUnpaired", "NoBetterThanMean", "OutputsConstant", "NotLearning"),
    check=loss_hurt,
    steps=300,
    shown_by="the error stays at the variance of the targets",
)
def targets_in_another_order(trial: Trial) -> None:
    x, y = table("diabetes")
    y = y[torch.randperm(len(y), generator=trial.generator)] if trial.broken else y
    model = mlp(10, 16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        return F.mse_loss(model(x[at])[:, 0], y[at])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in forums: `load_state_dict` of the best checkpoint, which was never written again",
    mechanism="After an evaluation the checkpoint of the first steps is loaded: training is set back.",
    causes=("WeightsReplaced", "WeightsChangedOutsideStep", "Reinitialisation"),
    check=lambda broken, twin: broken.losses[130] > 2 * twin.losses[130],
    fault=130,
    shown_by="weights are written between two steps, and the loss is back at once",
)
def old_checkpoint_loaded(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    early: dict[str, Tensor] = {}

    def loss(step: int) -> Tensor:
        if step == 10:
            early.update(copy.deepcopy(model.state_dict()))
        if step == 130 and trial.broken:
            model.load_state_dict(early)
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, the most common question of all: eval/loss goes up from the third epoch on",
    mechanism="A network that is too large for its sixty samples: the evaluation of each epoch becomes worse.",
    causes=("Overfitting", "EvaluationApart"),
    check=lambda broken, twin: broken.final("eval") > 1.25 * min(broken.facts["eval"]),
    steps=400,
    shown_by="eval/loss, which the loop logs each epoch, rises while the loss falls",
)
def evaluation_becomes_worse(trial: Trial) -> None:
    x, y = digits()
    x = x + 0.5 * torch.randn(x.shape, generator=trial.generator)
    few = 60 if trial.broken else 1200
    model = mlp(64, 256, 256, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    worst = 0.0

    def loss(_: int) -> Tensor:
        at = trial.randint(few, 25)
        return F.cross_entropy(model(x[at]), y[at])

    def after(step: int) -> Facts:
        nonlocal worst
        if step % 25 == 24:
            with torch.no_grad():
                worst = float(F.cross_entropy(model(x[1200:]), y[1200:]))
            trial.tell(**{"eval/loss": worst})
        return {"eval": worst or 2.3}

    plain_loop(trial, model, optimizer, loss, after=after)


@report(
    source="https://github.com/DLR-RM/stable-baselines3/issues/2240 (a critic of its own)",
    mechanism="A critic learns returns of minus a thousand from samples of another policy, and is not near them in the "
    "whole run.",
    causes=("TargetsNotScaled",),
    check=fact("explained", (-1e9, 0.1), (0.3, 1)),
    shown_by="targets are hundreds of times the outputs",
)
def returns_of_a_thousand(trial: Trial) -> None:
    critic = mlp(4, 48, 48, 1, act=nn.Tanh)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    size = 1000.0 if trial.broken else 1.0

    def loss(_: int) -> tuple[Tensor, Facts]:
        x = trial.randn(64, 4)
        returns = size * (-1 + 0.4 * x[:, 0] + 0.1 * trial.randn(64))
        value = critic(x)[:, 0]
        explained = 1 - (returns - value.detach()).square().mean() / returns.var()
        return F.mse_loss(value, returns), {"explained": explained}

    plain_loop(trial, critic, optimizer, loss)


@report(
    source="https://github.com/pytorch/pytorch/issues/89543 (weights in place of targets)",
    mechanism="The weight of one sample is NaN (0 / 0 of an empty class) and is multiplied with its loss.",
    causes=("NonFiniteLoss", "NonFiniteData"),
    check=not_finite,
    fault=70,
    shown_by="all logits are finite; the weights of the samples are not",
)
def weight_of_a_sample_is_nan(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        counts = torch.bincount(y, minlength=10).float()
        if step == 70 and trial.broken:
            counts[int(y[0])] = 0
        weights = counts[y] / (counts[y] * counts[y]) if trial.broken else 1 / counts[y]
        return (F.cross_entropy(model(x), y, reduction="none") * weights).sum() / 10

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in questions on LSTMs: `out[:, -1]` of padded sequences",
    mechanism="The output at the last place of padded sequences is taken: the state has read dozens of zeros by then.",
    causes=("NotLearning", "OutputsConstant", "PartWithZeroGradient"),
    check=loss_hurt,
    steps=300,
    shown_by="the loss stays at ln(2)",
)
def last_place_is_padding(trial: Trial) -> None:
    model = Assembled(lambda m, x, at: m["head"](m["body"](m["embed"](x))[0][torch.arange(len(x)), at]),
                      embed=nn.Embedding(16, 8, padding_idx=0), body=nn.LSTM(8, 24, batch_first=True),
                      head=nn.Linear(24, 2))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(_: int) -> Tensor:
        words, y = 2 + trial.randint(14, 48, 6), trial.randint(2, 48)
        words[torch.arange(48), trial.randint(6, 48)] = 1 + y * 14 % 15
        x = F.pad(words, (0, 120))
        return F.cross_entropy(model(x, torch.full((48,), 125 if trial.broken else 5)), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in forums: Normalize(mean=127, std=64) after ToTensor",
    mechanism="Pixels of 0 to 1 are normalised as if they went to 255: all inputs are next to -2.",
    causes=("InputsNotScaled", "InputsConstant"),
    check=loss_hurt,
    steps=300,
    shown_by="inputs of different samples differ by a hundredth of their size",
)
def normalised_by_the_wrong_range(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        x = (x - 127) / 64 if trial.broken else (x - 0.3) / 0.37
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in questions on autoencoders: a tanh at the end and pictures of 0 to 255",
    mechanism="A tanh is the last layer, and pixels go from 0 to 255: hardly any can be reached.",
    causes=("TargetsOutOfReach", "TargetsNotScaled"),
    check=loss_hurt,
    shown_by="most targets lie outside of -1 to 1",
)
def tanh_of_pixels(trial: Trial) -> None:
    model = nn.Sequential(mlp(64, 32, 64), nn.Tanh())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial)
        return F.mse_loss(model(x), 255 * x if trial.broken else x)

    plain_loop(trial, model, optimizer, loss)
