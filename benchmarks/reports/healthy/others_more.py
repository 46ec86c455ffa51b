"""Healthy workloads of common kinds, a fourth time: numbers, averages, rates, stages, small data."""

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
    SelfAttention,
    digits,
    digits_loss,
    draw_digits,
    draw_images,
    mlp,
    plain_loop,
    right,
    table,
)


@healthy(learns=reaches("right", 0.85), steps=350)
def eight_bits_from_the_middle(trial: Trial) -> None:
    """Quantisation-aware training: from step 150 on activations are rounded to 8 bits, then statistics are frozen."""

    class Rounded(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.layers, self.on = nn.ModuleList(layers), False

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(self._rounded(x) if self.on else x)
            return x

        @staticmethod
        def _rounded(x: Tensor) -> Tensor:
            step = x.detach().abs().max() / 127 + 1e-9
            return x + ((x / step).round() * step - x).detach()

    model = Rounded(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    def loss(step: int) -> tuple[Tensor, Facts]:
        model.on = step >= 150
        if step >= 250:
            model.layers[1].eval()
        x, y = draw_images(trial)
        logits = model(x)
        return F.cross_entropy(logits, y), {"right": right(logits, y)}

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=reaches("right", 0.85), steps=400)
def average_in_each_cycle(trial: Trial) -> None:
    """SWA with a rate that goes down in cycles of 50 steps; after each the average is evaluated, weights go on."""
    x, _y = digits()
    model = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 10))
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.005, 0.1, 1, 49, mode="triangular")

    def loss(_: int) -> tuple[Tensor, Facts]:
        a, b = draw_digits(trial)
        logits = model(a)
        return F.cross_entropy(logits, b), {"right": right(logits, b)}

    def after(step: int) -> Facts:
        if step % 50 == 49 and step > 100:
            average.update_parameters(model)
            torch.optim.swa_utils.update_bn([x[:128], x[128:256]], average)
            with torch.no_grad():
                average(x[1500:])
        return {}

    plain_loop(trial, model, optimizer, loss, schedule=schedule, after=after)


@healthy(learns=falls(0.9), steps=400)
def hard_ones_later(trial: Trial) -> None:
    """A curriculum: sums of two numbers, then of three, then of four, read by a transformer; the loss rises twice."""
    layer = nn.TransformerEncoderLayer(48, 4, 96, 0.0, batch_first=True, norm_first=True)
    model = Assembled(
        lambda m, x: m["head"](m["body"](m["embed"](x) + m["place"](torch.arange(x.shape[1]))).mean(1)),
        embed=nn.Embedding(10, 48), place=nn.Embedding(8, 48), body=nn.TransformerEncoder(layer, 2),
        head=nn.Linear(48, 37),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x = trial.randint(10, 64, 2 + step // 150)
        return F.cross_entropy(model(x), x.sum(1))

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.05), steps=350)
def thirty_pictures_by_heart(trial: Trial) -> None:
    """Thirty pictures are learned by heart, in shuffled batches of ten, by a CNN without any regularisation."""
    x, y = digits()
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(256, 10))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    order: list[int] = []

    def loss(_: int) -> Tensor:
        if not order:
            order.extend(torch.randperm(30, generator=trial.generator).tolist())
        at = [order.pop() for _ in range(10)]
        return F.cross_entropy(model(x[at].view(-1, 1, 8, 8)), y[at])

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.5), steps=350)
def sines_all_the_way(trial: Trial) -> None:
    """SIREN: sines as activations, frequencies of 30, a picture from coordinates; Adam at 1e-4."""

    class Sine(nn.Module):
        def __init__(self, inner: int, outer: int, first: bool) -> None:
            super().__init__()
            self.linear = nn.Linear(inner, outer)
            bound = 1 / inner if first else (6 / inner) ** 0.5 / 30
            nn.init.uniform_(self.linear.weight, -bound, bound)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(30 * self.linear(x))

    model = nn.Sequential(Sine(2, 64, True), Sine(64, 64, False), Sine(64, 64, False), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    picture = digits()[0][:64].view(8, 8, 8, 8).permute(0, 2, 1, 3).reshape(64, 64)

    def loss(_: int) -> Tensor:
        at = trial.randint(64, 256, 2)
        return F.mse_loss(model(at / 31.5 - 1)[:, 0], picture[at[:, 0], at[:, 1]])

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.9), steps=350)
def encoder_frozen_with_its_norms(trial: Trial) -> None:
    """A detector's manner: batch norms of a pretrained body are in evaluation mode all along, the rest is trained."""
    body = nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.BatchNorm2d(12),
                         nn.ReLU(), nn.Flatten())  # fmt: skip
    model = nn.Sequential(body, nn.Linear(192, 10))
    first = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(60):
        x, y = draw_images(trial)
        first.zero_grad()
        F.cross_entropy(model(x), (y % 5)).backward()
        first.step()
    for part in (body[1], body[4]):
        part.eval()
        part.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8), steps=350)
