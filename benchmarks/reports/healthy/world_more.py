"""Healthy workloads in the manner of programs that people publish: pictures, equations and tours."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls
from benchmarks.reports.data import (
    Assembled,
    Block,
    draw_images,
    mlp,
)


def _waves(t: Tensor, size: int = 16) -> Tensor:
    """Sines and cosines of times in [0, 1]."""
    angle = 1000 * t[:, None] * torch.exp(-math.log(10000) * torch.arange(size) / size)
    return torch.cat((angle.cos(), angle.sin()), 1)


class _AdaptiveBlock(nn.Module):
    """A block whose norms are shifted, scaled and gated by a condition; the gates begin at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attn = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = mlp(width, 4 * width, width, act=nn.GELU)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(c))[:, None].chunk(6, -1)
        h = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attn(h, h, h, need_weights=False)[0]
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class _Dit(nn.Module):
    """A diffusion transformer of 8 x 8 pictures in patches of 2 x 2."""

    def __init__(self, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.embed, self.place = nn.Conv2d(1, width, 2, 2), nn.Parameter(0.02 * torch.randn(16, width))
        self.time, self.label = mlp(32, width, width, act=nn.SiLU), nn.Embedding(11, width)
        self.blocks = nn.ModuleList(_AdaptiveBlock(width) for _ in range(depth))
        self.norm, self.final = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 4)
        nn.init.normal_(self.label.weight, std=0.02)
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        c = self.time(_waves(t)) + self.label(y)
        x = self.embed(x).flatten(2).mT + self.place
        for block in self.blocks:
            x = block(x, c)
        return F.fold(self.final(self.norm(x)).mT, (8, 8), 2, stride=2)


@healthy(learns=falls(0.5), steps=600)
def diffusion_transformer(trial: Trial) -> None:
    """DiT: zeros in the gates and at the end, labels dropped in a tenth, a constant rate, no decay, an average."""
    model = _Dit()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    keep = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_images(trial)
        t, noise = trial.randint(1000, 32), trial.randn(32, 1, 8, 8)
        a = keep[t][:, None, None, None]
        y = torch.where(torch.rand(32, generator=trial.generator) < 0.1, 10, y)
        out = model(a.sqrt() * (2 * x - 1) + (1 - a).sqrt() * noise, t / 1000, y)
        loss = F.mse_loss(out, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for kept, p in zip(average.parameters(), model.parameters(), strict=True):
                kept.mul_(0.995).add_(p, alpha=0.005)
        trial.log(loss)


class _Field(nn.Module):
    """Density and brightness of a place, by sines and cosines of its coordinates, with a skip."""

    def __init__(self, waves: int = 5, width: int = 64) -> None:
        super().__init__()
        self.waves, inner = waves, 2 + 4 * waves
        self.first, self.second = mlp(inner, width, width), mlp(width + inner, width, width)
        self.density, self.colour = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, at: Tensor) -> tuple[Tensor, Tensor]:
        angle = at[..., None] * 2.0 ** torch.arange(self.waves) * math.pi
        x = torch.cat((at, angle.sin().flatten(-2), angle.cos().flatten(-2)), -1)
        h = F.relu(self.second(torch.cat((F.relu(self.first(x)), x), -1)))
        return self.density(h)[..., 0], self.colour(h)[..., 0].sigmoid()


