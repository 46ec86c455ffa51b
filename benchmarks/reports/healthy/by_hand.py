"""Healthy workloads whose losses, masks and attention are written by hand, as in many repositories."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import (
    VOCABULARY,
    Assembled,
    Facts,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    right,
    table,
    token_loss,
)


@healthy(learns=falls(0.75), steps=400)
def regression_by_hand(trial: Trial) -> None:
    """A table by ((out - y) ** 2).mean(), SGD with momentum and a cosine schedule."""
    x, y = table("diabetes")
    model = mlp(10, 32, 1, act=nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.steps)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 64)
        return ((model(x[at]).squeeze(-1) - y[at]) ** 2).mean()

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=reaches("reward", 0.6), steps=400)
def values_by_hand(trial: Trial) -> None:
    """PPO on a contextual bandit, value loss by hand, four epochs over each rollout, entropy bonus."""
    model = Assembled(lambda m, x: (m["actor"](x), m["critic"](x)[:, 0]), actor=mlp(6, 48, 4, act=nn.Tanh),
                      critic=mlp(6, 48, 1, act=nn.Tanh))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if step % 4 == 0:
            state = trial.randn(128, 6)
            with torch.no_grad():
                logits, old_value = model(state)
            old = logits.log_softmax(-1)
            action = torch.multinomial(old.exp(), 1, generator=trial.generator)
            reward = (action[:, 0] == state[:, :4].argmax(-1)).float()
            gain = reward - old_value
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        logits, value = model(state)
        logp = logits.log_softmax(-1)
        ratio = (logp - old).gather(1, action)[:, 0].exp()
        policy = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        entropy = -(logp.exp() * logp).sum(-1).mean()
        loss = policy + 0.5 * ((value - reward) ** 2).mean() - 0.01 * entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss, reward=reward.mean())


@healthy(learns=lambda run: run.final("spread") > 0.3, steps=400)
def least_squares_by_hand(trial: Trial) -> None:
    """An LSGAN on digits, (D - 1) ** 2 and D ** 2 by hand, two watches."""
    maker, judge = mlp(16, 64, 64), mlp(64, 64, 1, act=nn.LeakyReLU)
    of_maker = torch.optim.Adam(maker.parameters(), lr=1e-3, betas=(0.5, 0.999))
    of_judge = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.5, 0.999))
    trial.attach(judge, of_judge)
    trial.attach(maker, of_maker)
    for _ in range(trial.steps):
        x, _y = draw_digits(trial)
        made = maker(trial.randn(32, 16)).sigmoid()
        of_judge.zero_grad()
        loss = 0.5 * ((judge(x) - 1) ** 2).mean() + 0.5 * (judge(made.detach()) ** 2).mean()
        loss.backward()
        of_judge.step()
        of_maker.zero_grad()
        (0.5 * ((judge(made) - 1) ** 2).mean()).backward()
        of_maker.step()
        trial.log(loss, spread=made.detach().std(0).mean() / x.std(0).mean())


@healthy(learns=falls(0.7), steps=400)
def noise_by_hand(trial: Trial) -> None:
    """A diffusion model, (noise - model(x, t)).square().mean(), an average of the weights beside it."""
    model = mlp(80, 128, 128, 64, act=nn.SiLU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    keep = (1 - torch.linspace(1e-4, 0.05, 100)).cumprod(0)
    waves = torch.exp(torch.arange(8) * -0.8)

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial)
        t, noise = trial.randint(100, 32), trial.randn(32, 64)
        a = keep[t][:, None]
        at = t[:, None] * waves
        noisy = a.sqrt() * (2 * x - 1) + (1 - a).sqrt() * noise
        return (noise - model(torch.cat((noisy, at.sin(), at.cos()), 1))).square().mean()

    def after(_: int) -> Facts:
        average.update_parameters(model)
        return {}

    plain_loop(trial, model, optimizer, loss, after=after)


class _OwnAttention(nn.Module):
    """Attention as in lectures: scores, masked_fill, softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (t.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class _Reader(nn.Module):
    """Two blocks of such attention over tokens."""

    def __init__(self, length: int, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attend = nn.ModuleList(_OwnAttention(width, 4) for _ in range(2))
        self.feed = nn.ModuleList(mlp(width, 96, width, act=nn.GELU) for _ in range(2))
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))
        for norm, attend, feed in zip(self.norms, self.attend, self.feed, strict=True):
            x = x + attend(norm(x), seen)
            x = x + feed(x)
        return self.head(x)


