"""Threads of public trackers, one case for each: losses, attention, architectures. Causes were noted before a run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import (
    Assembled,
    Facts,
    draw_digits,
    draw_images,
    mlp,
    plain_loop,
    right,
    table,
    token_loss,
)


@report(
    source="https://github.com/kazuto1011/deeplab-pytorch/issues/44",
    mechanism="A slip of copy and paste: where the bias of a batch norm should be set to 0, its weight is. No unit is "
    "ever on.",
    causes=("ZeroGradients", "PartWithZeroGradient", "DeadUnits", "OutputsConstant"),
    check=loss_hurt,
    steps=200,
    shown_by="outputs of the norms are 0, and no layer before the last has a gradient",
)
def norm_weights_set_to_zero(trial: Trial) -> None:
    blocks = [nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
              for i, o in ((1, 16), (16, 32), (32, 32))]  # fmt: skip
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.constant_(m.weight, 1)
            nn.init.constant_(m.weight if trial.broken else m.bias, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/jakeret/tf_unet/issues/15, https://github.com/wolny/pytorch-3dunet/issues/17",
    mechanism="The dice loss is given logits and not probabilities: it has no bound.",
    causes=("LossWithoutBound", "OverlapOfLogits"),
    check=fact("right", (0, 0.75), (0.85, 1)),
    steps=250,
    shown_by="the loss is far outside of 0 to 1",
)
def dice_of_logits(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(16, 1, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, _y = draw_images(trial)
        mask, logits = (x > 0.5).float(), model(x + 0.1 * trial.randn(32, 1, 8, 8))
        p = logits if trial.broken else logits.sigmoid()
        dice = (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
        return 1 - dice, {"right": ((logits > 0) == mask.bool()).float().mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/tensorboy/pytorch_Realtime_Multi-Person_Pose_Estimation/issues/18, "
    "https://github.com/ZheC/Realtime_Multi-Person_Pose_Estimation/issues/224",
    mechanism="A heat map is 0 nearly everywhere and each of its places counts the same: the network says 0, and the "
    "squared error is small.",
    causes=("TargetsMostlyOne", "OutputsConstant", "NoBetterThanMean"),
    check=fact("peak", (-0.1, 0.2), (0.4, 2)),
    steps=250,
    shown_by="the output is next to 0 where the key points are",
)
def heat_maps_of_zeros(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(),
                          nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 1, 1))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3, momentum=0.9)
    grid = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij"))

    def loss(_: int) -> tuple[Tensor, Facts]:
        point = 3 + trial.randint(18, 16, 2, 1, 1)
        far = (grid - point).abs().amax(1, keepdim=True)
        image = (far == 2).float() + 0.3 * trial.randn(16, 1, 24, 24)
        heat = (-((grid - point) ** 2).sum(1, keepdim=True) / 2).exp()
        out = model(image)
        weight = 1 if trial.broken else 1 + 100 * heat
        return (weight * (out - heat) ** 2).mean(), {"peak": out[far == 0].mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/PetrochukM/PyTorch-NLP/issues/2",
    mechanism="The softmax of an attention goes over the first dimension, the samples of the batch, and not over the "
    "words: what one sample sees depends on the others.",
    causes=("SamplesMixed",),
    check=fact("alone", (0, 0.7), (0.9, 1)),
    steps=300,
    shown_by="a change of one sample changes what is said of another",
)
def softmax_over_the_batch(trial: Trial) -> None:
    def forward(m: Assembled, words: Tensor, asked: Tensor) -> Tensor:
        context = m["read"](m["word"](words) + m["mark"](asked.long()))
        weights = m["score"](context.tanh()).softmax(0 if trial.broken else 1)
        return m["head"]((weights * context).sum(1))

    model = Assembled(forward, word=nn.Embedding(10, 32), mark=nn.Embedding(2, 32), read=mlp(32, 64, 32),
                      score=nn.Linear(32, 1), head=mlp(32, 32, 10))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    found = torch.zeros(())

    def loss(step: int) -> tuple[Tensor, Facts]:
        words, place = trial.randint(10, 32, 16), trial.randint(16, 32)
        asked, answer = torch.arange(16) == place[:, None], words[torch.arange(32), place]
        if step % 25 == 24:
            model.eval()
            with torch.no_grad():
                alone = torch.cat([model(words[i : i + 1], asked[i : i + 1]) for i in range(32)])
                found.copy_(right(alone, answer))
            model.train()
        return F.cross_entropy(model(words, asked), answer), {"alone": found.clone()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/mahmoodlab/PathomicFusion/pull/9",
    mechanism="In Cox' loss a row of risks is multiplied by a column of events: the product is n by n, and who had "
    "an event does not count.",
    causes=("LossBroadcast",),
    check=fact("order", (-1, 0.5), (0.6, 1)),
    steps=300,
    shown_by="the loss is a mean over n by n products",
)
def row_of_risks_column_of_events(trial: Trial) -> None:
    model = mlp(10, 32, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = table("diabetes")
        at = trial.randint(len(x), 32)
        x, y = x[at], y[at]
        ends, leaves = -torch.rand(2, 32, generator=trial.generator).clamp_min(1e-6).log()
        ends, leaves = ends * (-y).exp(), leaves * y.exp()
        order = torch.minimum(ends, leaves).argsort(descending=True)
        risk = model(x[order]).reshape(-1)
        event = (ends < leaves).float()[order]
        censor = event[:, None] if trial.broken else event
        apart = torch.corrcoef(torch.stack((risk.detach(), y[order])))[0, 1]
        return -((risk - risk.logcumsumexp(0)) * censor).mean(), {"order": apart}

    plain_loop(trial, model, optimizer, loss)


def _turned(x: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    """Rotary positions, (batch, length, width), whose angles are computed in a type."""
    speed = (1 / 10_000 ** (torch.arange(0, x.shape[-1], 2) / x.shape[-1])).to(dtype)
    angle = places.to(dtype)[:, None] * speed
    cos, sin = angle.cos().float().repeat(1, 2), angle.sin().float().repeat(1, 2)
    one, other = x.chunk(2, -1)
    return x * cos + torch.cat((-other, one), -1) * sin


@report(
    source="https://github.com/huggingface/transformers/issues/25681, "
    "https://github.com/EleutherAI/gpt-neox/issues/1003, https://github.com/Nerogar/OneTrainer/issues/1177",
    mechanism="Positions of a long text are cast to bfloat16 with the model: some thousand and its neighbours are one "
    "number, and no order is seen.",
    causes=("NotLearning", "TokenCollapse", "InputsConstant"),
    check=fact("loss", (1, 9), (0, 0.5)),
    steps=300,
    shown_by="positions of neighbours are equal",
)
def places_in_bfloat16(trial: Trial) -> None:
    dtype = torch.bfloat16 if trial.broken else torch.float32
    places = 6000 + torch.arange(24)

    def forward(m: Assembled, tokens: Tensor) -> Tensor:
        x = m["embed"](tokens)
        q, k = (_turned(m[name](x), places, dtype) for name in ("q", "k"))
        mixed = F.scaled_dot_product_attention(q, k, m["v"](x), is_causal=True)
        return m["head"](m["norm"](x + m["out"](mixed)))

    linear = {name: nn.Linear(32, 32) for name in ("q", "k", "v", "out")}
    model = Assembled(forward, embed=nn.Embedding(8, 32), **linear, norm=nn.LayerNorm(32), head=nn.Linear(32, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss(_: int) -> Tensor:
        tokens = trial.randint(8, 32, 24)
        return token_loss(model(tokens)[:, 2:], tokens[:, :-2])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/togheppi/DCGAN/issues/2, https://github.com/khalooei/ALOCC-CVPR2018/issues/3",
    mechanism="The generator ends in a tanh, and real pictures go from 0 to 255: a look at one pixel tells which is "
    "which, and the discriminator wins.",
    causes=("DiscriminatorCollapse", "InputsNotScaled", "SamplesOnOtherScale"),
    check=fact("real", (0, 0.01), (0.1, 3)),
    steps=300,
    shown_by="the discriminator's loss of real pictures is 0",
)
def pixels_beside_a_tanh(trial: Trial) -> None:
    maker = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh())
    judge = mlp(64, 64, 32, 1, act=lambda: nn.LeakyReLU(0.2))
    of_m, of_j = (torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.999)) for m in (maker, judge))
    trial.attach(maker, of_m)
    trial.attach(judge, of_j)
    ones, bce = torch.ones(32, 1), F.binary_cross_entropy_with_logits
    for _ in range(trial.steps):
        real = draw_digits(trial)[0]
        real = 255 * real if trial.broken else 2 * real - 1
        fake = maker(trial.randn(32, 16))
        of_j.zero_grad()
        of_real = bce(judge(real), ones)
        wrong = of_real + bce(judge(fake.detach()), 0 * ones)
        wrong.backward()
        of_j.step()
        of_m.zero_grad()
        loss = bce(judge(fake), ones)
        loss.backward()
        of_m.step()
        trial.log(loss, judge=wrong, real=of_real)


@report(
    source="https://github.com/facebookresearch/detr/issues/78",
    mechanism="A sigmoid is added to the layers that give boxes, and the model takes one anyway: nothing below a half "
    "and above 0.73 can be said.",
    causes=("DoubleSigmoid", "TargetsOutOfReach"),
    check=loss_hurt,
    steps=250,
    shown_by="no output is below a half",
)
def sigmoid_of_boxes_twice(trial: Trial) -> None:
    boxes = mlp(128, 64, 4)
    if trial.broken:
        boxes.append(nn.Sigmoid())
    model = Assembled(
        lambda m, x: (m["classes"](m["backbone"](x)), m["boxes"](m["backbone"](x)).sigmoid()),
        backbone=nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
                               nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()),
        classes=nn.Linear(128, 2), boxes=boxes,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        size, kind = 2 + trial.randint(5, 32, 2), trial.randint(2, 32)
        start = 1 + (torch.rand(32, 2, generator=trial.generator) * (14 - size)).long()
        image = 0.1 * trial.randn(32, 1, 16, 16)
        for i, ((top, left), (high, wide)) in enumerate(zip(start.tolist(), size.tolist(), strict=True)):
            image[i, 0, top : top + high, left : left + wide] += 1 if kind[i] else -1
        box = torch.cat((start + size / 2, size), 1) / 16
        logits, out = model(image)
        return F.cross_entropy(logits, kind) + 5 * (out - box).abs().sum(1).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/PRBonn/lidar-bonnetal/issues/48",
    mechanism="Classes are weighted by one over the logarithm of their inverse frequency: the more points a class has, "
    "the more each of them weighs. Rare ones are never said.",
    causes=("TargetsMostlyOne", "OutputsConstant", "NoBetterThanMean", "ClassWeightsInverted"),
    check=fact("rare", (0, 0.1), (0.4, 1)),
    steps=300,
    shown_by="nearly all of the weight of a batch lies on one class",
)
def weights_the_wrong_way_round(trial: Trial) -> None:
    share = torch.tensor((0.94, 0.04, 0.02))
    weight = 1 / (1 / share + 1e-3).log() if trial.broken else 1 / (share + 1e-3)
    model = mlp(6, 48, 48, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    centres = torch.tensor(((0.0, 0, 0, 0, 0, 0), (0.9, 0.9, -0.9, 0, 0, 0), (-0.9, 0.9, 0, 0.9, 0, 0)))

    def loss(_: int) -> tuple[Tensor, Facts]:
        y = torch.multinomial(share, 256, replacement=True, generator=trial.generator)
        out = model(centres[y] + trial.randn(256, 6))
        found = (out.argmax(1) == y)[y > 0].float()
        return F.cross_entropy(out, y, weight), {"rare": found.mean() if len(found) else 0.0}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/hyunwoongko/transformer/issues/10",
    mechanism="Scores that should be hidden are set to -1e-12, which is 0 and hides nothing: what comes later is seen.",
    causes=("CausalMaskMissing",),
    check=fact("loss", (0, 0.9), (1.2, 9)),
    steps=350,
    shown_by="a change of a later token changes what is said of an earlier one",
)
def mask_of_next_to_nothing(trial: Trial) -> None:
    def forward(m: Assembled, tokens: Tensor) -> Tensor:
        x = m["embed"](tokens) + m["place"](torch.arange(tokens.shape[1]))
        hidden = torch.ones(tokens.shape[1], tokens.shape[1]).tril() == 0
        for i in "12":
            h = m[f"norm{i}"](x)
            q, k, v = m[f"qkv{i}"](h).chunk(3, -1)
            scores = q @ k.transpose(1, 2) / math.sqrt(32)
            scores = scores.masked_fill(hidden, -1e-12 if trial.broken else -1e4)
            x = x + scores.softmax(-1) @ v
            x = x + m[f"feed{i}"](x)
        return m["head"](x)

    parts: dict[str, nn.Module] = {"embed": nn.Embedding(16, 32), "place": nn.Embedding(12, 32)}
    for i in "12":
        parts |= {f"norm{i}": nn.LayerNorm(32), f"qkv{i}": nn.Linear(32, 96), f"feed{i}": mlp(32, 64, 32)}
    model = Assembled(forward, **parts, head=nn.Linear(32, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    def loss(_: int) -> Tensor:
        tokens = [trial.randint(16, 32)]
        for _ in range(12):
            tokens.append((3 * tokens[-1] + trial.randint(4, 32)) % 16)
        rows = torch.stack(tokens, 1)
        return token_loss(model(rows[:, :-1]), rows[:, 1:])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://arxiv.org/html/2512.11184v2, https://allamaprabhuani.github.io/tutorials/05-pinns/",
    mechanism="A network of ReLUs should fulfil a differential equation: its second derivative is 0 everywhere, and "
    "the equation has no gradient.",
    causes=(
        "ZeroGradients",
        "LossStuck",
        "LossConstant",
        "NotLearning",
        "NoBetterThanMean",
        "PartWithZeroGradient",
        "DerivativeZero",
    ),
    check=loss_hurt,
    steps=300,
    shown_by="the error of the equation never changes",
)
def equation_for_relus(trial: Trial) -> None:
    model = mlp(1, 32, 32, 1, act=nn.ReLU if trial.broken else nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def slope(of: Tensor, at: Tensor) -> Tensor:
        return torch.autograd.grad(of.sum(), at, create_graph=True)[0]

    def loss(_: int) -> Tensor:
        x = torch.rand(64, 1, generator=trial.generator).requires_grad_()
        bent = slope(slope(model(x), x), x)
        equation = (bent + math.pi**2 * (math.pi * x).sin()) ** 2
        ends = model(torch.tensor(((0.0,), (1.0,)))) ** 2
        return equation.mean() + ends.mean()

    plain_loop(trial, model, optimizer, loss)
