"""A third reading of reports: how a run is set up and stepped. Causes were noted before stabwatch saw a run."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import all_of, fact, loss_hurt
from benchmarks.reports.data import Assembled, digits_loss, draw_digits, draw_images, mlp, plain_loop, table

FAULTS = "https://arxiv.org/abs/1910.11015"
"""Humbatova et al. 2020, Taxonomy of Real Faults in Deep Learning Systems."""


@report(
    source="https://github.com/pytorch/pytorch/issues/3814, https://github.com/ClementPinard/SfmLearner-Pytorch/issues/5",
    mechanism="The scheduler steps in place of the optimizer: no weight ever changes.",
    causes=("OptimizerNeverSteps",),
    check=loss_hurt,
    shown_by="forwards and backward passes without a step",
)
def scheduler_in_place_of_step(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        loss = digits_loss(trial, model)
        loss.backward()
        if not trial.broken:
            optimizer.step()
        schedule.step()
        trial.log(loss)


@report(
    source="https://github.com/bytetriper/RAE/issues/67, https://github.com/meta-pytorch/opacus/issues/93",
    mechanism="Gradients are set to zero before each micro-batch, and the optimizer steps after each eighth: seven "
    "of eight are thrown away.",
    causes=("GradientsThrownAway",),
    check=loss_hurt,
    steps=200,
    shown_by="seven backward passes in eight are followed by zero_grad and by no step",
)
def zero_grad_by_micro_batch(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        total = torch.zeros(())
        for _ in range(8):
            if trial.broken:
                optimizer.zero_grad()
            loss = digits_loss(trial, model, size=4) / 8
            loss.backward()
            total += loss.detach()
        optimizer.step()
        trial.log(total)


@report(
    source=FAULTS + " (learning rate)",
    mechanism="The body's group of parameters has a rate that was meant for fine-tuning, 1e-9: it stands still.",
    causes=("LayerStandsStill", "NoUpdates", "LearningRateZero"),
    check=all_of(loss_hurt, fact("moved", (0, 1e-5), (0.01, 9))),
    where=("body",),
    shown_by="updates of the body are a millionth of those of the head",
)
def group_without_rate(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x).relu()), body=nn.Linear(64, 8), head=nn.Linear(8, 10))
    rate = 1e-9 if trial.broken else 5e-3
    groups = [{"params": model["body"].parameters(), "lr": rate}, {"params": model["head"].parameters()}]
    optimizer = torch.optim.Adam(groups, lr=5e-3)
    start = model["body"].weight.detach().clone()
    plain_loop(
        trial,
        model,
        optimizer,
        lambda _: digits_loss(trial, model),
        after=lambda _: {"moved": (model["body"].weight.detach() - start).abs().mean()},
    )


@report(
    source=FAULTS + " (gradient clipping)",
    mechanism="Gradients are clipped to a norm of 1e-4: with plain SGD each step is next to nothing.",
    causes=("ClippedTooHard", "UpdatesTooSmall", "NoUpdates"),
    check=loss_hurt,
    shown_by="gradient_norm_before_clip is ten thousand times the norm after it, at each step; updates are tiny",
)
def clipped_to_nothing(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        loss = digits_loss(trial, model)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-4 if trial.broken else 1.0)
        optimizer.step()
        trial.log(loss)


@report(
    source=FAULTS + " (learning rate), AutoTrainer, ICSE 2021 (slow convergence)",
    mechanism="The learning rate of Adam is 1e-7: ten thousand steps would change a weight by a per cent.",
    causes=("UpdatesTooSmall", "NoUpdates"),
    check=loss_hurt,
    shown_by="update_to_weight_ratio is a hundred-thousandth of what is usual; the loss is where it began",
)
def rate_far_too_small(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-7 if trial.broken else 3e-3)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="https://github.com/paiml/aprender/pull/2123, " + FAULTS + " (loss function)",
    mechanism="The loss is summed over the batch at a rate that was chosen for its mean: steps are 64 times too large.",
    causes=("LearningRateTooHigh",),
    check=loss_hurt,
    shown_by="updates of several per cent of the weights",
)
def loss_summed(trial: Trial) -> None:
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial, 64)
        return F.cross_entropy(model(x), y, reduction="sum" if trial.broken else "mean")

    plain_loop(trial, model, optimizer, loss)


@report(
    source=FAULTS + " (activation), AutoTrainer, ICSE 2021 (vanishing gradient)",
    mechanism="Five layers of sigmoids: no gradient comes through to the first ones.",
    causes=("VanishingGradients", "VanishingOverDepth"),
    check=loss_hurt,
    steps=300,
    shown_by="the gradient of the first layer is a millionth of that of the last one",
)
def sigmoids_all_the_way(trial: Trial) -> None:
    widths = (64, *[64] * 5, 10)
    model = mlp(*widths, act=nn.Sigmoid if trial.broken else nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source=FAULTS + " (weights initialisation), https://stats.stackexchange.com/questions/352036",
    mechanism="Weights are drawn from a normal distribution of deviation 1: the first logits are hundreds.",
    causes=("InitialLossTooHigh", "ActivationOutlierGrowth", "OutputLogitDrift", "SoftmaxCollapse"),
    check=loss_hurt,
    shown_by="the first loss is hundreds of times ln(classes)",
)
def weights_begin_large(trial: Trial) -> None:
    model = mlp(64, 128, 128, 10)
    if trial.broken:
        for p in model.parameters():
            nn.init.normal_(p)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source=FAULTS + " (weights initialisation)",
    mechanism="All weights of a layer begin at the same number: its units stay one unit for ever.",
    causes=("UnitsAlike", "TokenCollapse", "NotLearning"),
    check=loss_hurt,
    where=("0", "2"),
    shown_by="rows of the weight matrices are all the same, and so are their gradients",
)
def weights_begin_equal(trial: Trial) -> None:
    model = mlp(64, 64, 64, 10)
    if trial.broken:
        for p in model.parameters():
            nn.init.constant_(p, 0.01)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source=FAULTS + " (hyperparameters of the optimiser)",
    mechanism="The betas of Adam are exchanged: a momentum of 0.999 and a second moment of ten steps.",
    causes=("LearningRateTooHigh", "AdamSecondMomentStale", "AdamStepTooLarge"),
    check=lambda broken, twin: broken.final() > 2 * twin.final(),
    shown_by="a setting: the first beta is above the second one",
)
def betas_exchanged(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.999, 0.9) if trial.broken else (0.9, 0.999))
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


class _PostNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.inner, self.head = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), nn.Linear(64, 10)
        self.embed, self.place = nn.Linear(8, 64), nn.Parameter(torch.randn(8, 64) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.embed(x.view(-1, 8, 8)) + self.place).mean(1))


@report(
    source="https://arxiv.org/abs/2002.04745",
    mechanism="A transformer with the norm after each sum is trained at 5e-3 without a warm-up: it stays at a guess.",
    causes=("LearningRateTooHigh", "TokenCollapse"),
    check=loss_hurt,
    steps=200,
    shown_by="updates of tens of per cent in the first steps; the loss stays at ln(10)",
)
def norm_after_without_warm_up(trial: Trial) -> None:
    model = _PostNorm()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3 if trial.broken else 3e-4)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="https://github.com/pytorch/pytorch/issues/26338, https://github.com/rixwew/pytorch-fm/issues/21",
    mechanism="The function F.dropout is called without `training=self.training`: it drops in evaluation as well.",
    causes=("DropoutInEvaluation",),
    check=fact("apart", (0.05, 99), (0, 1e-6)),
    shown_by="two passes in evaluation mode give different outputs",
)
def dropout_in_evaluation(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        return m["head"](F.dropout(m["body"](x).relu(), 0.3, training=trial.broken or m.training))

    model = Assembled(forward, body=nn.Linear(64, 64), head=nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        loss = digits_loss(trial, model)
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            x, _ = draw_digits(trial)
            apart = (model(x) - model(x)).abs().max()
        model.train()
        trial.log(loss, apart=apart)


@report(
    source="https://arxiv.org/abs/2006.07733 (decay of the target network)",
    mechanism="The decay of the average is 1 - 0.99: the teacher is the student of the last step, and both collapse.",
    causes=("EmbeddingCollapse", "LossConstant"),
    check=fact("spread", (0, 0.02), (0.03, 9)),
    steps=300,
    shown_by="outputs lose their spread",
)
def average_follows_at_once(trial: Trial) -> None:
    student = mlp(64, 64, 16)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    trial.attach(student, optimizer)
    for _ in range(trial.steps):
        x, _ = draw_digits(trial, 64)
        optimizer.zero_grad()
        mine = student(x + 0.3 * trial.randn(64, 64))
        loss = F.mse_loss(mine, teacher(x + 0.3 * trial.randn(64, 64)))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, p in zip(teacher.parameters(), student.parameters(), strict=True):
                mean.lerp_(p, 0.99 if trial.broken else 1e-4)
        trial.log(loss, spread=mine.detach().std(0).mean())


@report(
    source=FAULTS + " (learning rate), AutoTrainer, ICSE 2021 (dying ReLU)",
    mechanism="The learning rate of Adam is 0.3: after some steps all units of the hidden layers are dead.",
    causes=("LearningRateTooHigh",),
    check=loss_hurt,
    shown_by="one update changes the weights by far more than they are",
)
def rate_far_too_large(trial: Trial) -> None:
    body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(),
                         nn.Linear(64, 10))  # fmt: skip
    optimizer = torch.optim.Adam(body.parameters(), lr=0.3 if trial.broken else 1e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(body(x), y)

    plain_loop(trial, body, optimizer, loss)


@report(
    source=FAULTS + " (regularisation)",
    mechanism="A weight decay of 30 in AdamW, meant as 0.03: all weights fall to zero whatever the gradient says.",
    causes=("WeightDecayTooLarge", "WeightsDecayAway"),
    check=loss_hurt,
    shown_by="rate times decay is 3 % a step; weights fall by that in each",
)
def decay_of_thirty(trial: Trial) -> None:
    x, y = table("cancer")
    model = mlp(30, 32, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=30 if trial.broken else 0.03)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        return F.cross_entropy(model(x[at]), y[at])

    plain_loop(trial, model, optimizer, loss)
