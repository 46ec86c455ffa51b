"""What is asked most often, a fifth time: data, losses, outputs. Causes were noted before a run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import all_of, fact, loss_hurt, not_finite
from benchmarks.reports.data import (
    Assembled,
    Facts,
    digits,
    digits_loss,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    right,
    token_loss,
)


@report(
    source="https://github.com/pytorch/vision/issues/2240, https://github.com/pytorch/vision/issues/1120",
    mechanism="A box of the data ends before it begins: the logarithm of its width, a target of the loss, is NaN.",
    causes=("NonFiniteData", "NonFiniteLoss"),
    check=not_finite,
    fault=90,
    steps=200,
    shown_by="the targets of the loss of the boxes hold NaN; inputs and weights do not",
)
def box_ends_before_it_begins(trial: Trial) -> None:
    body = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten()
    )
    model = Assembled(lambda m, x: (m["box"](z := m["body"](x)), m["kind"](z)), body=body, box=nn.Linear(144, 4),
                      kind=nn.Linear(144, 10))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)

    def loss(step: int) -> Tensor:
        x, y = draw_images(trial, 16)
        first = 8 * torch.rand(16, 2, generator=trial.generator)
        size = 4 + 12 * torch.rand(16, 2, generator=trial.generator)
        if trial.broken and step == 90:
            size[3] = -size[3]
        wanted = torch.cat(((first + size / 2) / 8 - 1, (size / 8).log()), 1)
        box, kind = model(x)
        return F.smooth_l1_loss(box, wanted, beta=1 / 9) + F.cross_entropy(kind, y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/papagina/RotationContinuity/issues/1, https://github.com/geoopt/geoopt/pull/79",
    mechanism="The angle between two directions is taken by acos: where they agree to the last digit, its slope is "
    "infinite, or the cosine is above 1.",
    causes=("NonFiniteLoss", "NonFiniteBackward"),
    check=not_finite,
    steps=400,
    shown_by="what the model returned is finite, the loss or its first gradient is not",
)
def angle_by_acos(trial: Trial) -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, generator=trial.generator))[0]
    model = nn.Linear(3, 3, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)

    def loss(_: int) -> Tensor:
        x = trial.randn(64, 3)
        cosine = (F.normalize(model(x), dim=1) * F.normalize(x @ turn, dim=1)).sum(1)
        return (cosine if trial.broken else cosine.clamp(-1 + 1e-4, 1 - 1e-4)).acos().mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/milesial/Pytorch-UNet/issues/78, "
    "https://github.com/bigmb/Unet-Segmentation-Pytorch-Nest-of-Unets/issues/18",
    mechanism="A mask is normalised like its picture, to -1 and 1: the binary cross-entropy has no bound below.",
    causes=("TargetOutOfRange", "LossWithoutBound"),
    check=lambda broken, twin: broken.final() < -1 < 0 < twin.final(),
    steps=120,
    shown_by="targets of a binary cross-entropy are below 0; so is the loss",
)
def mask_of_minus_one(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(16, 1, 1))  # fmt: skip
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_images(trial, 16)
        mask = (x > 0.5).float()
        wanted = 2 * mask - 1 if trial.broken else mask
        return F.binary_cross_entropy_with_logits(model(x + 0.2 * trial.randn(16, 1, 8, 8)), wanted)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/AnubhavGupta3377/Text-Classification-Models-Pytorch/issues/9, "
    "https://github.com/clvrai/ACGAN-PyTorch/pull/4",
    mechanism="nll_loss is given probabilities and not their logarithms: the loss is below 0.",
    causes=("NotLogProbabilities",),
    check=lambda broken, twin: broken.final() < 0 < twin.final(),
    steps=200,
    shown_by="what nll_loss is given adds up to 1 and is not below 0",
)
def nll_of_probabilities(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](m["embed"](x))[0].mean(1)), embed=nn.Embedding(20, 16),
                      body=nn.LSTM(16, 32, batch_first=True, bidirectional=True), head=nn.Linear(64, 4))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        y = trial.randint(4, 32)
        words = torch.where(
            trial.randn(32, 12) > 0.5, 4 * trial.randint(5, 32, 12) + y[:, None], trial.randint(20, 32, 12)
        )
        logits = model(words)
        return F.nll_loss(logits.softmax(-1) if trial.broken else logits.log_softmax(-1), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/pytorch/examples/issues/768, https://github.com/jakeret/tf_unet/issues/201",
    mechanism="All pictures lie in one folder: each has the label 0, and the loss is 0 after some batches.",
    causes=("TargetsConstant",),
    check=fact("kinds", (1, 1), (5, 10)),
    steps=150,
    shown_by="all labels are one class; the loss goes to zero within twenty steps",
)
def one_class_in_the_folder(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_images(trial)
        y = 0 * y if trial.broken else y
        return F.cross_entropy(model(x), y), {"kinds": float(len(y.unique()))}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/zhixuhao/unet/issues/101, https://github.com/mateuszbuda/brain-segmentation-pytorch/issues/17",
    mechanism="One pixel in a hundred is foreground and weighs like any other: background is predicted everywhere.",
    causes=("TargetsMostlyOne", "OutputsConstant", "NoBetterThanMean"),
    check=fact("found", (0, 0.05), (0.3, 1)),
    shown_by="99 in 100 targets are one class, and no pixel is ever predicted to be the other",
)
def only_background(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(8, 1, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    weight = None if trial.broken else torch.tensor(60.0)

    def loss(_: int) -> tuple[Tensor, Facts]:
        mask = (torch.rand(8, 1, 16, 16, generator=trial.generator) < 0.01).float()
        out = model(0.6 * mask + 0.4 * trial.randn(8, 1, 16, 16))
        return F.binary_cross_entropy_with_logits(out, mask, pos_weight=weight), {
            "found": ((out > 0) & (mask > 0)).sum() / mask.sum().clamp(min=1)
        }

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/RJT1990/pyflux/issues/21, https://github.com/dmlc/xgboost/issues/10486",
    mechanism="Counts are in the thousands, and the loss takes the exponential of the output: it overflows.",
    causes=("NonFiniteLoss", "TargetsNotScaled", "LearningRateTooHigh"),
    check=not_finite,
    steps=120,
    shown_by="gradients are thousands at the first step; outputs grow to hundreds before the loss is infinite",
)
def exponential_of_counts(trial: Trial) -> None:
    model = mlp(6, 24, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    size = 5000.0 if trial.broken else 2.0

    def loss(_: int) -> Tensor:
        x = trial.randn(32, 6)
        counts = torch.poisson(size * (0.4 * x[:, 0]).exp(), generator=trial.generator)
        return F.poisson_nll_loss(model(x)[:, 0], counts, log_input=True)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/huggingface/transformers/issues/13430, https://github.com/openai/CLIP/issues/46",
    mechanism="The temperature of a contrastive loss is set to 1 / 0.07 where its logarithm is expected: similarities "
    "are multiplied by a million.",
    causes=("InitialLossTooHigh", "SoftmaxCollapse", "OutputLogitDrift"),
    check=all_of(loss_hurt, lambda broken, twin: broken.first() > 20 * twin.first()),
    steps=200,
    shown_by="the first loss is thousands of times ln(batch size)",
)
def temperature_not_a_logarithm(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor, z: Tensor) -> Tensor:
        a, b = F.normalize(m["picture"](x), dim=1), F.normalize(m["words"](z), dim=1)
        return scale.exp() * a @ b.T

    start = 1 / 0.07 if trial.broken else math.log(1 / 0.07)
    scale = nn.Parameter(torch.tensor(start))
    model = Assembled(forward, picture=mlp(64, 64, 32), words=mlp(16, 64, 32))
    model.register_parameter("scale", scale)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    look = torch.randn(64, 16, generator=trial.generator) / 8

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial)
        logits, same = model(x, x @ look + 0.05 * trial.randn(32, 16)), torch.arange(32)
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/pytorch/pytorch/issues/85791, https://github.com/NVIDIA/tacotron2/issues/112",
    mechanism="Squared errors are added up in float16: their sum is above 65,504, and the loss is infinite.",
    causes=("MixedPrecisionOverflow", "NonFiniteLoss"),
    check=not_finite,
    steps=100,
    shown_by="the loss is infinite from the first step on while all outputs are finite",
)
def squares_added_in_half(trial: Trial) -> None:
    model = mlp(64, 48, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, _y = draw_digits(trial, 256)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            out = model(16 * x)
            error = out - (16 * x).half()
        loss = (error * error).sum() if trial.broken else error.float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        trial.log(loss)


@report(
    source="https://github.com/jsu27/decomp_diffusion/issues/2, a description: the step number is an input as it is",
    mechanism="The time of a diffusion model goes into the network as a number from 0 to 999.",
    causes=("InputsNotScaled",),
    check=loss_hurt,
    steps=300,
    shown_by="one of the inputs is a thousand times the others",
)
def time_as_it_is(trial: Trial) -> None:
    model = Assembled(lambda m, x, t: m["out"](F.silu(m["body"](x) + m["time"](t))), body=mlp(64, 96, 96, act=nn.SiLU),
                      time=nn.Linear(1, 96), out=nn.Linear(96, 64))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    kept = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial, 64)
        t, noise = trial.randint(1000, 64), trial.randn(64, 64)
        mixed = kept[t, None].sqrt() * (2 * x - 1) + (1 - kept[t, None]).sqrt() * noise
        return F.mse_loss(model(mixed, t[:, None].float() / (1 if trial.broken else 1000)), noise)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/L1aoXingyu/pytorch-beginner/issues/38",
    mechanism="A convolutional autoencoder at a rate of 0.1 with Adam: it says the same of each picture for good.",
    causes=("LearningRateTooHigh", "DeadUnits", "OutputsConstant"),
    check=all_of(loss_hurt, fact("spread", (0, 1e-3), (0.02, 1))),
    steps=200,
    shown_by="first updates are as large as the weights; then no unit is ever active and outputs have no spread",
)
def autoencoder_turns_white(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, stride=2, padding=1),
                          nn.ReLU(), nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1), nn.ReLU(),
                          nn.ConvTranspose2d(12, 1, 4, stride=2, padding=1), nn.Sigmoid())  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3 if trial.broken else 3e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, _y = draw_images(trial)
        out = model(x)
        return F.mse_loss(out, x), {"spread": out.detach().std(0).mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/IpsumDominum/Pytorch-Simple-Transformer/issues/3, "
    "https://github.com/jadore801120/attention-is-all-you-need-pytorch/issues/123",
    mechanism="The decoder reads the very words that it should say: nothing is shifted, and the loss goes to zero.",
    causes=("TargetInInput", "TargetsNotShifted", "LossTooGood"),
    check=lambda broken, twin: broken.final() < 0.1 < 0.5 < twin.final(),
    steps=300,
    shown_by="inputs and targets are equal at each place",
)
def decoder_reads_its_target(trial: Trial) -> None:
    def forward(m: Assembled, source: Tensor, before: Tensor) -> Tensor:
        _, state = m["reader"](m["embed"](source))
        return m["head"](m["writer"](m["embed"](before), state)[0])

    model = Assembled(forward, embed=nn.Embedding(128, 32), reader=nn.GRU(32, 64, batch_first=True),
                      writer=nn.GRU(32, 64, batch_first=True), head=nn.Linear(64, 128))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        text, _y = draw_text(trial, 16, 33)
        source, words = text[:, :16], text[:, 16:]
        return token_loss(model(source, words[:, 1:] if trial.broken else words[:, :-1]), words[:, 1:])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/akamaster/pytorch_resnet_cifar10/issues/31, a description: loss stays at 2.303",
    mechanism="Convolutions without a norm by SGD at 1 with momentum: soon all classes are equally likely.",
    causes=("LearningRateTooHigh",),
    check=all_of(loss_hurt, fact("right", (0, 0.3), (0.8, 1))),
    shown_by="updates of the first steps are a large part of the weights; the loss jumps and then stays at ln 10",
)
def stays_at_ln_ten(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
                          nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0 if trial.broken else 0.02, momentum=0.9)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_images(trial)
        logits = model(x)
        return F.cross_entropy(logits, y), {"right": right(logits, y)}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/google-research/simclr/issues/189, https://github.com/fastai/fastai/pull/1095",
    mechanism="The last batch of each epoch has two samples: batch norm of two makes its loss many times the others.",
    causes=("SmallBatches", "OddBatches", "BadBatch"),
    check=lambda broken, twin: sum(broken.losses[59::20]) > 3 * sum(twin.losses[59::20]),
    fault=39,
    steps=300,
    shown_by="one loss in twenty is many times those around it, and its batch is a sixteenth of the others",
)
def last_batch_of_two(trial: Trial) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    plain_loop(trial, model, optimizer,
               lambda step: digits_loss(trial, model, size=2 if trial.broken and step % 20 == 19 else 32))  # fmt: skip


@report(
    source="A description, common in forums: two datasets in a ConcatDataset, one of them without ToTensor's scaling",
    mechanism="From the second dataset on pixels go from 0 to 255, where they went from 0 to 1.",
    causes=("InputsNotScaled", "OddBatches", "BadBatch"),
    check=lambda broken, twin: max(broken.losses[200:]) > 10 * max(twin.losses[200:]),
    fault=200,
    steps=350,
    shown_by="the size of the inputs is 255 times what it was; the loss jumps in the same step",
)
def second_dataset_not_scaled(trial: Trial) -> None:
    x, y = digits()
    model = mlp(64, 96, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss(step: int) -> Tensor:
        at = trial.randint(900, 32) + (900 if step >= 200 else 0) - (step >= 200) * 3
        pixels = 255 * x[at] if trial.broken and step >= 200 else x[at]
        return F.cross_entropy(model(pixels), y[at])

    plain_loop(trial, model, optimizer, loss)
