"""Healthy workloads of common kinds, a second time; written before the rules of their day were changed."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import (
    Assembled,
    Block,
    Facts,
    draw_digits,
    draw_images,
    mlp,
    plain_loop,
    right,
    token_loss,
)


class _Residual(nn.Module):
    """Two convolutions with batch norm around which the input goes."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)
        self.short = nn.Identity() if inner == outer and stride == 1 else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm2(self.two(self.norm1(self.one(x)).relu()))
        return (z + self.short(x)).relu()


@healthy(learns=reaches("right", 0.9), steps=400)
def residual_network(trial: Trial) -> None:
    """A small ResNet: Nesterov momentum at 0.1, decay, cosine, pictures that are moved by a pixel."""
    model = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
                          _Residual(12, 12, 1), _Residual(12, 24, 2),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.steps)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_images(trial, 64)
        x = torch.roll(x, tuple(int(i) - 1 for i in trial.randint(3, 2)), (2, 3))
        logits = model(x)
        return F.cross_entropy(logits, y), {"right": right(logits, y)}

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=falls(0.7), steps=400)
def masks_by_dice(trial: Trial) -> None:
    """Segmentation by cross-entropy and 1 - dice, a tenth of the pixels in the foreground, AdamW."""
    model = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU(),
                          nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        mask = (torch.rand(16, 1, 12, 12, generator=trial.generator) < 0.1).float()
        out = model(mask + 0.5 * trial.randn(16, 1, 12, 12))
        p = out.sigmoid()
        dice = (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
        return F.binary_cross_entropy_with_logits(out, mask) + 1 - dice, {"dice": dice}

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.6), steps=400)
def words_turned_round(trial: Trial) -> None:
    """Sequence to sequence with two GRUs: seven letters are said backwards, half of the time from its own words."""
    reader, writer, head = nn.GRU(24, 64, batch_first=True), nn.GRU(24, 64, batch_first=True), nn.Linear(64, 17)
    embed = nn.Embedding(17, 24)

    def forward(m: Assembled, source: Tensor, wanted: Tensor, forced: bool) -> Tensor:
        _, state = m["reader"](m["embed"](source))
        said, word = [], torch.full((len(source), 1), 16)
        for i in range(wanted.shape[1]):
            out, state = m["writer"](m["embed"](word), state)
            said.append(m["head"](out))
            word = wanted[:, i : i + 1] if forced else said[-1].detach().argmax(-1)
        return torch.cat(said, 1)

    model = Assembled(forward, embed=embed, reader=reader, writer=writer, head=head)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        source = trial.randint(16, 32, 7)
        wanted = source.flip(1)
        optimizer.zero_grad()
        loss = token_loss(model(source, wanted, bool(trial.randint(2, 1))), wanted)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        trial.log(loss)


@healthy(learns=lambda run: run.final("reward") > run.first("reward") + 0.3, steps=500)
def deep_q_with_copies(trial: Trial) -> None:
    """DQN on a walk along a line: a memory, a target copied each 50 steps, Huber's loss, less and less chance."""
    net = mlp(8, 48, 2)
    old = copy.deepcopy(net)
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3)
    memory: list[tuple[int, int, float, int, float]] = []
    place, walked = 3, 0
    mean = 0.0
    trial.attach(net, optimizer)
    for step in range(trial.steps):
        for _ in range(8):
            with torch.no_grad():
                best = int(net(F.one_hot(torch.tensor(place), 8).float()).argmax())
            chance = float(torch.rand(1, generator=trial.generator)) < max(0.05, 1 - step / 300)
            action = int(trial.randint(2, 1)) if chance else best
            after = min(max(place + 2 * action - 1, 0), 7)
            walked += 1
            over = after == 7 or walked >= 20
            reward = 1.0 if after == 7 else -0.02
            mean = 0.97 * mean + 0.03 * reward
            memory.append((place, action, reward, after, float(after == 7)))
            place, walked = (int(trial.randint(4, 1)), 0) if over else (after, walked)
        rows = [memory[int(i)] for i in trial.randint(len(memory), 64)]
        here, took, paid, there, end = (torch.tensor(part) for part in zip(*rows, strict=True))
        with torch.no_grad():
            goal = paid + 0.95 * (1 - end) * old(F.one_hot(there, 8).float()).max(1).values
        loss = F.smooth_l1_loss(net(F.one_hot(here, 8).float())[torch.arange(64), took], goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            old.load_state_dict(net.state_dict())
        trial.tell(reward=mean)
        trial.log(loss, reward=5 * mean)


@healthy(learns=reaches("right", 0.7), steps=300)
def sentence_classifier(trial: Trial) -> None:
    """A transformer that sorts texts, as with BERT: warm-up, linear decay, dropout, weight decay, clipping."""
    model = Assembled(lambda m, x: m["head"](m["drop"](m["b"](m["a"](m["embed"](x)))[:, 0])),
                      embed=nn.Embedding(40, 32), a=Block(32, 4, causal=False),
                      b=Block(32, 4, causal=False), drop=nn.Dropout(0.1), head=nn.Linear(32, 3))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 30, max(0.0, (300 - s) / 270)))
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        y = trial.randint(3, 32)
        told = 1 + 3 * trial.randint(13, 32, 16) + y[:, None]
        x = torch.where(trial.randn(32, 16) > 0.7, told, trial.randint(40, 32, 16))
        x[:, 0] = 0
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        trial.log(loss, right=right(logits, y))


