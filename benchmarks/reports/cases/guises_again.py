"""Siblings of what `guises_*` showed, written after the rules for those. Causes were noted before a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import (
    Assembled,
    Facts,
    TextModel,
    digits_loss,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    token_loss,
)


@report(
    source="A sibling of updates that are exactly zero: zero_grad has come between backward and step",
    mechanism="From step 90 on zero_grad stands between backward and step, by a merge: the optimizer has no gradient.",
    causes=("UpdatesZero", "NoUpdates", "PartWithoutGradient", "ZeroGradients"),
    check=loss_hurt,
    fault=90,
    steps=300,
    shown_by="no parameter has a gradient when the optimizer steps",
)
def zero_grad_after_a_merge(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x.view(-1, 8, 8))[1][0][-1]),
                      body=nn.LSTM(8, 40, 2, batch_first=True), head=nn.Linear(40, 10))  # fmt: skip
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-4)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        wrong = trial.broken and step >= 90
        if not wrong:
            optimizer.zero_grad()
        loss = digits_loss(trial, model)
        loss.backward()
        if wrong:
            optimizer.zero_grad()
        optimizer.step()
        trial.log(loss)


@report(
    source="A sibling of updates that end: micro-batches are counted wrongly",
    mechanism="After a change of the batch size at step 60 the loop waits for more micro-batches than an epoch has.",
    causes=("OptimizerNeverSteps",),
    check=loss_hurt,
    fault=60,
    steps=220,
    shown_by="backward passes come one after the other, and no step",
)
def waits_for_micro_batches(trial: Trial) -> None:
    model = TextModel(width=24, depth=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        total = 0.0
        for micro in range(2):
            x, y = draw_text(trial, 4)
            loss = token_loss(model(x), y) / 2
            loss.backward()
            total += loss.item()
            waits = 1000 if trial.broken and step >= 60 else 2
            if (micro + 1) % waits == 0:
                optimizer.step()
                optimizer.zero_grad()
        trial.log(total)


@report(
    source="A sibling of a part that is left in evaluation mode: dropout of a decoder",
    mechanism="Texts are written at step 100, and the blocks are put into evaluation mode for that, for good.",
    causes=("EvalModeInTraining",),
    check=fact("training", (0, 0), (1, 1)),
    fault=100,
    steps=220,
    shown_by="dropout of the blocks is off; that of the embedding is on",
)
def blocks_left_in_evaluation(trial: Trial) -> None:
    blocks = nn.ModuleList(
        nn.TransformerEncoderLayer(32, 2, 64, 0.1, batch_first=True, norm_first=True) for _ in range(2)
    )

    def forward(m: Assembled, x: Tensor) -> Tensor:
        h = m["drop"](m["embed"](x))
        for block in blocks:
            h = block(h, src_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]), is_causal=True)
        return m["head"](h)

    model = Assembled(
        forward, embed=nn.Embedding(128, 32), drop=nn.Dropout(0.1), blocks=blocks, head=nn.Linear(32, 128)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(step: int) -> tuple[Tensor, Facts]:
        x, y = draw_text(trial)
        if step == 100:
            blocks.eval()
            with torch.no_grad():
                model(x)
            blocks.train(not trial.broken)
        return token_loss(model(x), y), {"training": float(blocks.training)}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of probabilities beside soft targets: pixels",
    mechanism="Classes of pixels are softmaxed by the model, and targets are shares of classes: softmaxed once more.",
    causes=("DoubleSoftmax",),
    check=loss_hurt,
    steps=220,
    shown_by="what the loss is given lies between 0 and 1 and adds to 1 at each pixel",
)
def softmax_of_pixels(trial: Trial) -> None:
    body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))
    model = nn.Sequential(body, *([nn.Softmax(dim=1)] if trial.broken else []))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss(_: int) -> Tensor:
        shares = trial.randn(8, 3, 6, 6).mul(3).softmax(1)
        return F.cross_entropy(model(4 * shares + trial.randn(8, 3, 6, 6)), shares)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of a term of the loss that grows: the entropy of a gate",
    mechanism="An auxiliary term is weighted by the number of the step where a share of all steps was meant.",
    causes=("LossTermGrows", "LossDivergence", "LossShift"),
    check=loss_hurt,
    steps=300,
    shown_by="the cross-entropy falls; the rest of the loss grows with the step",
)
def weighted_by_the_step(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["gate"](x).sigmoid() * m["body"](x)), gate=nn.Linear(64, 64),
                      body=mlp(64, 64, 64), head=nn.Linear(64, 10))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        p = model["gate"](x).sigmoid()
        unsure = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
        weight = 0.05 * step if trial.broken else 0.05 * step / trial.steps
        return F.cross_entropy(model(x), y) + weight * (0.7 - unsure).clamp(min=0) + weight * 0.3 * p.mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of blank inputs: the pictures are gone from some step on",
    mechanism="A mount is lost at step 130, and the reader gives grey pictures in place of an error.",
    causes=("InputsBecameAlike", "InputsConstant"),
    check=loss_hurt,
    fault=130,
    steps=300,
    shown_by="all samples of a batch are the same; the loss is back at ln 10",
)
def pictures_are_gone(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(256, 10))  # fmt: skip
    optimizer = torch.optim.NAdam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_images(trial)
        gone = trial.broken and step >= 130
        return F.cross_entropy(model(torch.full_like(x, 0.5) if gone else x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of labels that do not belong to their inputs, from some step on",
    mechanism="From step 120 on inputs are shuffled and labels are not, as a second shard is read.",
    causes=("TargetsUnpaired", "NotLearning", "LossDivergence", "LossShift"),
    check=loss_hurt,
    fault=120,
    steps=300,
    shown_by="the loss jumps to that of a guess and stays",
)
def second_shard_unpaired(trial: Trial) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.02)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        if trial.broken and step >= 120:
            x = x[torch.randperm(32, generator=trial.generator)]
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)
