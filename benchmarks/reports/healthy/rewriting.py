"""Healthy programs that write into the weights themselves, start over, or have several optimizers in one loop."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import draw_digits, mlp, table


def _accuracy(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(-1) == y).float().mean()


def _digits_loop(
    trial: Trial, model: nn.Module, optimizer: torch.optim.Optimizer, scale: float, write: Callable[[nn.Linear], None]
) -> None:
    """Classify digits, and write into each linear layer after each step."""
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        logits = scale * model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, nn.Linear):
                    write(layer)
        trial.log(loss, accuracy=_accuracy(logits, y))


@healthy(learns=lambda run: run.final("distance") < 0.5 * run.first("distance"), steps=600)
def wasserstein_clipped(trial: Trial) -> None:
    """Wasserstein GAN with the critic's weights clipped after each of its steps, five to one of the generator."""
    generator = nn.Sequential(mlp(16, 64, 64, 64), nn.Sigmoid())
    critic = mlp(64, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))
    of_g, of_c = (torch.optim.RMSprop(m.parameters(), lr=5e-4) for m in (generator, critic))
    trial.attach(critic, of_c)
    trial.attach(generator, of_g)
    apart = torch.zeros(())
    for step in range(trial.steps):
        real, _ = draw_digits(trial, 64)
        of_c.zero_grad()
        loss = critic(generator(trial.randn(64, 16)).detach()).mean() - critic(real).mean()
        loss.backward()
        of_c.step()
        for p in critic.parameters():
            p.data.clamp_(-0.05, 0.05)
        if step % 5 == 0:
            of_g.zero_grad()
            made = generator(trial.randn(64, 16))
            (-critic(made).mean()).backward()
            of_g.step()
            apart = (made.mean(0) - real.mean(0)).detach().abs().mean()
        trial.log(loss, distance=apart)


@healthy(learns=reaches("accuracy", 0.9), steps=400)
def rows_on_the_sphere(trial: Trial) -> None:
    """Each row of each matrix is put back to length one after the step, as in nGPT and in face recognition."""
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    _digits_loop(trial, model, optimizer, 4.0, lambda layer: layer.weight.copy_(F.normalize(layer.weight, dim=1)))


@healthy(learns=reaches("accuracy", 0.7), steps=400)
def largest_row_norm(trial: Trial) -> None:
    """Dropout with a limit for the norm of each row, which is put back to it after the step."""
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    _digits_loop(trial, model, optimizer, 2.0, lambda layer: layer.weight.copy_(layer.weight.renorm(2, 0, 0.6)))


@healthy(learns=reaches("accuracy", 0.9), steps=600)
def lottery_ticket(trial: Trial) -> None:
    """Three rounds: prune by size, rewind to the first weights, make the optimizer again; a mask after each step."""
    model = mlp(64, 96, 10)
    first = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    masks = {name: torch.ones_like(p) for name, p in model.named_parameters() if p.dim() > 1}
    for step in range(trial.steps):
        if step and step % 200 == 0:
            for name, p in model.named_parameters():
                if name in masks:
                    least = p.detach().abs()[masks[name] > 0].quantile(0.4)
                    masks[name] = masks[name] * (p.detach().abs() > least)
            model.load_state_dict({name: value * masks.get(name, 1.0) for name, value in first.items()})
            optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.mul_(masks.get(name, 1.0))
        trial.log(loss, accuracy=_accuracy(logits, y))


@healthy(learns=falls(0.3), steps=400)
def folds_in_one_process(trial: Trial) -> None:
    """Cross-validation: in each of four folds the first weights are loaded, and the optimizer is made again."""
    x, y = table("cancer")
    model = mlp(30, 32, 2)
    first = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for fold in range(4):
        kept = (torch.arange(len(x)) % 4 != fold).nonzero()[:, 0]
        model.load_state_dict(first)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(trial.steps // 4):
            at = kept[trial.randint(len(kept), 32)]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[at]), y[at])
            loss.backward()
            optimizer.step()
            trial.log(loss)


@healthy(learns=reaches("accuracy", 0.8), steps=300)
def deep_ensemble(trial: Trial) -> None:
    """Four networks in one loop: each is set to zero, trained and stepped before the next one; one watch."""
    members = nn.ModuleList(mlp(64, 32, 10) for _ in range(4))
    optimizers = [torch.optim.Adam(member.parameters(), lr=3e-3) for member in members]
    trial.attach(members, optimizers)
    for _ in range(trial.steps):
        losses, right = [], []
        for member, optimizer in zip(members, optimizers, strict=True):
            x, y = draw_digits(trial)
            optimizer.zero_grad()
            logits = member(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            right.append(_accuracy(logits, y))
        trial.log(torch.stack(losses).mean(), accuracy=torch.stack(right).mean())


@healthy(learns=lambda run: run.losses[99] < 0.4 * run.losses[0] and run.final() < 0.9 * max(run.losses[300:330]))
def noise_in_stages(trial: Trial) -> None:
    """A curriculum: noise of mean zero on the digits, more of it each 100 steps; the loss rises with it."""
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x + 0.3 * min(step // 100, 3) * trial.randn(*x.shape)), y)
        loss.backward()
        optimizer.step()
        trial.log(loss)
