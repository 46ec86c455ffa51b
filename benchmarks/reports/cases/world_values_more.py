"""Threads that users opened, one case for each: units, rates and losses. Causes were noted before a run was seen."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import Assembled, Block, Facts, draw_digits, draw_images, draw_text, mlp, plain_loop


@report(
    source="https://github.com/munshisanowarraihan/nerf-meta/issues/3, https://github.com/bmild/nerf/issues/29, "
    "https://github.com/kwea123/nerf_pl/issues/51",
    mechanism="The density of a radiance field goes through a ReLU: before much white it is soon zero everywhere, and "
    "no gradient is left.",
    causes=("DeadUnits", "ZeroGradients", "PartWithZeroGradient", "ReluOnLogits"),
    check=loss_hurt,
    steps=300,
    shown_by="the gradient of all layers but that of nothing is zero, and the picture is white",
)
def density_is_zero(trial: Trial) -> None:
    model = mlp(18, 64, 64, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    octaves = math.pi * 2.0 ** torch.arange(4)
    depth = torch.linspace(-1, 1, 24)

    def loss(_: int) -> Tensor:
        turn = 2 * math.pi * torch.rand(64, 1, generator=trial.generator)
        aside = 2 * torch.rand(64, 1, generator=trial.generator) - 1
        x = aside * turn.cos() - depth * turn.sin()
        y = aside * turn.sin() + depth * turn.cos()
        at = torch.stack((x, y), -1)
        waves = (at[..., None] * octaves).flatten(2)
        raw = model(torch.cat((at, waves.sin(), waves.cos()), -1))
        density = raw[..., 0].relu() if trial.broken else F.softplus(raw[..., 0] - 1)
        hit = 1 - (-density * 2 / 24 * 4).exp()
        through = torch.cumprod(torch.cat((torch.ones(64, 1), 1 - hit + 1e-10), 1), 1)
        weight = hit * through[:, :-1]
        seen = (weight * raw[..., 1].sigmoid()).sum(1) + 1 - weight.sum(1)
        return F.mse_loss(seen, torch.where(aside[:, 0].abs() < 0.06, 0.1, 1.0))

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/devsisters/DQN-tensorflow/issues/16",
    mechanism="The error of a Q-network is cut to -1 to 1 before it is squared: beyond that it has no gradient.",
    causes=("ZeroGradients", "PartWithZeroGradient", "LossConstant"),
    check=fact("error", (3, 1e3), (0, 2)),
    steps=300,
    shown_by="gradients are exactly zero, and the loss is 1",
)
def error_cut_before_the_square(trial: Trial) -> None:
    model = mlp(6, 64, 64, 3)
    target = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    worth = trial.randn(6, 3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        state, after, move = trial.randn(64, 6), trial.randn(64, 6), trial.randint(3, 64, 1)
        reward = 4 + (state @ worth).gather(1, move)[:, 0].tanh()
        with torch.no_grad():
            aim = reward + 0.5 * target(after).amax(1)
        error = aim - model(state).gather(1, move)[:, 0]
        cut = error.clamp(-1, 1).pow(2).mean() if trial.broken else F.smooth_l1_loss(error, torch.zeros(64))
        return cut, {"error": error.detach().abs().mean()}

    def follow(step: int) -> Facts:
        if step % 25 == 24:
            target.load_state_dict(model.state_dict())
        return {}

    plain_loop(trial, model, optimizer, loss, after=follow)


class _Residual(nn.Module):
    """Two convolutions that are added to what comes in, without a norm."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
                                  nn.Conv2d(channels, channels, 3, padding=1))  # fmt: skip
        for layer in (self.body[0], self.body[2]):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.body(x)


