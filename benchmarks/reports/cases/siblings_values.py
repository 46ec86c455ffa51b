"""Siblings of the first reports in other guises: values, losses, precision. Causes were noted before a run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt, not_finite
from benchmarks.reports.data import (
    Assembled,
    Facts,
    digits_loss,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    token_loss,
)


@report(
    source="A sibling of https://github.com/pytorch/pytorch/issues/147437: RMSprop in place of Adam, word vectors",
    mechanism="Weights are float16, in which RMSprop's epsilon of 1e-8 is zero: words that do not come have 0 / 0.",
    causes=("AdamEpsilonUnderflow", "NonFiniteUpdate"),
    check=not_finite,
    steps=100,
    shown_by="gradients are finite, and the weights after the step are not",
)
def squares_without_epsilon(trial: Trial) -> None:
    model = nn.Sequential(nn.Embedding(400, 24), nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 4)).half()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3, eps=1e-8 if trial.broken else 1e-4)

    def loss(_: int) -> Tensor:
        words = trial.randint(400, 32, 4)
        return F.cross_entropy(model(words).float(), words[:, 0] // 100)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/OpenRLHF/OpenRLHF/issues/583: pictures whose pixels are all void",
    mechanism="Each pixel of one batch of crops is void (255, ignored): the loss is 0 / 0.",
    causes=("EmptyTargets",),
    check=lambda broken, twin: not math.isfinite(sum(broken.losses)) and math.isfinite(sum(twin.losses)),
    fault=70,
    steps=140,
    shown_by="no target of the batch counts; logits are finite",
)
def crops_of_void(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.SiLU(), nn.Conv2d(12, 4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    def loss(step: int) -> Tensor:
        kinds = trial.randint(4, 4, 3, 3).repeat_interleave(4, 1).repeat_interleave(4, 2)
        pictures = F.one_hot(kinds, 4)[..., :3].permute(0, 3, 1, 2) + 0.5 * trial.randn(4, 3, 12, 12)
        void = torch.rand(4, 12, 12, generator=trial.generator) < 0.1
        if trial.broken and step == 70:
            void = torch.ones_like(void)
        return F.cross_entropy(model(pictures), kinds.masked_fill(void, 255), ignore_index=255)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/Lightning-AI/pytorch-lightning/issues/9599: clip_grad_value_, an LSTM",
    mechanism="Values of gradients are clipped before they are unscaled: what is left of them is next to nothing.",
    causes=("ClipOnScaledGradients", "ClippedTooHard"),
    check=loss_hurt,
    steps=300,
    shown_by="gradients are clipped while they are multiplied by 16,384",
)
def values_clipped_while_scaled(trial: Trial) -> None:
    model = Assembled(
        lambda m, x: m["head"](m["body"](x.view(-1, 8, 8))[0][:, -1]),
        body=nn.LSTM(8, 48, batch_first=True),
        head=nn.Linear(48, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=16384.0)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        loss = digits_loss(trial, model)
        scaler.scale(loss).backward()
        if not trial.broken:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        trial.log(loss)


@report(
    source="A sibling of https://github.com/ariecattan/SciCo/issues/2: nn.Softmax ends a CNN, smoothed labels",
    mechanism="The network ends in nn.Softmax, and the loss takes logits: it cannot fall below 1.46.",
    causes=("DoubleSoftmax",),
    check=loss_hurt,
    steps=200,
    shown_by="what the loss is given lies between 0 and 1 and adds to 1",
)
def softmax_ends_the_network(trial: Trial) -> None:
    parts = [nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)]
    model = nn.Sequential(*parts, *([nn.Softmax(dim=1)] if trial.broken else []))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x), y, label_smoothing=0.1)

    plain_loop(trial, model, optimizer, loss)


class _HalfNorm(nn.Module):
    """Root-mean-square norm; the mean of squares in the type of the input, or in float32."""

    def __init__(self, width: int, wide: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.wide = wide

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() if self.wide else x
        return (y * torch.rsqrt((y * y).mean(-1, keepdim=True) + 1e-6) * self.gain).to(x.dtype)


@report(
    source="A sibling of https://github.com/huggingface/transformers/issues/5651: squares of a norm by hand in float16",
    mechanism="A norm by hand squares activations of some hundreds in float16: squares are infinite, outputs zero.",
    causes=("MixedPrecisionOverflow", "NonFiniteForward", "OutputsConstant"),
    check=loss_hurt,
    steps=200,
    shown_by="the outputs of the norm are exactly zero, of each sample; so are the gradients below it",
)
def squares_of_a_norm_in_half(trial: Trial) -> None:
    body = nn.Linear(64, 64)
    nn.init.normal_(body.weight, 0, 80.0)
    model = Assembled(
        lambda m, x: m["head"](m["norm"](m["body"](x))), body=body, norm=_HalfNorm(64, not trial.broken),
        head=nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        with torch.autocast("cpu", torch.float16):
            logits = model(x)
        return F.cross_entropy(logits.float(), y)

    plain_loop(trial, model, optimizer, loss)


class _Coupling(nn.Module):
    """One half of the numbers scales and moves the other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 32, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, -1)
        scale, move = self.net(a).chunk(2, -1)
        return torch.cat((b * scale.exp() + move, a), -1), scale.sum(-1)