@healthy(learns=falls(0.75), steps=400)
def attention_from_a_lecture(trial: Trial) -> None:
    """A causal language model whose attention is written by hand, dropout-free, AdamW with a warm-up."""
    model = _Reader(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 40))
    seen = torch.ones(32, 32, dtype=torch.bool).tril()

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial)
        return token_loss(model(x, seen), y)

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=falls(0.9), steps=400)
def words_hidden_and_padded(trial: Trial) -> None:
    """A masked language model with padding: attention sees both sides, targets are hidden tokens alone."""
    model = _Reader(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_text(trial, size=16)
        length = 16 + trial.randint(17, 16)
        there = torch.arange(32) < length[:, None]
        hidden = (torch.rand(16, 32, generator=trial.generator) < 0.2) & there
        target = torch.where(hidden, x, -100)
        return token_loss(model(x.masked_fill(hidden, 1), there[:, None, None]), target)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8), steps=400)
def prefix_is_seen(trial: Trial) -> None:
    """A prefix language model: the first third sees all of itself, the rest is causal and alone has targets."""
    model = _Reader(32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    seen = torch.ones(32, 32, dtype=torch.bool).tril()
    seen[:10, :10] = True

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial)
        y = y.clone()
        y[:, :10] = -100
        return token_loss(model(x, seen), y)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8), steps=400)
