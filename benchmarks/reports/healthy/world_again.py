"""Siblings of published programs, written after the rules for the first ones: none of them had been watched then."""

from __future__ import annotations

import copy
import math
import random
from collections import deque
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import VOCABULARY, TextModel, draw_digits, draw_images, draw_text, mlp, right, token_loss


def _maker() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.InstanceNorm2d(16), nn.ReLU(),
                         nn.Conv2d(16, 16, 3, padding=1), nn.InstanceNorm2d(16), nn.ReLU(),
                         nn.Conv2d(16, 1, 3, padding=1), nn.Tanh())  # fmt: skip


def _judge() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 3, padding=1))


@healthy(learns=falls(0.5, "cycle"), steps=400)
def there_and_back(trial: Trial) -> None:
    """CycleGAN: digits to negatives and back, judges frozen meanwhile, pictures of before, a linear decay."""
    makers = nn.ModuleDict({"there": _maker(), "back": _maker()})
    judges = nn.ModuleDict({"there": _judge(), "back": _judge()})
    for module in (*makers.modules(), *judges.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
    of_makers, of_judges = (torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.999)) for m in (makers, judges))
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda n: min(1.0, 2 - 2 * n / trial.steps))
                 for o in (of_makers, of_judges)]  # fmt: skip
    trial.attach(makers, of_makers)
    trial.attach(judges, of_judges)
    kept: dict[str, deque[Tensor]] = {"there": deque(maxlen=20), "back": deque(maxlen=20)}

    def wanted(out: Tensor, real: bool) -> Tensor:
        return F.mse_loss(out, torch.full_like(out, float(real)))

    for _ in range(trial.steps):
        a, b = 2 * draw_images(trial, 4)[0] - 1, 1 - 2 * draw_images(trial, 4)[0]
        judges.requires_grad_(False)
        of_makers.zero_grad()
        made_b, made_a = makers["there"](a), makers["back"](b)
        cycle = F.l1_loss(makers["back"](made_b), a) + F.l1_loss(makers["there"](made_a), b)
        same = F.l1_loss(makers["there"](b), b) + F.l1_loss(makers["back"](a), a)
        loss = wanted(judges["there"](made_b), True) + wanted(judges["back"](made_a), True) + 10 * cycle + 5 * same
        loss.backward()
        of_makers.step()
        judges.requires_grad_(True)
        of_judges.zero_grad()
        for side, real, made in (("there", b, made_b), ("back", a, made_a)):
            kept[side].append(made.detach())
            old = random.choice(kept[side])
            (0.5 * (wanted(judges[side](real), True) + wanted(judges[side](old), False))).backward()
        of_judges.step()
        for schedule in schedules:
            schedule.step()
        trial.log(loss, cycle=cycle)


