"""Healthy workloads of common kinds, a fourth time: policies, games, graphs, texts, pictures."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
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
    right,
    token_loss,
)


@healthy(learns=reaches("reward", 0.5), steps=400)
def advantage_actor_critic(trial: Trial) -> None:
    """A2C: eight walkers on a line, five steps each, bootstrapped returns, entropy bonus, RMSprop, a bound of 0.5."""
    model = Assembled(
        lambda m, x: (m["actor"](m["body"](x)), m["critic"](m["body"](x))[..., 0]),
        body=nn.Sequential(nn.Linear(2, 48), nn.Tanh()), actor=nn.Linear(48, 3), critic=nn.Linear(48, 1),
    )  # fmt: skip
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3, eps=1e-5)
    trial.attach(model, optimizer)
    place, goal = trial.randn(8), trial.randn(8)
    for _ in range(trial.steps):
        logps, values, rewards, entropies = [], [], [], []
        for _ in range(5):
            logits, value = model(torch.stack((place, goal), 1))
            choice = torch.distributions.Categorical(logits=logits)
            action = torch.multinomial(logits.detach().softmax(-1), 1, generator=trial.generator)[:, 0]
            place = (place + 0.3 * (action - 1)).clamp(-3, 3)
            far = (place - goal).abs()
            rewards.append((far < 0.3).float())
            goal = torch.where(torch.rand(8, generator=trial.generator) < 0.05, trial.randn(8), goal)
            logps.append(choice.log_prob(action))
            values.append(value)
            entropies.append(choice.entropy())
        with torch.no_grad():
            after = model(torch.stack((place, goal), 1))[1]
        returns = []
        for reward in reversed(rewards):
            after = reward + 0.9 * after
            returns.insert(0, after)
        gain = torch.stack(returns) - torch.stack(values)
        policy = -(gain.detach() * torch.stack(logps)).mean()
        loss = policy + 0.5 * gain.square().mean() - 0.01 * torch.stack(entropies).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        trial.log(loss, reward=torch.stack(rewards).mean())


@healthy(learns=lambda run: run.final("spread") > 0.3, steps=400)
def game_with_classes(trial: Trial) -> None:
    """A conditional GAN on digits: both are told the class, non-saturating losses, one-sided smoothing, two watches."""
    maker, judge = mlp(16 + 10, 64, 64), mlp(64 + 10, 64, 1, act=nn.LeakyReLU)
    of_maker = torch.optim.Adam(maker.parameters(), lr=1e-3, betas=(0.5, 0.999))
    of_judge = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.5, 0.999))
    trial.attach(judge, of_judge)
    trial.attach(maker, of_maker)
    ones = torch.ones(32, 1)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        kind = F.one_hot(y, 10).float()
        made = maker(torch.cat((trial.randn(32, 16), kind), 1)).sigmoid()
        true, false = (judge(torch.cat((z, kind), 1)) for z in (x, made.detach()))
        loss = F.binary_cross_entropy_with_logits(true, 0.9 * ones) + F.binary_cross_entropy_with_logits(
            false, 0 * ones
        )
        of_judge.zero_grad()
        loss.backward()
        of_judge.step()
        of_maker.zero_grad()
        F.binary_cross_entropy_with_logits(judge(torch.cat((made, kind), 1)), ones).backward()
        of_maker.step()
        trial.log(loss, spread=made.detach().std(0).mean() / x.std(0).mean())


@healthy(learns=falls(0.6), steps=350)
def messages_on_edges(trial: Trial) -> None:
    """Message passing with features of edges and gated updates (GRUCell), a number of each node, AdamW, batches."""
    model = nn.ModuleDict({
        "enter": nn.Linear(3, 24), "message": mlp(24 + 24 + 1, 32, 24, act=nn.SiLU), "renew": nn.GRUCell(24, 24),
        "leave": mlp(24, 24, 1, act=nn.SiLU),
    })  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        place = trial.randn(64, 2)
        charge = trial.randn(64, 1)
        a, b = trial.randint(64, 256), trial.randint(64, 256)
        far = (place[a] - place[b]).norm(dim=1, keepdim=True)
        h = model["enter"](torch.cat((place, charge), 1))
        for _ in range(2):
            told = model["message"](torch.cat((h[a], h[b], far), 1))
            h = model["renew"](torch.zeros(64, 24).index_add(0, b, told), h)
        target = torch.zeros(64, 1).index_add(0, b, charge[a] / (1 + far))
        return F.smooth_l1_loss(model["leave"](h), target)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.85), steps=350)
def stacked_recurrence(trial: Trial) -> None:
    """A language model of three LSTM layers with dropout between, tied weights, SGD with momentum, a bound of 1."""
    model = Assembled(lambda m, x: m["out"](m["body"](m["embed"](x))[0]), embed=nn.Embedding(128, 48),
                      body=nn.LSTM(48, 48, 3, dropout=0.1, batch_first=True), out=nn.Linear(48, 128))  # fmt: skip
    model["out"].weight = model["embed"].weight
    nn.init.normal_(model["embed"].weight, 0, 0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial, 16, 24)
        loss = token_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        trial.log(loss)


@healthy(learns=falls(0.75), steps=350)
def guided_diffusion(trial: Trial) -> None:
    """DDPM with a cosine schedule of the noise; the class is left out one time in ten; an average follows at 0.99."""
    model = Assembled(
        lambda m, x, t, y: m["body"](torch.cat((x, m["time"](t[:, None]), m["kind"](y)), 1)),
        time=mlp(1, 16, 16, act=nn.SiLU), kind=nn.Embedding(11, 16), body=mlp(96, 128, 128, 64, act=nn.SiLU),
    )  # fmt: skip
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial, 64)
        y = y.masked_fill(torch.rand(64, generator=trial.generator) < 0.1, 10)
        t = torch.rand(64, generator=trial.generator)
        part, noise = (t * torch.pi / 2).cos().square()[:, None], trial.randn(64, 64)
        return F.mse_loss(model(part.sqrt() * (2 * x - 1) + (1 - part).sqrt() * noise, t, y), noise)

    def follow(_: int) -> Facts:
        with torch.no_grad():
            for a, b in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 0.01)
        return {}

    plain_loop(trial, model, optimizer, loss, after=follow)


@healthy(learns=falls(0.7), steps=350)
def patches_with_registers(trial: Trial) -> None:
    """A ViT with two registers, scaled residuals (0.1), rates that decay with depth, MixUp, cosine after a warm-up."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.TransformerEncoderLayer(32, 4, 64, 0.1, F.gelu, batch_first=True, norm_first=True)
            self.scale = nn.Parameter(torch.full((32,), 0.1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale * (self.body(x) - x)

    class Picture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.place = nn.Linear(4, 32), nn.Parameter(0.02 * torch.randn(16, 32))
            self.extra = nn.Parameter(0.02 * torch.randn(3, 32))
            self.layers, self.head = nn.ModuleList(Layer() for _ in range(3)), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.patch(F.unfold(x, 2, stride=2).transpose(1, 2)) + self.place
            h = torch.cat((self.extra.expand(len(x), -1, -1), h), 1)
            for layer in self.layers:
                h = layer(h)
            return self.head(h[:, 0])

    model = Picture()
    groups = [{"params": [model.patch.weight, model.patch.bias, model.place, model.extra], "lr": 2e-3 * 0.7**3}]
    groups += [{"params": layer.parameters(), "lr": 2e-3 * 0.7 ** (2 - i)} for i, layer in enumerate(model.layers)]
    optimizer = torch.optim.AdamW([*groups, {"params": model.head.parameters(), "lr": 2e-3}], weight_decay=0.05)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=30)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 320)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [30])

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        part = float(torch.rand(1, generator=trial.generator)) if trial.randint(2, 1) else 1.0
        mixed = part * x + (1 - part) * x.flip(0)
        logits = model(mixed)
        return part * F.cross_entropy(logits, y) + (1 - part) * F.cross_entropy(logits, y.flip(0))

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=falls(0.6), steps=350)
def codes_by_averages(trial: Trial) -> None:
    """VQ-VAE whose codebook follows averages of what is assigned to it (no gradient), commitment of 0.25, Adam."""

    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader, self.writer = mlp(64, 64, 32), mlp(32, 64, 64)
            self.register_buffer("book", torch.randn(32, 8))
            self.register_buffer("count", torch.ones(32))
            self.register_buffer("sums", self.book.clone())

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = self.reader(x).view(-1, 8)
            near = torch.cdist(z, self.book).argmin(1)
            if self.training:
                with torch.no_grad():
                    chosen = F.one_hot(near, 32).float()
                    self.count.lerp_(chosen.sum(0), 0.05)
                    self.sums.lerp_(chosen.T @ z, 0.05)
                    self.book.copy_(self.sums / self.count.clamp(min=1e-3)[:, None])
                    lost = self.count < 0.5
                    self.book[lost] = z[trial.randint(len(z), int(lost.sum()))]
            code = self.book[near]
            out = self.writer((z + (code - z).detach()).view(-1, 32))
            return out, F.mse_loss(z, code.detach())

    model = Codes()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial, 48)
        out, near = model(x)
        return F.mse_loss(out, x) + 0.25 * near

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8), steps=350)
def supervised_contrast(trial: Trial) -> None:
    """Supervised contrastive learning: all of the same class are near, a temperature of 0.1, LARS-like SGD, cosine."""
    model = nn.Sequential(mlp(64, 96, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 24))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 350)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial, 48)
        both, kinds = torch.cat((x, x)) + 0.1 * trial.randn(96, 64), torch.cat((y, y))
        z = F.normalize(model(both), dim=1)
        scores = (z @ z.T / 0.1).masked_fill(torch.eye(96, dtype=torch.bool), -1e9)
        same = (kinds[:, None] == kinds) & ~torch.eye(96, dtype=torch.bool)
        return -((scores.log_softmax(1) * same).sum(1) / same.sum(1)).mean()

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=reaches("right", 0.8), steps=350)
def taught_by_a_larger_one(trial: Trial) -> None:
    """Distillation: a small network is near a trained one's softened outputs (temperature 4) and the labels."""
    teacher, student = mlp(64, 128, 128, 10), mlp(64, 24, 10)
    first = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(150):
        first.zero_grad()
        digits_loss(trial, teacher).backward()
        first.step()
    teacher.requires_grad_(False).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, nesterov=True)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_digits(trial)
        logits = student(x)
        soft = F.kl_div((logits / 4).log_softmax(1), (teacher(x) / 4).softmax(1), reduction="batchmean")
        return 0.7 * 16 * soft + 0.3 * F.cross_entropy(logits, y), {"right": right(logits, y)}

    plain_loop(trial, student, optimizer, loss)


@healthy(learns=falls(0.98), steps=350)
def adapters_with_dropout(trial: Trial) -> None:
    """LoRA of rank 8 with dropout and scale 2 in the attention of a text model, a trained head, AdamW."""

    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.drop = base.requires_grad_(False), nn.Dropout(0.1)
            self.lora_a = nn.Linear(base.in_features, 8, bias=False)
            self.lora_b = nn.Linear(8, base.out_features, bias=False)
            nn.init.zeros_(self.lora_b.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + 2 * self.lora_b(self.lora_a(self.drop(x)))

    model = TextModel(width=32)
    first = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        x, y = draw_text(trial)
        first.zero_grad()
        token_loss(model(x), y).backward()
        first.step()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    for block in model.blocks:
        block.attention.qkv = Adapter(block.attention.qkv)
        block.attention.out = Adapter(block.attention.out)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    table = torch.randperm(128, generator=torch.Generator().manual_seed(5))
    swap = torch.where(torch.rand(128, generator=torch.Generator().manual_seed(6)) < 0.3, table, torch.arange(128))

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial)
        return token_loss(model(swap[x]), swap[y])

    plain_loop(trial, model, optimizer, loss)