@healthy(learns=lambda run: run.final("apart") < 1.2, steps=400)
def critic_with_penalty(trial: Trial) -> None:
    """WGAN-GP: three steps of the critic for one of the generator, gradients of gradients, two watches."""
    maker, critic = mlp(4, 48, 48, 2), mlp(2, 48, 48, 1, act=lambda: nn.LeakyReLU(0.2))
    of_m, of_c = (torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.0, 0.9)) for m in (maker, critic))
    trial.attach(maker, of_m)
    trial.attach(critic, of_c)

    def real() -> Tensor:
        return torch.tensor([2.0, -1.0]) * (1 - 2 * trial.randint(2, 64, 1)) + 0.2 * trial.randn(64, 2)

    for _ in range(trial.steps):
        for _turn in range(3):
            x, fake = real(), maker(trial.randn(64, 4)).detach()
            between = (fake + torch.rand(64, 1, generator=trial.generator) * (x - fake)).requires_grad_(True)
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            wrong = critic(fake).mean() - critic(x).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()
            of_c.zero_grad()
            wrong.backward()
            of_c.step()
        fake = maker(trial.randn(64, 4))
        loss = -critic(fake).mean()
        of_m.zero_grad()
        loss.backward()
        of_m.step()
        trial.log(loss, apart=(fake.detach().norm(dim=1) - 5**0.5).abs().mean())


@healthy(learns=falls(0.8), steps=400)
def conditional_autoencoder(trial: Trial) -> None:
    """A VAE that is told the class: binary cross-entropy, added up over pixels, and the divergence."""

    def forward(m: Assembled, x: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = m["encoder"](torch.cat((x, y), 1)).chunk(2, -1)
        kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(-1).mean()
        return m["decoder"](torch.cat((mean + noise * (0.5 * logvar).exp(), y), 1)), kl

    model = Assembled(forward, encoder=mlp(74, 96, 12), decoder=mlp(16, 96, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial, 64)
        out, kl = model(x, F.one_hot(y, 10).float(), trial.randn(64, 6))
        return F.binary_cross_entropy_with_logits(out, x, reduction="sum") / 64 + kl

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.9), steps=400)
def flow_matching(trial: Trial) -> None:
    """Rectified flow on pictures: the velocity between noise and data is regressed, an average of the weights."""
    model = mlp(65, 128, 128, 64, act=nn.SiLU)
    mean = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial, 64)
        t, noise = torch.rand(64, 1, generator=trial.generator), trial.randn(64, 64)
        return F.mse_loss(model(torch.cat(((1 - t) * noise + t * x, t), 1)), x - noise)

    def after(_: int) -> Facts:
        with torch.no_grad():
            for a, b in zip(mean.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 0.01)
        return {}

    plain_loop(trial, model, optimizer, loss, after=after)