class _Pole:
    """A pole on a cart, by Euler's method."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> Tensor:
        self.now, self.turns = [random.uniform(-0.05, 0.05) for _ in range(4)], 0
        return torch.tensor([self.now])

    def step(self, action: int) -> tuple[Tensor, float, bool]:
        x, v, angle, turn = self.now
        push = 10.0 if action else -10.0
        sine, cosine = math.sin(angle), math.cos(angle)
        part = (push + 0.05 * turn * turn * sine) / 1.1
        bend = (9.8 * sine - cosine * part) / (0.5 * (4 / 3 - 0.1 * cosine * cosine / 1.1))
        speed = part - 0.05 * bend * cosine / 1.1
        self.now = [x + 0.02 * v, v + 0.02 * speed, angle + 0.02 * turn, turn + 0.02 * bend]
        self.turns += 1
        over = abs(self.now[0]) > 2.4 or abs(self.now[2]) > 0.21
        return torch.tensor([self.now]), 1.0, over


@healthy(learns=reaches("turns", 30.0), steps=1500)
def pole_of_a_tutorial(trial: Trial) -> None:
    """Deep Q-learning of a tutorial: one move for each step, Huber loss, AdamW with AMSGrad, a target that follows."""
    policy = mlp(4, 64, 64, 2)
    target = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-4, amsgrad=True)
    trial.attach(policy, optimizer)
    memory: deque[tuple[Tensor, int, Tensor | None, float]] = deque(maxlen=10_000)
    env, lasted = _Pole(), deque([15.0] * 10, maxlen=10)
    state = env.reset()
    while len(memory) < 64:
        action = random.randrange(2)
        after, reward, over = env.step(action)
        memory.append((state, action, None if over else after, reward))
        state = env.reset() if over else after
    for step in range(trial.steps):
        if random.random() > 0.05 + 0.85 * math.exp(-step / 300):
            with torch.no_grad():
                action = int(policy(state).max(1).indices.item())
        else:
            action = random.randrange(2)
        after, reward, over = env.step(action)
        memory.append((state, action, None if over else after, reward))
        if over:
            lasted.append(float(env.turns))
        state = env.reset() if over else after
        states, actions, following, rewards = zip(*random.sample(memory, 64), strict=True)
        alive = torch.tensor([s is not None for s in following])
        values = policy(torch.cat(states)).gather(1, torch.tensor(actions)[:, None])
        later = torch.zeros(64)
        with torch.no_grad():
            later[alive] = target(torch.cat([s for s in following if s is not None])).max(1).values
        loss = F.smooth_l1_loss(values, (torch.tensor(rewards) + 0.99 * later)[:, None])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(policy.parameters(), 100)
        optimizer.step()
        with torch.no_grad():
            for old, p in zip(target.parameters(), policy.parameters(), strict=True):
                old.lerp_(p, 0.005)
        trial.log(loss, turns=sum(lasted) / len(lasted))


@healthy(learns=falls(0.5), steps=700)
def sums_by_a_small_gpt(trial: Trial) -> None:
    """A GPT adds numbers of two digits, results written backwards; only the result has targets, decay for matrices."""
    model = TextModel(width=48, depth=2, heads=3, length=16)
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1 and "embed" not in n and "place" not in n]
    rest = [p for n, p in model.named_parameters() if not any(p is q for q in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.95))
    trial.attach(model, optimizer)
    tens = torch.tensor([100, 10, 1])
    for _ in range(trial.steps):
        a, b = trial.randint(100, 64), trial.randint(100, 64)
        result = ((a + b)[:, None] // tens % 10).flip(1)
        rows = torch.cat((a[:, None] // tens[1:] % 10, b[:, None] // tens[1:] % 10, result), 1)
        target = rows[:, 1:].clone()
        target[:, :3] = -100
        loss = token_loss(model(rows[:, :-1]), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        trial.log(loss)


class _Reversed(torch.autograd.Function):
    """The gradient with the other sign."""

    @staticmethod
    def forward(ctx: object, x: Tensor, by: float) -> Tensor:  # type: ignore[override]
        ctx.by = by  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.by * gradient, None  # type: ignore[attr-defined]


@healthy(learns=reaches("right", 0.7), steps=500)
def other_domain(trial: Trial) -> None:
    """Domain-adversarial training: a reversed gradient that is faded in, digits and noisy negatives, one optimizer."""
    reverse: Callable[[Tensor, float], Tensor] = _Reversed.apply  # type: ignore[assignment]
    model = nn.ModuleDict({"features": mlp(64, 96, 48), "labels": mlp(48, 48, 10), "domains": mlp(48, 48, 2)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: (1 + 10 * n / trial.steps) ** -0.75)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        by = 2 / (1 + math.exp(-10 * step / trial.steps)) - 1
        (x, y), (other, hidden) = draw_digits(trial), draw_digits(trial)
        other = 0.8 * other + 0.2 * trial.randn(32, 64)
        h = F.relu(model["features"](torch.cat((x, other))))
        logits = model["labels"](h)
        domain = torch.arange(64) // 32
        loss = F.cross_entropy(logits[:32], y) + F.cross_entropy(model["domains"](reverse(h, by)), domain)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        trial.log(loss, right=right(logits[32:], hidden))


@healthy(learns=falls(0.3), steps=600)
def picture_by_splats(trial: Trial) -> None:
    """A picture by Gaussians: rates by kind, Gaussians cloned and pruned with their state in between."""
    at = torch.stack(torch.meshgrid(torch.linspace(0, 1, 20), torch.linspace(0, 1, 20), indexing="ij"), -1).view(-1, 2)
    goal = (torch.sin(9 * at[:, 0]) * torch.cos(7 * at[:, 1]) > 0).float() * 0.8 + 0.1

    class Splats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.size = nn.Parameter(torch.rand(30, 2)), nn.Parameter(torch.full((30,), -2.0))
            self.grey, self.alpha = nn.Parameter(torch.zeros(30)), nn.Parameter(torch.zeros(30))

        def forward(self, x: Tensor) -> Tensor:
            far = (x[:, None] - self.place).square().sum(-1)
            weight = self.alpha.sigmoid() * torch.exp(-0.5 * far / self.size.exp().square())
            return (weight * self.grey.sigmoid()).sum(1) / (weight.sum(1) + 0.1)

    model = Splats()
    rates = {"place": 5e-3, "size": 5e-3, "grey": 2e-2, "alpha": 2e-2}
    groups = [{"params": [getattr(model, n)], "lr": rate, "name": n} for n, rate in rates.items()]
    optimizer = torch.optim.Adam(groups, lr=0.0, eps=1e-15)
    trial.attach(model, optimizer)
    moved = torch.zeros(30)
    for step in range(trial.steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * 0.01 ** (step / trial.steps)
        loss = F.l1_loss(model(at), goal)
        loss.backward()
        with torch.no_grad():
            assert model.place.grad is not None
            moved += model.place.grad.norm(dim=1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step in (100, 200, 300):
                stay = model.alpha.sigmoid() > 0.05
                busy = stay & (moved > moved.quantile(0.7))
                for group in optimizer.param_groups:
                    old = group["params"][0]
                    new = nn.Parameter(torch.cat((old[stay], old[busy])))
                    state = optimizer.state.pop(old)
                    for name in ("exp_avg", "exp_avg_sq"):
                        state[name] = torch.cat((state[name][stay], torch.zeros_like(state[name][busy])))
                    group["params"], optimizer.state[new] = [new], state
                    setattr(model, group["name"], new)
                moved = torch.zeros(len(model.alpha))
        trial.log(loss)


class _Selective(nn.Module):
    """A selective state space: what is kept of the state depends on the input, by a loop over the positions."""

    def __init__(self, width: int, states: int = 4) -> None:
        super().__init__()
        self.norm, inner = nn.LayerNorm(width), 2 * width
        self.enter, self.leave = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.conv = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
        self.select, self.step = nn.Linear(inner, 2 * states + 1, bias=False), nn.Linear(1, inner)
        self.log_decay = nn.Parameter(torch.arange(1.0, states + 1).log().expand(inner, -1).clone())
        self.skip = nn.Parameter(torch.ones(inner))
        with torch.no_grad():
            time = torch.exp(torch.rand(inner) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3))
            self.step.bias.copy_(time + torch.log(-torch.expm1(-time)))

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.enter(self.norm(x)).chunk(2, -1)
        u = F.silu(self.conv(u.mT)[..., : x.shape[1]].mT)
        time, into, out = self.select(u).split((1, 4, 4), -1)
        time = F.softplus(self.step(time))[..., None]
        keep = torch.exp(-time * self.log_decay.exp())
        add = time * into[:, :, None] * u[..., None]
        state, rows = torch.zeros_like(add[:, 0]), list[Tensor]()
        for i in range(x.shape[1]):
            state = keep[:, i] * state + add[:, i]
            rows.append((state * out[:, i, None]).sum(-1))
        return x + self.leave((torch.stack(rows, 1) + self.skip * u) * F.silu(gate))


@healthy(learns=falls(0.75), steps=400)
def selective_states(trial: Trial) -> None:
    """A language model of selective state spaces, no attention and no positions, decays and steps without decay."""
    embed = nn.Embedding(VOCABULARY, 32)
    model = nn.Sequential(embed, _Selective(32), _Selective(32), nn.LayerNorm(32), nn.Linear(32, VOCABULARY))
    nn.init.normal_(embed.weight, std=0.02)
    free = [p for n, p in model.named_parameters() if p.dim() < 2 or "log_decay" in n]
    decayed = [p for p in model.parameters() if not any(p is q for q in free)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=4e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, trial.steps, pct_start=0.1)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial)
        loss = token_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        trial.log(loss)
