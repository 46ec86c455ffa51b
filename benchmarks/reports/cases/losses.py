"""Mistakes in the loss: what it is given, and what it is made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import all_of, fact, loss_hurt
from benchmarks.reports.data import TextModel, draw_digits, draw_images, draw_text, mlp, plain_loop, table, token_loss


@report(
    source="https://github.com/Lightning-Universe/lightning-bolts/issues/654, "
    "https://github.com/ariecattan/SciCo/issues/2",
    mechanism="The model ends in a softmax and the loss takes logits: the loss cannot fall below 1.46 of ten classes.",
    causes=("DoubleSoftmax",),
    check=loss_hurt,
    shown_by="output_logit_logsumexp 2.40 to 2.45 in 25 of 25 points: between ln 10 and ln(9 + e), as only "
    "probabilities give",
)
def double_softmax(trial: Trial) -> None:
    model = mlp(64, 96, 10)
    if trial.broken:
        model.append(nn.Softmax(-1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/huyng/tensorflow-vgg/issues/13",
    mechanism="A ReLU follows the last layer: logits cannot be negative, and classes whose logit is cut off "
    "never learn.",
    causes=("ReluOnLogits", "DeadUnits"),
    check=loss_hurt,
    where=("3", "4"),
    shown_by="the inputs of cross_entropy are never negative; activation_zero_ratio and dead_units_ratio are not "
    "measured at a ReLU that ends the model",
)
def relu_on_logits(trial: Trial) -> None:
    model = mlp(64, 96, 10)
    if trial.broken:
        model.append(nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/deepset-ai/FARM/issues/229, https://github.com/andrewgcodes/xlstm/issues/4",
    mechanism="Output (n, 1) and target (n) broadcast to (n, n): the model learns the mean of all targets.",
    causes=("LossBroadcast",),
    check=all_of(loss_hurt, fact("spread", (0, 0.35), (0.4, 3))),
    shown_by="the shapes that mse_loss is given; torch's own warning says so once",
)
def loss_broadcasts(trial: Trial) -> None:
    x, y = table("diabetes")
    model = mlp(10, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        at = trial.randint(len(x), 32)
        target = y[at] if trial.broken else y[at, None]
        optimizer.zero_grad()
        output = model(x[at])
        loss = F.mse_loss(output, target)
        loss.backward()
        optimizer.step()
        trial.log(loss, spread=output.std())


@report(
    source="https://github.com/leftthomas/ESPCN/issues/30, https://github.com/xindongzhang/ECBSR/issues/24",
    mechanism="Targets of a binary cross entropy lie between 0 and 16 instead of 0 and 1: the loss has no lower bound.",
    causes=("TargetOutOfRange",),
    check=lambda broken, twin: broken.final() < -1 and 0 < twin.final() < twin.first(),
    shown_by="the loss is -1,250, which no binary cross entropy is, and output_rms grows 0.13 -> 54; a loss below "
    "zero silences the rules on it",
)
def targets_out_of_range(trial: Trial) -> None:
    model = mlp(64, 32, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, _ = draw_digits(trial)
        return F.binary_cross_entropy_with_logits(model(x), x * (16 if trial.broken else 1))

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/huggingface/transformers/pull/44642, https://github.com/InternLM/InternLM/issues/318",
    mechanism="Labels are shifted by the data and again by the model: the model learns to guess the token "
    "after the next.",
    causes=("TargetsShiftedTwice",),
    check=loss_hurt,
    shown_by="the targets of cross_entropy equal the model's input moved by two, not by one",
)
def targets_shifted_twice(trial: Trial) -> None:
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_text(trial, ahead=2 if trial.broken else 1)
        return token_loss(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/huggingface/transformers/issues/48745, "
    "https://github.com/tatp22/linformer-pytorch/issues/25",
    mechanism="The causal mask is missing: each position sees the token that it should guess, and the loss "
    "goes to zero.",
    causes=("TooGood", "CausalMaskMissing"),
    check=lambda broken, twin: broken.final() < 0.7 * twin.final(),
    steps=400,
    shown_by="the loss falls to 0.4 nat a byte, far below what the text allows; a finding `too_good` exists for "
    "text logs and not for watched runs",
)
def causal_mask_missing(trial: Trial) -> None:
    model = TextModel(causal=not trial.broken)
    nn.init.normal_(model.place.weight, 0, 0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_text(trial)
        return token_loss(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description: the default initialisation of nn.Embedding, N(0, 1), is tied to the output layer",
    mechanism="Input embedding and output layer share weights of size 1: the first logits are large, and the "
    "first loss is "
    "several times that of a uniform guess.",
    causes=("InitialLossTooHigh", "OutputLogitDrift"),
    check=lambda broken, twin: broken.losses[0] > 2 * twin.losses[0],
    where=("head", "embed"),
    shown_by="loss 30 against ln 128 = 4.9 at step 0, output_logit_logsumexp 42; no rule judges the first point",
)
def tied_embedding_scale(trial: Trial) -> None:
    model = TextModel(width=48)
    nn.init.normal_(model.embed.weight, 0, 1.0 if trial.broken else 0.02)
    model.head.weight = model.embed.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_text(trial)
        return token_loss(model(x), y)

    plain_loop(trial, model, optimizer, loss)


class _Vae(nn.Module):
    """A variational autoencoder of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 16), mlp(8, 64, 64)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.encoder(x).chunk(2, -1)
        kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(-1).mean()
        return self.decoder(mean + noise * (0.5 * logvar).exp()), kl


@report(
    source="https://github.com/YannDubs/disentangling-vae/issues/50, https://github.com/Mathux/ACTOR/issues/5",
    mechanism="The reconstruction error is a mean over pixels, the divergence a sum: the latent code is given up.",
    causes=("PosteriorCollapse", "NoBetterThanMean"),
    check=fact("kl", (0, 0.05), (1, 1e3)),
    steps=300,
    shown_by="the loop's kl is 2e-4; nothing measured shows it: how far rows of a decoder's output differ is missing",
)
def posterior_collapse(trial: Trial) -> None:
    model = _Vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, _ = draw_digits(trial, 64)
        optimizer.zero_grad()
        output, kl = model(x, trial.randn(64, 8))
        error = F.binary_cross_entropy_with_logits(output, x, reduction="mean" if trial.broken else "sum")
        loss = (error if trial.broken else error / len(x)) + kl
        loss.backward()
        optimizer.step()
        trial.log(loss, kl=kl)


@report(
    source="https://github.com/mlmed/torchxrayvision/issues/9, "
    "https://github.com/facebookresearch/Detectron/issues/868",
    mechanism="Images go into the model with values of 0 to 255: activations and gradients are hundreds of "
    "times too large.",
    causes=("InputsNotScaled", "LearningRateTooHigh"),
    check=loss_hurt,
    steps=200,
    shown_by="output_rms 69 of the first layer at step 0, loss 10 -> 108 in one step",
)
def inputs_not_scaled(trial: Trial) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss(step: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x * (255 if trial.broken else 1)), y)

    plain_loop(trial, model, optimizer, loss)