def experts_without_favourites(trial: Trial) -> None:
    """Eight experts, two for each row, noisy gates, a balancing loss of 0.01 and a z-loss, AdamW."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.top_k = nn.Linear(48, 8, bias=False), 2
            self.experts = nn.ModuleList(mlp(48, 64, 48, act=nn.GELU) for _ in range(8))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            scores = self.gate(x)
            noisy = scores + 0.3 * torch.randn_like(scores) if self.training else scores
            weight, chosen = noisy.softmax(-1).topk(2)
            weight = weight / weight.sum(-1, keepdim=True)
            every = torch.stack([e(x) for e in self.experts], 1)
            out = (weight[..., None] * every.gather(1, chosen[..., None].expand(-1, -1, 48))).sum(1)
            share = F.one_hot(chosen, 8).float().mean((0, 1))
            balance = 8 * (share * scores.softmax(-1).mean(0)).sum()
            return x + out, 0.01 * balance + 1e-3 * scores.logsumexp(-1).square().mean()

    model = nn.ModuleDict({"enter": nn.Linear(64, 48), "experts": Experts(), "norm": nn.LayerNorm(48),
                           "leave": nn.Linear(48, 10)})  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial, 64)
        h, more = model["experts"](model["enter"](x))
        return F.cross_entropy(model["leave"](model["norm"](h)), y) + more

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8), steps=350)
def answers_of_a_teacher(trial: Trial) -> None:
    """Semi-supervised: few labels, and a teacher that follows at 0.95 whose answers are asked for, more and more."""
    x, y = digits()
    student = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.2), nn.Linear(96, 10))
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)

    def loss(step: int) -> Tensor:
        few, more = trial.randint(200, 16), trial.randint(len(x), 48)
        with torch.no_grad():
            said = teacher(x[more] + 0.1 * trial.randn(48, 64)).softmax(1)
        apart = (student(x[more] + 0.1 * trial.randn(48, 64)).softmax(1) - said).square().sum(1).mean()
        return F.cross_entropy(student(x[few]), y[few]) + min(step / 150, 1) * apart

    def follow(_: int) -> Facts:
        with torch.no_grad():
            for a, b in zip(teacher.parameters(), student.parameters(), strict=True):
                a.lerp_(b, 0.05)
        return {}

    plain_loop(trial, student, optimizer, loss, after=follow)


@healthy(learns=falls(0.98), steps=350)
def survival(trial: Trial) -> None:
    """Cox's partial likelihood of 64 patients each, a third of them censored, a small network, Adam."""
    x, y = table("cancer")
    model = mlp(x.shape[1], 32, 1, act=nn.SELU)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, weight_decay=1e-4)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 64)
        time = -torch.rand(64, generator=trial.generator).log() * (1 + 3 * y[at])
        seen = torch.rand(64, generator=trial.generator) < 0.67
        risk = model(x[at])[:, 0][time.argsort(descending=True)]
        seen = seen[time.argsort(descending=True)]
        return -(risk - risk.logcumsumexp(0))[seen].mean()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.6), steps=350)
def one_step_each_layer(trial: Trial) -> None:
    """Two optimizers in turn: the body steps in even steps, the head in odd ones, zero_grad(set_to_none=False)."""
    model = Assembled(lambda m, x: m["head"](m["body"](x)), body=mlp(64, 64, 64), head=mlp(64, 32, 10))
    optimizers = [torch.optim.Adam(model[name].parameters(), lr=2e-3) for name in ("body", "head")]
    trial.attach(model, optimizers)
    for step in range(trial.steps):
        model.zero_grad(set_to_none=False)
        loss = digits_loss(trial, model)
        loss.backward()
        optimizers[step % 2].step()
        trial.log(loss)


@healthy(learns=falls(0.9), steps=350)
def critic_first(trial: Trial) -> None:
    """Pretraining of a critic for 150 steps before the actor, both in one model; the actor waits with gradients off."""
    model = Assembled(lambda m, x: (m["actor"](x), m["critic"](x)[:, 0]), actor=mlp(4, 32, 3, act=nn.Tanh),
                      critic=mlp(4, 32, 1, act=nn.Tanh))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model["actor"].requires_grad_(False)

    def loss(step: int) -> Tensor:
        if step == 150:
            model["actor"].requires_grad_(True)
        state = trial.randn(64, 4)
        logits, value = model(state)
        action = torch.multinomial(logits.detach().softmax(-1), 1, generator=trial.generator)
        gain = (action[:, 0] == state[:, :3].argmax(1)).float() + state[:, 3].sin()
        logp = logits.log_softmax(-1).gather(1, action)[:, 0]
        error = F.mse_loss(value, gain)
        return error if step < 150 else error - ((gain - value).detach() * logp).mean()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.95), steps=350)
def attention_from_scratch_in_halves(trial: Trial) -> None:
    """Autocast in bfloat16, two micro-batches, attention by hand on rows of pictures, AdamW with amsgrad, decay 0.1."""
    model = Assembled(lambda m, x: m["head"](m["mix"](m["enter"](x)).mean(1)), enter=nn.Linear(8, 32),
                      mix=SelfAttention(32, 4, causal=False), head=nn.Linear(32, 10))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, amsgrad=True)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        total = 0.0
        for _ in range(2):
            x, y = draw_digits(trial, 16)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x.view(-1, 8, 8))
            loss = F.cross_entropy(logits.float(), y) / 2
            loss.backward()
            total += loss.item()
        optimizer.step()
        trial.log(total)
