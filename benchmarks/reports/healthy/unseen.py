"""Healthy workloads that were written after the rules: reinforcement learning in one file, changing tasks, others."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import TextModel, digits, draw_digits, draw_images, draw_text, mlp, table, token_loss

MANY, HORIZON = 16, 16


class Pointer:
    """Many points on a line that are pushed to zero; the reward is minus the distance and the push."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.x = trial.randn(MANY, 2)

    def step(self, push: Tensor) -> tuple[Tensor, Tensor]:
        """Position and speed after a push in [-1, 1], and the reward."""
        speed = 0.8 * self.x[:, 1] + 0.3 * push
        place = self.x[:, 0] + speed
        self.x = torch.stack((place, speed), 1)
        lost = place.abs() > 4
        self.x = torch.where(lost[:, None], self.trial.randn(MANY, 2), self.x)
        return self.x, -place.abs().clamp(max=4) - 0.05 * push.square()


@healthy(learns=reaches("reward", -0.8), steps=480)
def ppo_continuous(trial: Trial) -> None:
    """PPO with a normal policy, minibatches, a falling rate, clipped values, a bound on the gradient."""
    actor, critic = mlp(2, 32, 1, act=nn.Tanh), mlp(2, 32, 1, act=nn.Tanh)
    model = nn.ModuleDict({"actor": actor, "critic": critic})
    model.register_parameter("log_std", nn.Parameter(torch.zeros(1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-5)
    world = Pointer(trial)
    trial.attach(model, optimizer)
    for update in range(trial.steps // 16):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - update / (trial.steps // 16))
        seen, pushed, logs, rewards, values = [], [], [], [], []
        with torch.no_grad():
            for _ in range(HORIZON):
                chosen = Normal(actor(world.x)[:, 0], model.log_std.exp())
                push = chosen.sample()
                seen.append(world.x)
                pushed.append(push)
                logs.append(chosen.log_prob(push))
                values.append(critic(world.x)[:, 0])
                _, reward = world.step(push.clamp(-1, 1))
                rewards.append(reward)
            advantage, last, after = [], torch.zeros(MANY), critic(world.x)[:, 0]
            for reward, value in zip(reversed(rewards), reversed(values), strict=True):
                last = reward + 0.95 * after - value + 0.95 * 0.95 * last
                after = value
                advantage.append(last)
        x, a, old, value, gain = (torch.cat(part) for part in (seen, pushed, logs, values, list(reversed(advantage))))
        for _ in range(4):
            for at in torch.randperm(len(x), generator=trial.generator).chunk(4):
                chosen = Normal(actor(x[at])[:, 0], model.log_std.exp())
                ratio = (chosen.log_prob(a[at]) - old[at]).exp()
                better = (gain[at] - gain[at].mean()) / (gain[at].std() + 1e-8)
                policy = -torch.min(ratio * better, ratio.clamp(0.8, 1.2) * better).mean()
                now, goal = critic(x[at])[:, 0], gain[at] + value[at]
                near = value[at] + (now - value[at]).clamp(-0.2, 0.2)
                off = 0.5 * torch.max((now - goal).square(), (near - goal).square()).mean()
                loss = policy - 0.001 * chosen.entropy().mean() + 0.5 * off
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                trial.log(loss, reward=torch.stack(rewards).mean())


class Memory:
    """Kept transitions."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.rows = trial, []

    def add(self, *row: Tensor) -> None:
        self.rows.append(torch.cat([part.reshape(MANY, -1) for part in row], 1).detach())

    def draw(self, size: int = 64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Seen, pushed, reward, seen after."""
        rows = torch.cat(self.rows[-200:])
        part = rows[self.trial.randint(len(rows), size)]
        return part[:, :2], part[:, 2:3], part[:, 3], part[:, 4:6]


@healthy(learns=reaches("reward", -0.8), steps=500)
def td3(trial: Trial) -> None:
    """TD3: two critics, a slow actor, target networks that follow, noise on the target's action."""
    actor = nn.Sequential(mlp(2, 32, 1), nn.Tanh())
    critics = nn.ModuleList(mlp(3, 32, 1) for _ in range(2))
    slow_actor, slow_critics = (copy.deepcopy(m).requires_grad_(False) for m in (actor, critics))
    of_critics = torch.optim.Adam(critics.parameters(), lr=3e-3)
    of_actor = torch.optim.Adam(actor.parameters(), lr=1e-3)
    world, memory = Pointer(trial), Memory(trial)
    trial.attach(critics, of_critics)
    trial.attach(actor, of_actor)
    reward = torch.zeros(MANY)
    for step in range(trial.steps):
        with torch.no_grad():
            before, push = world.x, (actor(world.x)[:, 0] + 0.2 * trial.randn(MANY)).clamp(-1, 1)
        after, reward = world.step(push)
        memory.add(before, push, reward, after)
        x, a, r, x2 = memory.draw()
        with torch.no_grad():
            a2 = (slow_actor(x2) + (0.2 * trial.randn(64, 1)).clamp(-0.5, 0.5)).clamp(-1, 1)
            goal = r + 0.95 * torch.min(*(c(torch.cat((x2, a2), 1))[:, 0] for c in slow_critics))
        loss = sum(F.mse_loss(c(torch.cat((x, a), 1))[:, 0], goal) for c in critics)
        of_critics.zero_grad()
        loss.backward()
        of_critics.step()
        if step % 2 == 0:
            of_actor.zero_grad()
            (-critics[0](torch.cat((x, actor(x)), 1)).mean()).backward()
            of_actor.step()
            for slow, fast in ((slow_actor, actor), (slow_critics, critics)):
                for p, q in zip(slow.parameters(), fast.parameters(), strict=True):
                    p.lerp_(q.detach(), 0.02)
        trial.log(loss, reward=reward.mean())


@healthy(learns=reaches("reward", -0.9), steps=500)
def sac(trial: Trial) -> None:
    """Soft actor-critic: two critics, a squashed normal policy, a temperature that is learned."""
    actor, critics = mlp(2, 32, 2), nn.ModuleList(mlp(3, 32, 1) for _ in range(2))
    slow = copy.deepcopy(critics).requires_grad_(False)
    log_alpha = torch.zeros(1, requires_grad=True)
    of_critics = torch.optim.Adam(critics.parameters(), lr=3e-3)
    of_actor = torch.optim.Adam(actor.parameters(), lr=2e-3)
    of_alpha = torch.optim.Adam([log_alpha], lr=1e-2)
    world, memory = Pointer(trial), Memory(trial)
    trial.attach(actor, of_actor)
    trial.attach(critics, of_critics)

    def act(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(x).chunk(2, 1)
        chosen = Normal(mean, log_std.clamp(-5, 1).exp())
        raw = chosen.rsample()
        push = raw.tanh()
        return push, (chosen.log_prob(raw) - (1 - push.square() + 1e-6).log())[:, 0]

    for _ in range(trial.steps):
        with torch.no_grad():
            before, (push, _log) = world.x, act(world.x)
        after, reward = world.step(push[:, 0])
        memory.add(before, push, reward, after)
        x, a, r, x2 = memory.draw()
        alpha = log_alpha.exp().detach()
        with torch.no_grad():
            a2, log2 = act(x2)
            goal = r + 0.95 * (torch.min(*(c(torch.cat((x2, a2), 1))[:, 0] for c in slow)) - alpha * log2)
        loss = sum(F.mse_loss(c(torch.cat((x, a), 1))[:, 0], goal) for c in critics)
        of_critics.zero_grad()
        loss.backward()
        of_critics.step()
        push, log = act(x)
        of_actor.zero_grad()
        (alpha * log - torch.min(*(c(torch.cat((x, push), 1))[:, 0] for c in critics))).mean().backward()
        of_actor.step()
        of_alpha.zero_grad()
        (-log_alpha * (log.detach() - 1.0)).mean().backward()
        of_alpha.step()
        for p, q in zip(slow.parameters(), critics.parameters(), strict=True):
            p.lerp_(q.detach(), 0.02)
        trial.log(loss, reward=reward.mean())


@healthy(learns=reaches("reward", 0.8), steps=400)
def rloo(trial: Trial) -> None:
    """Leave-one-out baselines, a penalty for leaving the reference; the sequence is five tokens long."""
    policy = nn.Sequential(nn.Embedding(10, 32), mlp(32, 64, 10))
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    trial.attach(policy, optimizer)
    for _ in range(trial.steps):
        state = trial.randint(10, 16, 1, 5).expand(16, 4, 5)
        logs = policy(state).log_softmax(-1)
        chosen = Categorical(logits=logs.detach()).sample()
        log = logs.gather(-1, chosen[..., None])[..., 0].sum(-1)
        base = reference(state).log_softmax(-1).gather(-1, chosen[..., None])[..., 0].sum(-1)
        reward = (chosen == (state + 1) % 10).float().mean(-1)
        score = reward - 0.01 * (log.detach() - base)
        advantage = score - (score.sum(1, keepdim=True) - score) / 3
        loss = -(advantage * log).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss, reward=reward.mean())


@healthy(learns=falls(0.7), steps=400)
def domains_in_turn(trial: Trial) -> None:
    """Two corpora in turn, a hundred steps each: the loss of one is far above that of the other."""
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        x, y = draw_text(trial)
        if step // 100 % 2 == 0:
            x, y = x % 8, y % 8
        optimizer.zero_grad()
        loss = token_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        trial.log(loss)


@healthy(learns=lambda run: run.final("accuracy") > 0.6, steps=600)
def tasks_in_sequence(trial: Trial) -> None:
    """Continual learning: five tasks of two classes each, one after the other, with a memory of the earlier ones."""
    x, y = digits()
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        task = step // 120
        new, old = (y // 2 == task).nonzero()[:, 0], (y // 2 <= task).nonzero()[:, 0]
        at = torch.cat((new[trial.randint(len(new), 16)], old[trial.randint(len(old), 16)]))
        optimizer.zero_grad()
        logits = model(x[at])
        loss = F.cross_entropy(logits, y[at])
        loss.backward()
        optimizer.step()
        trial.log(loss, accuracy=(logits.argmax(-1) == y[at]).float().mean())


@healthy(learns=falls(0.3), steps=500)
def growing_pictures(trial: Trial) -> None:
    """An autoencoder of pictures that grow: 2, 4, then 8 pixels a side; the task becomes harder twice."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 4, 3, padding=1), nn.GELU(),
                          nn.Conv2d(4, 1, 3, padding=1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        x, _ = draw_images(trial)
        x = F.avg_pool2d(x, (4, 2, 1)[min(step // 150, 2)])
        optimizer.zero_grad()
        loss = F.mse_loss(model(x + 0.1 * trial.randn(*x.shape)), x)
        loss.backward()
        optimizer.step()
        trial.log(loss)


@healthy(learns=falls(0.5), steps=400)
def physics_informed(trial: Trial) -> None:
    """A network that fulfils y'' = -y: second derivatives in the loss, new points in each step."""
    model = mlp(1, 32, 32, 1, act=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    zero = torch.zeros(1, 1, requires_grad=True)
    for _ in range(trial.steps):
        t = (math.pi * torch.rand(64, 1, generator=trial.generator)).requires_grad_()
        y = model(t)
        (first,) = torch.autograd.grad(y.sum(), t, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), t, create_graph=True)
        start = model(zero)
        (slope,) = torch.autograd.grad(start.sum(), zero, create_graph=True)
        loss = (second + y).square().mean() + start.square().sum() + (slope - 1).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss)


@healthy(learns=reaches("accuracy", 0.8), steps=400)
def frozen_then_free(trial: Trial) -> None:
    """Fine-tuning in two parts: the head alone, then all layers at a tenth of the rate."""
    body, head = mlp(64, 64, 32), nn.Linear(32, 10)
    model = nn.Sequential(body, nn.ReLU(), head)
    body.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [{"params": head.parameters(), "lr": 3e-3}, {"params": body.parameters(), "lr": 1e-3}]
    )
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if step == 150:
            body.requires_grad_(True)
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        trial.log(loss, accuracy=(logits.argmax(-1) == y).float().mean())


@healthy(learns=falls(0.8), steps=400)
def outliers_in_the_data(trial: Trial) -> None:
    """The diabetes table, one target in forty far off: a robust loss, small batches."""
    x, y = table("diabetes")
    odd = torch.rand(len(y), generator=trial.generator) < 0.025
    y = torch.where(odd, 10 * y, y)
    model = mlp(10, 32, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        at = trial.randint(len(x), 16)
        optimizer.zero_grad()
        loss = F.smooth_l1_loss(model(x[at])[:, 0], y[at])
        loss.backward()
        optimizer.step()
        trial.log(loss)


@healthy(learns=falls(0.5), steps=400)
def simsiam(trial: Trial) -> None:
    """SimSiam with the stop of the gradient: the loss, minus a cosine, goes from 0 to below -0.8."""
    encoder = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16),
                            nn.BatchNorm1d(16, affine=False))  # fmt: skip
    model = nn.ModuleDict({"encoder": encoder, "predictor": mlp(16, 8, 16)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, _ = draw_digits(trial, 64)
        z = [encoder(x + 0.1 * trial.randn(64, 64)) for _ in range(2)]
        p = [model["predictor"](part) for part in z]
        loss = -(F.cosine_similarity(p[0], z[1].detach()) + F.cosine_similarity(p[1], z[0].detach())).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(1 + loss)
