"""Healthy workloads of common kinds, a third time: policies, games, two views, quantised, by heart."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.cases.policy import ACTIONS, STATES, hits, play
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import (
    Assembled,
    Facts,
    TextModel,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    right,
    token_loss,
)


def _follow(teacher: nn.Module, student: nn.Module, part: float) -> None:
    with torch.no_grad():
        for a, b in zip(teacher.parameters(), student.parameters(), strict=True):
            a.lerp_(b, part)


@healthy(learns=falls(0.9), steps=400)
def distribution_of_returns(trial: Trial) -> None:
    """C51: a distribution over 21 returns for each action, cross-entropy to what the target network says later."""
    net = mlp(6, 64, 3 * 21)
    old = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4, eps=1e-4)
    atoms = torch.linspace(-2, 2, 21)

    def loss(step: int) -> Tensor:
        if step % 40 == 0:
            old.load_state_dict(net.state_dict())
        state, then = trial.randn(48, 6), trial.randn(48, 6)
        action = trial.randint(3, 48)
        reward = state[torch.arange(48), action].tanh()
        with torch.no_grad():
            after = old(then).view(48, 3, 21).softmax(-1)
            after = after[torch.arange(48), (after * atoms).sum(-1).argmax(1)]
            place = ((reward[:, None] + 0.5 * atoms).clamp(-2, 2) + 2) / 0.2
            low, high = place.floor().long(), place.ceil().long()
            goal = torch.zeros(48, 21).scatter_add_(1, low, after * (high - place + (low == high).float()))
            goal = goal.scatter_add_(1, high, after * (place - low))
        logs = net(state).view(48, 3, 21)[torch.arange(48), action].log_softmax(-1)
        return -(goal * logs).sum(-1).mean()

    plain_loop(trial, net, optimizer, loss)


@healthy(learns=reaches("reward", 0.8), steps=400)
def groups_for_two_epochs(trial: Trial) -> None:
    """GRPO with two steps on each group, a clipped ratio and the k3 estimate of the divergence; logs its numbers."""
    policy = nn.Sequential(nn.Embedding(STATES, 32), mlp(32, 64, ACTIONS, act=nn.Tanh))
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    kept: list[Tensor] = []

    def loss(step: int) -> tuple[Tensor, Facts]:
        if step % 2 == 0:
            state = trial.randint(STATES, 16).repeat_interleave(8)
            with torch.no_grad():
                before = policy(state).log_softmax(-1)
            action = torch.multinomial(before.exp(), 1, generator=trial.generator)
            reward = hits(state, action[:, 0]).view(16, 8)
            gain = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
            kept[:] = state, action, before.gather(1, action)[:, 0], gain.flatten(), reward
        state, action, before, gain, reward = kept
        now = policy(state).log_softmax(-1).gather(1, action)[:, 0]
        base = reference(state).log_softmax(-1).gather(1, action)[:, 0]
        ratio = (now - before).exp()
        kl = ((base - now).exp() - (base - now) - 1).mean()
        gained = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        return 0.04 * kl - gained, {
            "reward": reward.mean(),
            "kl": kl,
            "clip_fraction": ((ratio - 1).abs() > 0.2).float().mean(),
        }

    plain_loop(trial, policy, optimizer, loss, tell=True)


@healthy(learns=falls(0.8), steps=400)
def critic_by_itself(trial: Trial) -> None:
    """A critic that is watched alone, while the policy beside it learns: the returns that it regresses get higher."""
    actor = nn.Sequential(nn.Embedding(STATES, 32), nn.Tanh(), nn.Linear(32, ACTIONS), nn.LogSoftmax(-1))
    critic = nn.Sequential(nn.Embedding(STATES, 32), nn.Tanh(), nn.Linear(32, 1))
    moves = torch.optim.Adam(actor.parameters(), lr=3e-3)
    judged = Assembled(lambda m, s: (m["actor"](s), None), actor=actor)

    def loss(_: int) -> Tensor:
        state = trial.randint(STATES, 64)
        action, reward = play(trial, judged, state)
        value = critic(state)[:, 0]
        moves.zero_grad()
        (-(reward - value.detach()) * actor(state)[torch.arange(64), action]).mean().backward()
        moves.step()
        return F.mse_loss(value, reward)

    plain_loop(trial, critic, torch.optim.Adam(critic.parameters(), lr=3e-3), loss)


@healthy(learns=falls(0.75), steps=400)
def decisions_as_text(trial: Trial) -> None:
    """A decision transformer: returns to go, states and actions in one sequence, GPT-like, AdamW with warm-up."""
    body = TextModel(width=32, depth=2, heads=2, length=48)
    optimizer = torch.optim.AdamW(body.parameters(), lr=2e-3, weight_decay=0.1)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 40))

    def loss(_: int) -> Tensor:
        state = trial.randint(12, 24, 12)
        good = torch.rand(24, 1, generator=trial.generator) < 0.7
        action = torch.where(good, state % 5, trial.randint(5, 24, 12))
        ahead = (action == state % 5).long().flip(1).cumsum(1).flip(1)
        row = torch.stack((ahead, 20 + state, 40 + action), 2).flatten(1)
        return token_loss(body(row)[:, 1::3], 40 + action)

    plain_loop(trial, body, optimizer, loss, schedule=warm)


@healthy(learns=falls(0.5, "apart"), steps=400)
def hinge_and_spectral_norm(trial: Trial) -> None:
    """A GAN with the hinge loss and spectral norms, Adam with betas 0 and 0.9, two watches."""
    made = nn.Sequential(mlp(16, 64, 64), nn.Sigmoid())
    judge = nn.Sequential(*(nn.utils.parametrizations.spectral_norm(m) if isinstance(m, nn.Linear) else m
                            for m in mlp(64, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))))  # fmt: skip
    for_made = torch.optim.Adam(made.parameters(), lr=2e-3, betas=(0.0, 0.9))
    for_judge = torch.optim.Adam(judge.parameters(), lr=4e-4, betas=(0.0, 0.9))
    trial.attach(judge, for_judge)
    trial.attach(made, for_made)
    for _ in range(trial.steps):
        x, _y = draw_digits(trial)
        loss = F.relu(1 - judge(x)).mean() + F.relu(1 + judge(made(trial.randn(32, 16)).detach())).mean()
        for_judge.zero_grad()
        loss.backward()
        for_judge.step()
        for_made.zero_grad()
        drawn = made(trial.randn(32, 16))
        (-judge(drawn).mean()).backward()
        for_made.step()
        trial.log(loss, apart=(drawn.mean(0) - x.mean(0)).detach().abs().mean())


@healthy(learns=falls(0.6), steps=400)
def molecules(trial: Trial) -> None:
    """A graph isomorphism network: graphs of up to nine atoms, sums over neighbours, a number of each graph."""

    def forward(m: Assembled, kind: Tensor, edges: Tensor) -> Tensor:
        h = m["atoms"](kind)
        for name in ("one", "two", "three"):
            h = m[name](h + edges @ h)
        return m["head"]((h * (kind > 0)[..., None]).sum(1))[:, 0]

    parts = {name: nn.Sequential(mlp(24, 48, 24), nn.LayerNorm(24)) for name in ("one", "two", "three")}
    model = Assembled(forward, atoms=nn.Embedding(5, 24), **parts, head=mlp(24, 24, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        kind = trial.randint(5, 32, 9)
        some = (torch.rand(32, 9, 9, generator=trial.generator) < 0.25).float().triu(1)
        edges = (some + some.transpose(1, 2)) * (kind > 0)[:, None] * (kind > 0)[..., None]
        goal = (edges.sum((1, 2)) - 8) / 5 + (kind == 2).sum(1) / 2
        return F.l1_loss(model(kind, edges), goal)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.7), steps=400)
def velocity_by_a_unet(trial: Trial) -> None:
    """Diffusion with the velocity as target, a small U-Net, weights by signal to noise, an average kept aside."""

    def forward(m: Assembled, x: Tensor, t: Tensor) -> Tensor:
        at = m["time"](torch.cat(((6 * t).sin(), (6 * t).cos()), 1))[:, :, None, None]
        first = m["down"](x)
        inner = m["inner"](first + at)
        return m["up"](torch.cat((first, inner), 1))

    model = Assembled(
        forward, time=mlp(2, 16, 16, act=nn.SiLU), down=nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.SiLU()),
        inner=nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.SiLU(),
                            nn.Upsample(scale_factor=2), nn.Conv2d(32, 16, 3, padding=1), nn.SiLU()),
        up=nn.Conv2d(32, 1, 3, padding=1),
    )  # fmt: skip
    kept = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x = 2 * draw_images(trial)[0] - 1
        t = torch.rand(32, 1, generator=trial.generator)
        signal, noise = (t * math.pi / 2).cos()[..., None, None], (t * math.pi / 2).sin()[..., None, None]
        drawn = trial.randn(32, 1, 8, 8)
        error = (model(signal * x + noise * drawn, t) - (signal * drawn - noise * x)).square().mean((1, 2, 3))
        return (error * (1 / (1 + (signal / noise.clamp(min=0.05)).flatten())).clamp(min=0.2)).mean()

    def keep(_: int) -> Facts:
        _follow(kept, model, 0.01)
        return {}

    plain_loop(trial, model, optimizer, loss, after=keep)


class _Scaled(nn.Module):
    """A ConvNeXt block: its sum begins at a millionth, and it is left out now and then."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.feed, self.scale = mlp(width, 4 * width, width, act=nn.GELU), nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand(()) < 0.1:
            return x
        y = self.scale * self.feed(self.norm(self.near(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


@healthy(learns=reaches("right", 0.8), steps=400)
def scaled_blocks(trial: Trial) -> None:
    """A small ConvNeXt: layers scaled by a millionth at first, stochastic depth, AdamW with a warm-up, cosine."""
    model = nn.Sequential(nn.Conv2d(1, 24, 2, 2), *(_Scaled(24) for _ in range(4)), nn.Flatten(), nn.Linear(384, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * s / 400))
    )

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_images(trial)
        logits = model(x)
        return F.cross_entropy(logits, y, label_smoothing=0.1), {"right": right(logits, y)}

    plain_loop(trial, model, optimizer, loss, schedule=rate)


@healthy(learns=falls(0.8), steps=400)
def divergence_in_cycles(trial: Trial) -> None:
    """A VAE of texts whose divergence is weighted from 0 to 1 in four cycles: the loss goes up and down with it."""
    body = nn.GRU(16, 48, batch_first=True)
    model = Assembled(
        lambda m, x, noise: m.both(x, noise), embed=nn.Embedding(128, 16), reader=body, posterior=nn.Linear(48, 16),
        begin=nn.Linear(8, 48), writer=nn.GRU(16, 48, batch_first=True), head=nn.Linear(48, 128),
    )  # fmt: skip

    def both(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = model["posterior"](model["reader"](model["embed"](x))[1][0]).chunk(2, -1)
        state = model["begin"](mean + (0.5 * log_var).exp() * noise).tanh()[None]
        out = model["head"](model["writer"](model["embed"](x[:, :-1]), state)[0])
        return out, 0.5 * (log_var.exp() + mean.square() - 1 - log_var).sum(1).mean()

    model.both = both  # type: ignore[assignment]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, _y = draw_text(trial, 16, 16)
        out, divergence = model(x, trial.randn(16, 8))
        return token_loss(out, x[:, 1:]) + min(1.0, (step % 100) / 50) * divergence / 15

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8), steps=400)
def queue_of_keys(trial: Trial) -> None:
    """MoCo: a queue of 256 keys of earlier batches, a slow copy makes them, temperature 0.2, SGD with momentum."""
    query = mlp(64, 96, 24)
    slow = copy.deepcopy(query).requires_grad_(False)
    optimizer = torch.optim.SGD(query.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    queue = F.normalize(trial.randn(256, 24), dim=1)

    def loss(_: int) -> Tensor:
        nonlocal queue
        x, _y = draw_digits(trial)
        q = F.normalize(query(x + 0.1 * trial.randn(32, 64)), dim=1)
        with torch.no_grad():
            k = F.normalize(slow(x + 0.1 * trial.randn(32, 64)), dim=1)
        logits = torch.cat(((q * k).sum(1, keepdim=True), q @ queue.T), 1) / 0.2
        queue = torch.cat((k, queue))[:256]
        return F.cross_entropy(logits, torch.zeros(32, dtype=torch.long))

    def follow(_: int) -> Facts:
        _follow(slow, query, 0.02)
        return {}

    plain_loop(trial, query, optimizer, loss, after=follow)


@healthy(learns=lambda run: run.final("spread") > 0.2 and run.final() < run.first(), steps=400)
def centred_self_distillation(trial: Trial) -> None:
    """DINO: a student says what a slow teacher says, whose outputs are centred and sharpened."""
    student = mlp(64, 96, 32, act=nn.GELU)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.04)
    centre = torch.zeros(32)

    def loss(_: int) -> tuple[Tensor, Facts]:
        nonlocal centre
        x, _y = draw_digits(trial)
        with torch.no_grad():
            said = teacher(x + 0.05 * trial.randn(32, 64))
            goal = ((said - centre) / 0.04).softmax(-1)
            centre = 0.9 * centre + 0.1 * said.mean(0)
        logs = (student(x + 0.2 * trial.randn(32, 64)) / 0.1).log_softmax(-1)
        return -(goal * logs).sum(-1).mean(), {"spread": -(goal.mean(0) * (goal.mean(0) + 1e-9).log()).sum()}

    def follow(_: int) -> Facts:
        _follow(teacher, student, 0.01)
        return {}

    plain_loop(trial, student, optimizer, loss, after=follow)