@report(
    source="A sibling of https://github.com/vanderschaarlab/synthcity/issues/331: the scale of a normalising flow",
    mechanism="The scale of a coupling is an exponential without a bound, and a row comes in other units: infinity.",
    causes=("NonFiniteForward", "NonFiniteLoss"),
    check=not_finite,
    where=("couplings",),
    fault=60,
    steps=120,
    shown_by="inputs are finite, the output of a coupling is not",
)
def scale_without_bound(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        total = torch.zeros(len(x))
        for coupling in m["couplings"]:  # type: ignore[attr-defined]
            x, change = coupling(x)
            total = total + change
        return 0.5 * x.square().sum(-1) - total

    model = Assembled(forward, couplings=nn.ModuleList(_Coupling() for _ in range(3)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    mixing = torch.randn(8, 8, generator=trial.generator) / 3

    def loss(step: int) -> Tensor:
        x = trial.randn(64, 8) @ mixing
        if trial.broken and step == 60:
            x[5] *= 5000
        return model(x).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of the loss of reduction='none' with a mask: weights of samples",
    mechanism="The weights of all samples of one batch are zero, and the loss is divided by their sum: 0 / 0.",
    causes=("EmptyTargets", "NonFiniteLoss"),
    check=not_finite,
    fault=90,
    steps=160,
    shown_by="losses of samples are finite; their weighted mean is not",
)
def weights_add_to_zero(trial: Trial) -> None:
    model = mlp(64, 48, 10, act=nn.Tanh)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        each = F.binary_cross_entropy_with_logits(model(x), F.one_hot(y, 10).float(), reduction="none").mean(1)
        weight = (torch.rand(32, generator=trial.generator) < 0.5).float()
        if trial.broken and step == 90:
            weight = torch.zeros(32)
        return (each * weight).sum() / weight.sum()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of the loss of several terms: the penalty has the wrong sign",
    mechanism="The squares of the weights are taken off the loss and not added: it falls below zero without a bound.",
    causes=("LossWithoutBound",),
    check=lambda broken, twin: broken.final() < -1 < 0 < twin.final(),
    steps=300,
    shown_by="the loss is below zero and falls on; the norm of the weights grows",
)
def penalty_taken_off(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sign = -1 if trial.broken else 1

    def loss(_: int) -> Tensor:
        squares = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        return digits_loss(trial, model) + sign * 0.01 * squares

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of NaN that a layer makes: features are divided by their length, and one is zero",
    mechanism="A feature vector is divided by its length, and those of one blank sample are all zero: 0 / 0.",
    causes=("NonFiniteForward",),
    check=not_finite,
    where=("unit",),
    fault=110,
    steps=160,
    shown_by="the input of that part is finite, and its output is not",
)
def length_of_a_blank(trial: Trial) -> None:
    class Unit(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.norm(dim=1, keepdim=True)

    body = nn.Sequential(nn.Conv2d(1, 12, 3, bias=False), nn.ReLU(), nn.Flatten())
    model = Assembled(
        lambda m, x: m["head"](4 * m["unit"](m["body"](x))), body=body, unit=Unit(), head=nn.Linear(432, 10)
    )
    optimizer = torch.optim.NAdam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_images(trial, 16)
        if trial.broken and step == 110:
            x = x.clone()
            x[3] = 0
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of updates that are exactly zero: bfloat16 weights and a rate that decays",
    mechanism="The rate falls until steps are below the rounding of bfloat16 weights: nothing changes any more.",
    causes=("UpdatesLost", "NoUpdates"),
    check=fact("moved", (0, 0.02), (0.5, 1)),
    fault=60,
    steps=300,
    shown_by="gradients go on, and weights are the same after a step as before",
)
def steps_below_rounding(trial: Trial) -> None:
    kind = torch.bfloat16 if trial.broken else torch.float32
    model = mlp(64, 96, 96, 10, act=nn.GELU).to(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.96)
    before = [p.detach().clone() for p in model.parameters()]

    def loss(_: int) -> Tensor:
        for kept, p in zip(before, model.parameters(), strict=True):
            kept.copy_(p.detach())
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x.to(kind)).float(), y)

    def moved(_: int) -> Facts:
        same = [(a != b).float().mean() for a, b in zip(before, model.parameters(), strict=True)]
        return {"moved": torch.stack(same).mean()}

    plain_loop(trial, model, optimizer, loss, schedule=schedule, after=moved)