@healthy(learns=falls(0.3), steps=700)
def light_along_rays(trial: Trial) -> None:
    """A radiance field in a plane: coarse and fine networks, rays cut at random, noise on densities, a white ground."""
    model = nn.ModuleDict({"coarse": _Field(), "fine": _Field()})
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.999))
    trial.attach(model, optimizer)

    def scene(at: Tensor) -> tuple[Tensor, Tensor]:
        near, far = ((at - c).norm(dim=-1) for c in (torch.tensor([0.3, 0.0]), torch.tensor([-0.3, 0.2])))
        return 30.0 * ((near < 0.2) | (far < 0.25)), torch.where(near < 0.2, 0.1, 0.6)

    def render(density: Tensor, colour: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        gap = torch.cat((depth[:, 1:] - depth[:, :-1], torch.full((len(depth), 1), 0.05)), 1)
        alpha = 1 - torch.exp(-F.relu(density) * gap)
        through = torch.cumprod(torch.cat((torch.ones(len(depth), 1), 1 - alpha + 1e-10), 1), 1)[:, :-1]
        weight = alpha * through
        return (weight * colour).sum(1) + 1 - weight.sum(1), weight.detach()

    def along(start: Tensor, way: Tensor, depth: Tensor) -> Tensor:
        return start[:, None] + way[:, None] * depth[..., None]

    for step in range(trial.steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * 0.1 ** (step / trial.steps)
        angle = 2 * math.pi * torch.rand(128, generator=trial.generator)
        way = torch.stack((angle.cos(), angle.sin()), 1)
        start = -1.2 * way + (torch.rand(128, 1, generator=trial.generator) - 0.5) * way.flip(1) * torch.tensor(
            [1.0, -1.0]
        )
        with torch.no_grad():
            exact = torch.linspace(0.4, 2.0, 128).expand(128, -1)
            truth, _ = render(*scene(along(start, way, exact)), exact)
        coarse = torch.linspace(0.4, 2.0, 24) + torch.rand(128, 24, generator=trial.generator) * 1.6 / 24
        density, colour = model["coarse"](along(start, way, coarse))
        seen, weight = render(density + trial.randn(128, 24), colour, coarse)
        more = coarse.gather(1, torch.multinomial(weight + 1e-5, 16, generator=trial.generator))
        fine = torch.cat((coarse, more + 1.6 / 24 * torch.rand(128, 16, generator=trial.generator)), 1).sort(1).values
        density, colour = model["fine"](along(start, way, fine))
        better, _ = render(density + trial.randn(128, 40), colour, fine)
        loss = F.mse_loss(better, truth) + F.mse_loss(seen, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss)


@healthy(learns=falls(0.05), steps=460)
def shock_wave(trial: Trial) -> None:
    """Burgers' equation by a physics-informed network: Adam at first, then L-BFGS with a line search, points fixed."""
    model = mlp(2, 20, 20, 20, 20, 1, act=nn.Tanh)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    x0 = 2 * torch.rand(64, 1, generator=trial.generator) - 1
    known = torch.cat((torch.cat((x0, torch.zeros(64, 1)), 1),
                       torch.cat((torch.ones(32, 1), torch.rand(32, 1, generator=trial.generator)), 1),
                       torch.cat((-torch.ones(32, 1), torch.rand(32, 1, generator=trial.generator)), 1)))  # fmt: skip
    value = torch.cat((-torch.sin(math.pi * x0), torch.zeros(64, 1)))
    inside = torch.rand(400, 2, generator=trial.generator) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])

    def criterion() -> Tensor:
        at = inside.clone().requires_grad_()
        u = model(at)
        (slope,) = torch.autograd.grad(u.sum(), at, create_graph=True)
        (bend,) = torch.autograd.grad(slope[:, 0].sum(), at, create_graph=True)
        rest = slope[:, 1:] + u * slope[:, :1] - 0.01 / math.pi * bend[:, :1]
        return F.mse_loss(model(known), value) + rest.pow(2).mean()

    adam = torch.optim.Adam(model.parameters(), lr=2e-3)
    trial.attach(model, adam)
    for _ in range(trial.steps - 60):
        adam.zero_grad()
        loss = criterion()
        loss.backward()
        adam.step()
        trial.log(loss)
    lbfgs = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=20, history_size=50, line_search_fn="strong_wolfe")

    def closure() -> float:
        lbfgs.zero_grad()
        loss = criterion()
        loss.backward()
        return float(loss)

    for _ in range(60):
        trial.log(lbfgs.step(closure))


@healthy(learns=falls(0.9), steps=700)
def clicks_by_sparse_rows(trial: Trial) -> None:
    """Clicks by embeddings with sparse gradients and SparseAdam, a dense part with Adam, rare items rarely drawn."""
    rows = (2000, 500, 30)
    hidden = [torch.randn(n, 4, generator=trial.generator) for n in rows]

    def forward(m: Assembled, ids: Tensor, dense: Tensor) -> Tensor:
        parts = [m[f"rows{i}"](ids[:, i]) for i in range(3)] + [m["bottom"](dense)]
        x = torch.stack(parts, 1)
        one, other = torch.tril_indices(4, 4, -1)
        cross = (x @ x.mT)[:, one, other]
        return m["top"](torch.cat((cross, parts[-1]), 1))[:, 0]

    tables = {f"rows{i}": nn.Embedding(n, 8, sparse=True) for i, n in enumerate(rows)}
    model = Assembled(forward, bottom=mlp(6, 32, 8), top=mlp(14, 32, 1), **tables)
    for table, n in zip(tables.values(), rows, strict=True):
        nn.init.uniform_(table.weight, -((1 / n) ** 0.5), (1 / n) ** 0.5)
    sparse = torch.optim.SparseAdam([table.weight for table in tables.values()], lr=1e-2)
    dense = torch.optim.Adam([*model["bottom"].parameters(), *model["top"].parameters()], lr=1e-3)
    trial.attach(model, [sparse, dense])
    for _ in range(trial.steps):
        ids = torch.stack([(n * torch.rand(256, generator=trial.generator) ** 3).long() for n in rows], 1)
        numbers = trial.randn(256, 6)
        score = sum((hidden[i][ids[:, i]] * hidden[0][ids[:, 0]]).sum(1) for i in (1, 2)) / 2 + numbers[:, 0] - 1
        clicked = (torch.rand(256, generator=trial.generator) < torch.sigmoid(score)).float()
        loss = F.binary_cross_entropy_with_logits(model(ids, numbers), clicked)
        sparse.zero_grad()
        dense.zero_grad()
        loss.backward()
        sparse.step()
        dense.step()
        trial.log(loss)