@report(
    source="https://github.com/sanghyun-son/EDSR-PyTorch/issues/198, "
    "https://github.com/sanghyun-son/EDSR-PyTorch/issues/214, https://github.com/JiahuiYu/wdsr_ntire2018/issues/14",
    mechanism="Residual blocks without a norm are not scaled by 0.1: what they add doubles from block to block.",
    causes=(
        "InitialOutputsTooLarge",
        "ResidualStreamGrowth",
        "GradientGrowthOverDepth",
        "LearningRateTooHigh",
        "UpdateTooLarge",
    ),
    check=loss_hurt,
    steps=150,
    shown_by="the output of the last block is thousands of times that of the first",
)
def blocks_not_scaled(trial: Trial) -> None:
    blocks = nn.Sequential(*(_Residual(16, 1.0 if trial.broken else 0.1) for _ in range(12)))
    tail = nn.Sequential(nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2))
    model = Assembled(lambda m, x: m["tail"](m["blocks"](m["head"](x))), head=nn.Conv2d(1, 16, 3, padding=1),
                      blocks=blocks, tail=tail)  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_images(trial, 16)
        return F.l1_loss(model(F.avg_pool2d(x, 2)), x)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/facebookresearch/maskrcnn-benchmark/issues/33, "
    "https://github.com/open-mmlab/mmdetection/issues/1710",
    mechanism="The rate of a detector is that of eight GPUs, and it is trained on one: it is eight times too high.",
    causes=("LearningRateTooHigh", "UpdateTooLarge", "GradientNormExplosion"),
    check=loss_hurt,
    steps=250,
    shown_by="the loss leaves what was learned within some dozen steps",
)
def rate_of_eight_gpus(trial: Trial) -> None:
    body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1),
                         nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 128), nn.ReLU())  # fmt: skip
    model = Assembled(lambda m, x: (m["kind"](h := m["body"](x)), m["box"](h)), body=body, kind=nn.Linear(128, 10),
                      box=nn.Linear(128, 2))  # fmt: skip
    rate = 0.08 if trial.broken else 0.01
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial, 16)
        corner = trial.randint(9, 16, 2)
        canvas = torch.zeros(16, 1, 16, 16)
        for place, image, (top, left) in zip(canvas, x, corner.tolist(), strict=True):
            place[:, top : top + 8, left : left + 8] = image
        kind, box = model(canvas)
        return F.cross_entropy(kind, y) + F.smooth_l1_loss(box, corner.float(), reduction="none").sum(1).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/wenet-e2e/wenet/issues/279",
    mechanism="The warm-up of a large speech transformer climbs to a rate that is too high: on its way the loss jumps "
    "and stays up.",
    causes=("LearningRateTooHigh", "LossRisesWithRate", "UpdateTooLarge"),
    check=loss_hurt,
    steps=400,
    shown_by="the loss falls at first and jumps while the rate climbs",
)
def speech_leaves_in_its_warm_up(trial: Trial) -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(48, 4, 96, 0.0, batch_first=True), 4)
    front = nn.Sequential(nn.Conv1d(20, 48, 3, 2, 1), nn.ReLU())
    model = Assembled(lambda m, x: m["head"](m["encoder"](m["front"](x).transpose(1, 2))), front=front, encoder=encoder,
                      head=nn.Linear(48, 12))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2 if trial.broken else 1e-3)
    schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 300))
    sounds = trial.randn(12, 20)

    def loss(_: int) -> Tensor:
        phones = trial.randint(12, 8, 10)
        frames = sounds[phones].repeat_interleave(4, 1) + trial.randn(8, 40, 20)
        return F.cross_entropy(model(frames.transpose(1, 2)).flatten(0, 1), phones.repeat_interleave(2, 1).flatten())

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@report(
    source="https://github.com/huggingface/transformers/issues/29219",
    mechanism="Words are added to a trained vocabulary, and their rows are drawn fifty times as large as the others: "
    "the output layer shares them.",
    causes=("InitialLossTooHigh",),
    check=lambda broken, twin: broken.losses[0] > 3 * twin.losses[0],
    steps=150,
    shown_by="the first loss is many times that of a guess",
)
def rows_of_new_words(trial: Trial) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=112, n_positions=32, n_embd=64, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
                   attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    )  # fmt: skip
    model.resize_token_embeddings(128, mean_resizing=False)
    with torch.no_grad():
        model.transformer.wte.weight[112:].normal_(0, 1.0 if trial.broken else 0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_text(trial)
        return model(input_ids=x, labels=x).loss

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/deepinsight/insightface/issues/2144, https://github.com/fdbtrs/PocketNet/issues/3",
    mechanism="A vision transformer is trained with ArcFace at the rate of a ResNet: with a scale of 64 its loss stays "
    "about 20.",
    causes=("LearningRateTooHigh", "UpdateTooLarge", "GradientNormExplosion", "EmbeddingCollapse"),
    check=loss_hurt,
    steps=250,
    shown_by="gradients are hundreds, and features of all pictures become alike",
)
def arcface_at_the_rate_of_a_resnet(trial: Trial) -> None:
    blocks = nn.Sequential(Block(48, 4, causal=False), Block(48, 4, causal=False))
    parts = {"patch": nn.Conv2d(1, 48, 2, 2), "place": nn.Embedding(16, 48), "blocks": blocks,
             "norm": nn.LayerNorm(48), "centres": nn.Linear(48, 10, bias=False)}  # fmt: skip

    def forward(m: Assembled, x: Tensor) -> Tensor:
        tokens = m["patch"](x).flatten(2).transpose(1, 2) + m["place"].weight
        found = m["norm"](m["blocks"](tokens)).mean(1)
        return F.linear(F.normalize(found, dim=-1), F.normalize(m["centres"].weight, dim=-1))

    model = Assembled(forward, **parts)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if trial.broken else 1e-3, momentum=0.9, weight_decay=5e-4)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        angle = model(x).clamp(-1 + 1e-6, 1 - 1e-6).acos()
        return F.cross_entropy(64 * (angle + 0.5 * F.one_hot(y, 10)).cos(), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/torchgan/torchgan/pull/42, https://github.com/archsyscall/GANs-TensorFlow2/issues/2",
    mechanism="The weights of a Wasserstein critic are never clipped: its loss has no bound and falls for ever.",
    causes=("LossWithoutBound", "DiscriminatorCollapse", "GradientNormExplosion"),
    check=fact("loss", (-1e15, -20), (-5, 5)),
    steps=250,
    shown_by="the critic's loss falls below zero ever faster",
)
def critic_is_not_clipped(trial: Trial) -> None:
    maker, critic = mlp(16, 64, 64), mlp(64, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))
    makes = torch.optim.RMSprop(maker.parameters(), lr=5e-4)
    judges = torch.optim.RMSprop(critic.parameters(), lr=5e-4)
    trial.attach(critic, judges)
    trial.attach(maker, makes)
    for step in range(trial.steps):
        x, _y = draw_digits(trial)
        judges.zero_grad()
        loss = critic(maker(trial.randn(32, 16)).sigmoid().detach()).mean() - critic(x).mean()
        loss.backward()
        judges.step()
        if not trial.broken:
            with torch.no_grad():
                for weight in critic.parameters():
                    weight.clamp_(-0.05, 0.05)
        if step % 5 == 4:
            makes.zero_grad()
            (-critic(maker(trial.randn(32, 16)).sigmoid()).mean()).backward()
            makes.step()
        trial.log(loss)