@report(
    source="A sibling of lone losses far above the others: a loader gives blanks after a failed read",
    mechanism="Each 45th read fails, and the loader gives blank pictures in its place: lone batches that say nothing.",
    causes=("OddBatches", "BadBatch", "InputsConstant"),
    check=lambda broken, twin: max(broken.losses[120:]) > 2 * max(twin.losses[120:]),
    fault=45,
    steps=300,
    shown_by="the inputs of some batches are all zero; their losses are far above the others",
)
def blanks_after_failed_reads(trial: Trial) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(432, 48), nn.ReLU(),
        nn.Linear(48, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_images(trial)
        blank = trial.broken and step % 45 == 0 and step > 0
        return F.cross_entropy(model(torch.zeros_like(x) if blank else x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of 'the model answers the same': a language model whose position ids are all zero",
    mechanism="Position ids are all zero and attention sees both sides of a shuffled text: order is not seen.",
    causes=("NotLearning", "TokenCollapse", "InputsConstant"),
    check=loss_hurt,
    steps=400,
    shown_by="the loss stays where the frequencies of the answers are learned",
)
def places_all_zero(trial: Trial) -> None:
    place = nn.Embedding(8, 32)
    layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True)

    def forward(m: Assembled, x: Tensor) -> Tensor:
        at = torch.zeros(8, dtype=torch.long) if trial.broken else torch.arange(8)
        return m["head"](m["body"](m["embed"](x) + m["place"](at))[:, 0])

    model = Assembled(forward, embed=nn.Embedding(8, 32), place=place, body=layer, head=nn.Linear(32, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x = torch.stack([torch.randperm(8, generator=trial.generator) for _ in range(32)])
        return F.cross_entropy(model(x), x[:, 3])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of the targets that run away: a table of a text model's weights is tied to nothing",
    mechanism="The loss is given the logits of the last position for the tokens of all positions: they do not fit.",
    causes=("LogitsScrambled", "TargetsUnpaired", "NotLearning", "TargetsNotShifted"),
    check=loss_hurt,
    steps=400,
    shown_by="the loss stays where the frequencies of the signs are learned",
)
def reshaped_and_not_transposed(trial: Trial) -> None:
    model = Assembled(
        lambda m, x: m["head"](m["body"](m["embed"](x))[0]),
        embed=nn.Embedding(128, 48), body=nn.LSTM(48, 96, batch_first=True), head=nn.Linear(96, 128),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial, 16, 24)
        logits = model(x)
        if trial.broken:
            return F.cross_entropy(logits.reshape(16, 128, 24), y)
        return token_loss(logits, y)

    plain_loop(trial, model, optimizer, loss)
