"""More healthy workloads of common kinds: quantised, schedules, averages, curricula, by heart."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import (
    Facts,
    TextModel,
    digits,
    draw_digits,
    draw_images,
    draw_text,
    plain_loop,
    right,
    text,
    token_loss,
)


class _Quantised(nn.Linear):
    """A linear layer whose weights are rounded to four bits, with a step that is learned (LSQ)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer)
        self.step = nn.Parameter(2 * self.weight.detach().abs().mean() / 7**0.5)

    def forward(self, x: Tensor) -> Tensor:
        share = (7 * self.weight.numel()) ** -0.5  # of the gradient of the step
        step = self.step.detach() * (1 - share) + self.step * share
        scaled = (self.weight / step).clamp(-8, 7)
        return F.linear(x, ((scaled.round() - scaled).detach() + scaled) * step, self.bias)


@healthy(learns=reaches("right", 0.85), steps=400)
def four_bits(trial: Trial) -> None:
    """Quantisation-aware training: weights of four bits with a learned step, SGD with momentum, cosine."""
    model = nn.Sequential(_Quantised(64, 64), nn.BatchNorm1d(64), nn.ReLU(), _Quantised(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_digits(trial)
        logits = model(x)
        return F.cross_entropy(logits, y), {"right": right(logits, y)}

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=reaches("right", 0.9), steps=400)
def one_cycle(trial: Trial) -> None:
    """Super-convergence: OneCycleLR up to 0.4 with a momentum that goes the other way, batch norm, SGD."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, bias=False),
        nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=401)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_images(trial, 64)
        logits = model(x)
        return F.cross_entropy(logits, y), {"right": right(logits, y)}

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=falls(0.75), steps=400)
def longer_and_longer(trial: Trial) -> None:
    """A curriculum of lengths: a GPT reads texts of 8, 16, 32 and 64 signs, a hundred steps each."""
    model = TextModel(width=48)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def loss(step: int) -> Tensor:
        length = 8 << step // 100
        x, y = draw_text(trial, 512 // length, length)
        return token_loss(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.05), steps=400)
def four_lines_by_heart(trial: Trial) -> None:
    """A check whether a model can learn at all: four lines of text, the same in each step, until it knows them."""
    model = TextModel(width=48)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rows = text()[:132].view(4, 33)
    plain_loop(trial, model, optimizer, lambda _: token_loss(model(rows[:, :-1]), rows[:, 1:]))


@healthy(learns=falls(0.5), steps=400)
def focal_boxes(trial: Trial) -> None:
    """A detector: a heat map by the focal loss, normed by the number of objects, and sizes at their centres by L1."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(16, 2, 1))  # fmt: skip
    nn.init.constant_(model[4].bias[:1], -2.2)  # type: ignore[index,arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        picture, size = 0.1 * trial.randn(16, 1, 16, 16), torch.zeros(16, 16, 16)
        for i in range(16):
            for y, x in trial.randint(12, int(trial.randint(4, 1)), 2).tolist():
                half = 1 + int(trial.randint(2, 1))
                picture[i, 0, y : y + 2 * half + 1, x : x + 2 * half + 1] += 1
                size[i, min(y + half, 15), min(x + half, 15)] = half
        heat, wide = model(picture).unbind(1)
        there, p = size > 0, heat.sigmoid()
        near = torch.where(there, (1 - p).square() * F.logsigmoid(heat), p.square() * F.logsigmoid(-heat) * 0.25)
        count = there.sum().clamp(min=1)
        return (-near.sum() + (wide - size)[there].abs().sum()) / count

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8), steps=400)
def ranking_of_lists(trial: Trial) -> None:
    """Learning to rank: lists of twenty with few relevant ones, the loss over pairs, RMSprop, dropout."""
    model = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 1))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    taste = trial.randn(12)

    def loss(_: int) -> Tensor:
        x = trial.randn(8, 20, 12)
        grade = ((x @ taste + trial.randn(8, 20)) > 3).float() + ((x @ taste) > 5).float()
        score = model(x)[..., 0]
        better = grade[:, :, None] > grade[:, None]
        apart = score[:, :, None] - score[:, None]
        return F.softplus(-apart)[better].sum() / better.sum().clamp(min=1)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=reaches("right", 0.85), steps=400)
def averages_swapped_in(trial: Trial) -> None:
    """Averaged weights are swapped in for each evaluation, every fifty steps, and taken out after it."""
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    kept = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    x, y = digits()

    def loss(_: int) -> tuple[Tensor, Facts]:
        at = trial.randint(1500, 32)
        logits = model(x[at])
        return F.cross_entropy(logits, y[at]), {"right": right(logits, y[at])}

    def evaluate(step: int) -> Facts:
        with torch.no_grad():
            for a, b in zip(kept.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 0.02)
        if step % 50 == 49:
            own = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict({**own, **dict(kept.named_parameters())})
            model.eval()
            with torch.no_grad():
                F.cross_entropy(model(x[1500:]), y[1500:])
            model.train()
            model.load_state_dict(own)
        return {}

    plain_loop(trial, model, optimizer, loss, after=evaluate)
