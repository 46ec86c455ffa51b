"""Siblings of reports that were missed, in other guises, their causes noted before a run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.reports.case import Outcome, Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import (
    Assembled,
    Facts,
    digits,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    table,
    token_loss,
)


def _lower(broken: Outcome, twin: Outcome) -> bool:
    return broken.final() < 0.5 * twin.final()


@report(
    source="A sibling of https://github.com/IpsumDominum/Pytorch-Simple-Transformer/issues/3: nn.Transformer",
    mechanism="nn.Transformer is given the sentence that it should say, not shifted, with a causal mask: it copies.",
    causes=("TargetsNotShifted", "TargetInInput", "LossTooGood"),
    check=_lower,
    steps=250,
    shown_by="the decoder's input and the targets are equal at each place",
)
def sentence_is_given_to_the_decoder(trial: Trial) -> None:
    hidden = nn.Transformer.generate_square_subsequent_mask(16)

    def forward(m: Assembled, source: Tensor, before: Tensor) -> Tensor:
        place = m["place"].weight
        return m["head"](m["body"](m["embed"](source) + place, m["embed"](before) + place, tgt_mask=hidden))

    body = nn.Transformer(32, 2, 1, 1, 64, 0.0, batch_first=True)
    model = Assembled(forward, embed=nn.Embedding(128, 32), place=nn.Embedding(16, 32), body=body,
                      head=nn.Linear(32, 128))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        text, _y = draw_text(trial, 16, 33)
        source, words = text[:, :16], text[:, 16:]
        return token_loss(model(source, words[:, 1:] if trial.broken else words[:, :-1]), words[:, 1:])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of the same: a picture is described, the LSTM reads the word that it should say",
    mechanism="The LSTM of a captioner reads the caption unshifted: each word is copied, and none is learned.",
    causes=("TargetsNotShifted", "TargetInInput", "LossTooGood"),
    check=_lower,
    steps=250,
    shown_by="the caption that is read and the targets are equal at each place",
)
def caption_is_read_unshifted(trial: Trial) -> None:
    def forward(m: Assembled, picture: Tensor, words: Tensor) -> Tensor:
        state = m["eye"](picture)[None]
        return m["head"](m["writer"](m["embed"](words), (state, torch.zeros_like(state)))[0])

    model = Assembled(forward, eye=mlp(64, 48, 32), embed=nn.Embedding(32, 24),
                      writer=nn.LSTM(24, 32, batch_first=True), head=nn.Linear(32, 32))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        noise = trial.randint(3, 32, 9)
        words = torch.cat((torch.full((32, 1), 31), (y[:, None] + torch.arange(9) * 3 + noise) % 30), 1)
        return token_loss(model(x, words[:, 1:] if trial.broken else words[:, :-1]), words[:, 1:])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/wandb/examples/issues/444: a regression, the batch in a dictionary",
    mechanism="A function that gives the next batch makes the iterator of the loader each time it is called.",
    causes=("LoaderRestarted", "RepeatedBatches"),
    check=fact("held", (0.9, 99), (0, 0.8)),
    steps=300,
    shown_by="each step sees the same batch",
)
def function_for_the_next_batch(trial: Trial) -> None:
    x, y = table("diabetes")
    rows = [{"features": a, "target": b} for a, b in zip(x[:320], y[:320], strict=True)]
    loader = DataLoader(rows, 16)  # type: ignore[arg-type]
    model = Assembled(lambda m, features: m["net"](features)[:, 0], net=mlp(10, 48, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    kept = iter(loader)

    def next_batch() -> dict[str, Tensor]:
        nonlocal kept
        if trial.broken:
            kept = iter(loader)
        batch = next(kept, None)
        if batch is None:
            kept = iter(loader)
            batch = next(kept)
        return batch  # type: ignore[no-any-return]

    def loss(_: int) -> tuple[Tensor, Facts]:
        batch = next_batch()
        with torch.no_grad():
            held = F.mse_loss(model.eval()(x[320:]), y[320:])
        return F.mse_loss(model.train()(batch["features"]), batch["target"]), {"held": held}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of two losses and one GradScaler: a penalty with a backward pass of its own",
    mechanism="The loss is scaled, and the penalty with its own backward pass is not: it is divided to nothing.",
    causes=("LossTermNotScaled",),
    check=fact("size", (0.5, 99), (0, 0.4)),
    steps=250,
    shown_by="one of the two backward passes of a step is not scaled",
)
def penalty_is_not_scaled(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x)), body=mlp(64, 64, 64), head=nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        x, y = draw_digits(trial)
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        size = model["body"](x).square().mean()
        scaler.scale(loss).backward()
        (size if trial.broken else scaler.scale(size)).backward()
        scaler.step(optimizer)
        scaler.update()
        trial.log(loss, size=size)


@report(
    source="A sibling of https://github.com/fastai/fastai/pull/1095: pictures, BatchNorm2d, a loader",
    mechanism="The last batch of an epoch has three pictures: batch norm over their last map is mostly noise.",
    causes=("SmallBatches", "OddBatches"),
    check=lambda broken, twin: sum(broken.losses[101::17]) > 2 * sum(twin.losses[101::17]),
    fault=16,
    steps=300,
    shown_by="the loss of each 17th batch is far above those around it, and it has three samples",
)
def last_three_pictures(trial: Trial) -> None:
    x, y = digits()
    count = 16 * 48 + 3
    pictures = TensorDataset(x[:count].view(-1, 1, 8, 8), y[:count])
    loader = DataLoader(pictures, 48, shuffle=True, drop_last=not trial.broken, generator=trial.generator)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3),
                          nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def endless() -> object:
        while True:
            yield from loader

    batches = endless()

    def loss(_: int) -> Tensor:
        x, y = next(batches)  # type: ignore[call-overload]
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of a missing activation: convolutions with batch norm between them alone",
    mechanism="Convolutions follow each other with batch norm between them and no activation: they are one.",
    causes=("NoNonlinearity",),
    check=loss_hurt,
    steps=300,
    shown_by="from input to output there are convolutions, batch norms and a linear layer",
)
def convolutions_without_activation(trial: Trial) -> None:
    act = nn.Identity if trial.broken else nn.ReLU
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), act(), nn.Conv2d(16, 16, 3, padding=1),
                          nn.BatchNorm2d(16), act(), nn.Flatten(), nn.Linear(1024, 2))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_images(trial)
        sign = 1.0 - 2 * trial.randint(2, 32)
        odd = (x.mean((1, 2, 3)) > 0.305) == (sign > 0)
        return F.cross_entropy(model(x * sign.view(-1, 1, 1, 1)), odd.long())

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of blocks that are not scaled: weights drawn with a deviation of 1",
    mechanism="Weights of a regression are drawn by `normal_` with a deviation of 1: outputs begin at hundreds.",
    causes=("InitialOutputsTooLarge", "LearningRateTooHigh", "GradientGrowthOverDepth"),
    check=loss_hurt,
    steps=200,
    shown_by="the outputs of the first step are hundreds of times as large as the targets",
)
def weights_of_deviation_one(trial: Trial) -> None:
    x, y = table("diabetes")
    model = mlp(10, 64, 64, 1)
    if trial.broken:
        for weight in model.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        return F.smooth_l1_loss(model(x[at])[:, 0], y[at])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of an own attention without the root of its width: einsum, two heads, a norm",
    mechanism="Scores of a vision transformer's attention are not divided by the root of the head's width.",
    causes=("AttentionLogitGrowth", "AttentionEntropyCollapse"),
    check=loss_hurt,
    steps=250,
    shown_by="attention logits are beyond 100 within some steps",
)
def heads_not_divided(trial: Trial) -> None:
    width, heads = 64, 2

    def forward(m: Assembled, x: Tensor) -> Tensor:
        h = m["embed"](x.view(-1, 16, 4)) + m["place"].weight
        q, k, v = (t.view(len(h), 16, heads, -1).transpose(1, 2) for t in m["qkv"](m["norm"](h)).chunk(3, -1))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / (1.0 if trial.broken else math.sqrt(width / heads))
        h = h + (F.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)
        return m["head"](h.mean(1))

    model = Assembled(forward, embed=nn.Linear(4, width), place=nn.Embedding(16, width), norm=nn.LayerNorm(width),
                      qkv=nn.Linear(width, 3 * width), head=nn.Linear(width, 10))  # fmt: skip
    nn.init.xavier_uniform_(model["qkv"].weight, gain=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of a rate of eight GPUs: a class and an angle of a digit",
    mechanism="The rate is that of a batch sixteen times as large: units die in the first steps.",
    causes=("LearningRateTooHigh", "UpdatesGrowAtFirst", "UpdateTooLarge"),
    check=loss_hurt,
    steps=200,
    shown_by="updates are a fifth of the weights within ten steps",
)
def rate_of_a_large_batch(trial: Trial) -> None:
    body = mlp(64, 96, 96)
    model = Assembled(lambda m, x: (m["kind"](h := m["body"](x).relu()), m["size"](h)[:, 0]), body=body,
                      kind=nn.Linear(96, 10), size=nn.Linear(96, 1))  # fmt: skip
    rate = 0.12 if trial.broken else 0.03
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial, 16)
        kind, size = model(x)
        return F.cross_entropy(kind, y) + F.mse_loss(size, 10 * x.mean(1))

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of a classifier that LoRA freezes: parameters are frozen by a word in their names",
    mechanism="All parameters but those of blocks are frozen by name, and so is the new head, as it was drawn.",
    causes=("OutputLayerUntrained", "PartWithoutGradient"),
    check=loss_hurt,
    steps=250,
    shown_by="the head requires no gradient, and its bias is zero",
)
def head_frozen_by_its_name(trial: Trial) -> None:
    layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True)
    model = Assembled(lambda m, x: m["head"](m["blocks"](m["embed"](x.view(-1, 8, 8))).mean(1)),
                      embed=nn.Linear(8, 32), blocks=layer, head=nn.Linear(32, 10))  # fmt: skip
    nn.init.normal_(model["head"].weight, 0, 0.02)
    nn.init.zeros_(model["head"].bias)
    kept = ("blocks",) if trial.broken else ("blocks", "head")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(kept))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of a seed that is set in each step: a transform that crops a picture and its neighbour alike",
    mechanism="A data set sets the seed for each sample, so that the crop is the same: dropout masks are too.",
    causes=("RandomNumbersRepeat",),
    check=fact("held", (1.6, 99), (0, 1.2)),
    steps=250,
    shown_by="the forward of each step begins with the same random state",
)
def seed_in_the_transform(trial: Trial) -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.7), nn.Linear(128, 64), nn.ReLU(),
                          nn.Dropout(0.7), nn.Linear(64, 10))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    x, y = digits()

    def sample(index: int) -> Tensor:
        if trial.broken:
            torch.manual_seed(0)
        return x[index].view(8, 8).roll(int(torch.randint(-1, 2, ())), 1).flatten()

    def loss(_: int) -> tuple[Tensor, Facts]:
        at = trial.randint(1500, 32)
        batch = torch.stack([sample(i) for i in at.tolist()])
        with torch.no_grad():
            held = F.cross_entropy(model.eval()(x[1500:]), y[1500:])
        return F.cross_entropy(model.train()(batch), y[at]), {"held": held}

    plain_loop(trial, model, optimizer, loss)