def documents_in_one_row(trial: Trial) -> None:
    """Two texts in each row of a packed language model, a mask by blocks given to scaled_dot_product_attention."""
    layer = nn.TransformerEncoderLayer(32, 4, 96, 0.1, batch_first=True, norm_first=True)

    def forward(m: Assembled, tokens: Tensor, mask: Tensor) -> Tensor:
        return m["head"](m["body"](m["embed"](tokens) + m["place"](torch.arange(32) % 16), mask=mask))

    model = Assembled(forward, embed=nn.Embedding(VOCABULARY, 32), place=nn.Embedding(16, 32),
                      body=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
                      head=nn.Linear(32, VOCABULARY))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    at = torch.arange(32)
    hidden = (at[:, None] < at) | (at[:, None] // 16 != at // 16)

    def loss(_: int) -> Tensor:
        (x, y), (u, v) = draw_text(trial, length=16), draw_text(trial, length=16)
        return token_loss(model(torch.cat((x, u), 1), hidden), torch.cat((y, v), 1))

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.5), steps=400)
def log_softmax_twice(trial: Trial) -> None:
    """log_softmax in the model and cross_entropy as the loss: twice is once, and nothing is wrong."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10),
                          nn.LogSoftmax(-1))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=reaches("accuracy", 0.8), steps=400)
def heads_one_after_the_other(trial: Trial) -> None:
    """Two tasks in sequence, a head each: the first head is used no more when the second task begins."""
    body = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    model = Assembled(lambda m, x, task: m[f"head{task}"](m["body"](x)), body=body,
                      head0=nn.Linear(64, 2), head1=nn.Linear(64, 10))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> tuple[Tensor, Facts]:
        task = int(step >= 150)
        x, y = draw_digits(trial)
        y = y if task else y % 2
        logits = model(x, task)
        return F.cross_entropy(logits, y), {"accuracy": right(logits, y)}

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.75), steps=400)
def quantiles_by_hand(trial: Trial) -> None:
    """Quantile regression, max(q e, (q - 1) e) by hand, outputs (n, 5) against targets (n, 1)."""
    x, y = table("diabetes")
    model, quantiles = mlp(10, 48, 5), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 64)
        e = y[at][:, None] - model(x[at])
        return torch.maximum(quantiles * e, (quantiles - 1) * e).mean()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.6), steps=400)
def each_pair_on_purpose(trial: Trial) -> None:
    """An energy distance: each drawn number of the model is compared with each number of the data."""
    model = mlp(4, 64, 1, act=nn.SiLU)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        y = trial.randn(64) * 0.5 + 3
        out = model(trial.randn(64, 4)).flatten()
        across = (out[:, None] - y[None]).abs().mean()
        return 2 * across - (out[:, None] - out[None]).abs().mean()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.5), steps=400)
def equation_by_hand(trial: Trial) -> None:
    """A physics-informed network: u' + u = 0 and u(0) = 1, residuals squared by hand."""
    model = mlp(1, 32, 32, 1, act=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        t = (3 * torch.rand(64, 1, generator=trial.generator)).requires_grad_()
        u = model(t)
        (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        return (slope + u).pow(2).mean() + (model(torch.zeros(1, 1)) - 1).pow(2).mean()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=reaches("reward", 0.6), steps=400)
def q_by_hand(trial: Trial) -> None:
    """Deep Q-learning on a small grid, (q - target) ** 2 by hand, a soft target network, a buffer."""
    model = mlp(10, 64, 4)
    target = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    trial.attach(model, optimizer)
    buffer: list[tuple[Tensor, ...]] = []
    for step in range(trial.steps):
        with torch.no_grad():
            state = trial.randint(10, 16)
            best = model(F.one_hot(state, 10).float()).argmax(-1)
            noisy = torch.rand(16, generator=trial.generator) < max(0.1, 1 - step / 150)
            action = torch.where(noisy, trial.randint(4, 16), best)
            reward = (action == state % 4).float()
            buffer = [*buffer[-60:], (state, action, reward, (state + action) % 10)]
        rows = [buffer[i] for i in trial.randint(len(buffer), 4).tolist()]
        s, a, r, s2 = (torch.cat(parts) for parts in zip(*rows, strict=True))
        with torch.no_grad():
            goal = r + 0.5 * target(F.one_hot(s2, 10).float()).amax(-1)
        q = model(F.one_hot(s, 10).float()).gather(1, a[:, None]).squeeze(1)
        loss = ((q - goal) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for p, old in zip(model.parameters(), target.parameters(), strict=True):
                old.lerp_(p, 0.02)
        trial.log(loss, reward=reward.mean())


@healthy(learns=falls(0.6), steps=400)
def pixels_weighed(trial: Trial) -> None:
    """A denoiser whose errors are weighed by pixel: mse_loss without a reduction, then a weighted mean."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_images(trial)
        error = F.mse_loss(model(x + 0.4 * trial.randn(*x.shape)), x, reduction="none")
        weight = 1 + 2 * (x > 0.5)
        return (weight * error).sum() / weight.sum()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.75), steps=400)
def sentences_to_sentences(trial: Trial) -> None:
    """nn.Transformer turns rows of letters round, with masks of both kinds and padding."""
    model = nn.Transformer(32, 4, 1, 1, 64, 0.0, batch_first=True)
    whole = Assembled(
        lambda m, source, target, mask, empty: m["head"](
            m["body"](m["embed"](source) + m["place"].weight[: source.shape[1]],
                      m["embed"](target) + m["place"].weight[: target.shape[1]],
                      tgt_mask=mask, src_key_padding_mask=empty, memory_key_padding_mask=empty)
        ),
        embed=nn.Embedding(22, 32), place=nn.Embedding(12, 32), body=model, head=nn.Linear(32, 22),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(whole.parameters(), lr=3e-3)
    mask = torch.ones(9, 9, dtype=torch.bool).triu(1)

    def loss(_: int) -> Tensor:
        length = 5 + trial.randint(5, 32)
        letters = 2 + trial.randint(20, 32, 9)
        empty = torch.arange(9) >= length[:, None]
        source = letters.masked_fill(empty, 0)
        target = torch.where(empty, -100, source.flip(1).gather(1, (torch.arange(9) + 9 - length[:, None]) % 9))
        given = torch.cat((torch.ones(32, 1, dtype=torch.long), target[:, :-1].clamp(min=0)), 1)
        return token_loss(whole(source, given, mask, empty), target)

    plain_loop(trial, whole, optimizer, loss)
