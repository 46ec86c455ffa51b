"""Number formats: what rounds to zero, and what overflows."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import all_of, fact, loss_hurt, not_finite
from benchmarks.reports.data import TextModel, draw_digits, draw_text, mlp, plain_loop, token_loss


@report(
    source="https://github.com/pytorch/ao/pull/1124, https://github.com/EleutherAI/aria-amt/pull/9",
    mechanism="Weights are bfloat16 and updates smaller than half of their last digit: nearly all are rounded away.",
    causes=("UpdatesLost",),
    check=all_of(loss_hurt, fact("moved", (0, 0.3), (0.9, 1))),
    steps=300,
    shown_by="the share of elements that a step leaves unchanged (0.8 and more) is not measured; "
    "update_to_weight_ratio 1.4e-4 is not far from the twin's",
)
def updates_rounded_away(trial: Trial) -> None:
    model = TextModel(width=48)
    for name, p in model.named_parameters():
        if name.endswith("weight") and p.ndim == 2:
            nn.init.normal_(p, 0, 0.5)
    if trial.broken:
        model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    first = copy.deepcopy(model.head.weight.detach())
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial)
        optimizer.zero_grad()
        loss = token_loss(model(x).float(), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, moved=(model.head.weight != first).float().mean())


@report(
    source="https://github.com/pytorch/pytorch/issues/147437, https://github.com/afiaka87/glide-finetune/issues/5",
    mechanism="Weights are float16, where Adam's epsilon of 1e-8 is zero: the update is 0 / 0 where the gradient is 0.",
    causes=("AdamEpsilonUnderflow", "NonFiniteUpdate"),
    check=not_finite,
    where=("0",),
    steps=120,
    shown_by="weights are not finite after the first step, whose gradients are finite; group['eps'] in the "
    "weights' type",
)
def epsilon_in_half(trial: Trial) -> None:
    model = mlp(64, 64, 10).half()
    eps = 1e-8 if trial.broken else 1e-4
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=eps, foreach=False)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x.half()).float(), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/huggingface/transformers/issues/5651, "
    "https://github.com/huggingface/transformers/issues/4586",
    mechanism="Activations of a feed-forward layer pass 65,504, float16's largest number: infinity, then NaN.",
    causes=("MixedPrecisionOverflow",),
    check=not_finite,
    where=("blocks.1",),
    fault=1,
    steps=150,
    shown_by="activation_fp16_headroom goes to 0 in blocks.1.feed before activation_nonfinite_total counts",
)
def half_overflows(trial: Trial) -> None:
    model = TextModel()
    feed = model.blocks[1].feed
    nn.init.normal_(feed[0].weight, 0, 12.0)
    nn.init.normal_(feed[2].weight, 0, 6.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 if trial.broken else 0.02, weight_decay=0.0)
    kind = torch.float16 if trial.broken else torch.bfloat16

    def loss(step: int) -> Tensor:
        x, y = draw_text(trial)
        with torch.autocast("cpu", kind):
            logits = model(x)
        return token_loss(logits.float(), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/engichang1467/Open-Rig3R/issues/35",
    mechanism="Gradients below 6e-8 round to zero in float16, as no loss scale lifts them: the early layers "
    "stand still.",
    causes=("GradientUnderflow", "MixedPrecisionUnderflow", "ZeroGradients"),
    check=loss_hurt,
    where=("0", "2", "4"),
    steps=200,
    shown_by="gradient_norm exactly 0 at 10 of 10 points and gradient_zero_ratio 1 at its only one, silent",
)
def underflow_without_scaler(trial: Trial) -> None:
    model = mlp(64, 48, 48, 48, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=not trial.broken, init_scale=65536.0)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        scaler.scale(loss * 1e-6).backward()  # one of many terms, with a small weight
        scaler.step(optimizer)
        scaler.update()
        trial.log(loss)


@report(
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/9599, "
    "https://github.com/pytorch/pytorch/issues/40907",
    mechanism="Gradients are clipped before they are divided by the loss scale: each step is a thousandth of "
    "what it should be.",
    causes=("ClipOnScaledGradients",),
    check=loss_hurt,
    steps=200,
    shown_by="gradient_norm 0.000488 = 1 / 2048 at each of 9 points, loss_scale 2048 beside it, "
    "gradient_norm_before_clip 500 to 700",
)
def clip_before_unscale(trial: Trial) -> None:
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2048.0)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        scaler.scale(loss).backward()
        if not trial.broken:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        trial.log(loss)