@healthy(learns=falls(0.6), steps=500)
def waves_from_ten_points(trial: Trial) -> None:
    """MAML on sine waves: a step of gradient descent for each of 5 tasks, its second derivatives, Adam outside."""
    model = mlp(1, 40, 40, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        loss = torch.zeros(())
        for _ in range(5):
            height, shift = (
                0.1 + 4.9 * torch.rand(1, generator=trial.generator),
                3.14 * torch.rand(1, generator=trial.generator),
            )
            x = 10 * torch.rand(20, 1, generator=trial.generator) - 5
            y = height * torch.sin(x - shift)
            weights: dict[str, Tensor] = dict(model.named_parameters())
            inner = F.mse_loss(functional_call(model, weights, (x[:10],)), y[:10])
            slopes = torch.autograd.grad(inner, tuple(weights.values()), create_graph=True)
            fast = {n: w - 0.01 * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
            loss = loss + F.mse_loss(functional_call(model, fast, (x[10:],)), y[10:]) / 5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss)


class _Tour(nn.Module):
    """Attention over towns, and a pointer that picks the next one."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        self.blocks = nn.ModuleList(Block(width, 4, causal=False) for _ in range(2))
        self.query, self.key = nn.Linear(3 * width, width, bias=False), nn.Linear(width, width, bias=False)
        self.start = nn.Parameter(torch.rand(2 * width) - 0.5)

    def forward(self, towns: Tensor, greedy: bool = False) -> tuple[Tensor, Tensor]:
        h = self.embed(towns)
        for block in self.blocks:
            h = block(h)
        size, count = towns.shape[:2]
        gone, way, logp = torch.zeros(size, count, dtype=torch.bool), list[Tensor](), torch.zeros(size)
        key, mean, ends = self.key(h), h.mean(1), self.start.expand(size, -1)
        for _ in range(count):
            score = (key @ self.query(torch.cat((mean, ends), 1))[..., None])[..., 0] / h.shape[-1] ** 0.5
            choice = (10 * torch.tanh(score)).masked_fill(gone, -torch.inf).log_softmax(-1)
            pick = choice.argmax(1, True) if greedy else torch.multinomial(choice.exp(), 1)
            logp = logp + choice.gather(1, pick)[:, 0]
            gone = gone.scatter(1, pick, True)
            way.append(pick)
            first, last = (h.gather(1, p[..., None].expand(-1, -1, h.shape[-1]))[:, 0] for p in (way[0], pick))
            ends = torch.cat((first, last), 1)
        path = towns.gather(1, torch.cat(way, 1)[..., None].expand(-1, -1, 2))
        return (path - path.roll(-1, 1)).norm(dim=-1).sum(1), logp


@healthy(learns=falls(0.93, "length"), steps=500)
def tour_of_towns(trial: Trial) -> None:
    """Tours by attention and REINFORCE; the baseline is a greedy copy that is renewed when the model is better."""
    model = _Tour()
    baseline = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        towns = torch.rand(64, 10, 2, generator=trial.generator)
        cost, logp = model(towns)
        with torch.no_grad():
            usual, _ = baseline(towns, greedy=True)
        loss = ((cost - usual) * logp).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        trial.log(loss, length=cost.mean())
        if step % 50 == 49:
            model.eval()
            with torch.no_grad():
                held = torch.rand(256, 10, 2, generator=trial.generator)
                if model(held, greedy=True)[0].mean() < baseline(held, greedy=True)[0].mean():
                    baseline.load_state_dict(model.state_dict())
            model.train()
