"""Healthy trainings, several of them traps: restarts of the schedule, a new task, losses that jump by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import zoo
from benchmarks.detection import tasks
from benchmarks.detection.case import STEPS, Case
from benchmarks.zoo import SMALL, Setting
from stabwatch.demo import GPT


def adam(model: nn.Module, lr: float, **settings: float) -> torch.optim.Optimizer:
    """AdamW."""
    return torch.optim.AdamW(model.parameters(), lr=lr, **settings)  # type: ignore[arg-type]


def digits_cnn(seed: int, lr: float = 0.05) -> Setting:
    """Residual CNN, momentum."""
    model = tasks.Digits()
    return tasks.setting(model, tasks.digits(seed), torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9))


def digits_vit(seed: int, lr: float = 1e-3) -> Setting:
    """Vision transformer."""
    model = tasks.DigitsViT()
    return tasks.setting(model, tasks.digits(seed), adam(model, lr))


def vit_mixup(seed: int) -> Setting:
    """Mixed images and soft labels, dropout: a noisy loss."""
    model, draw = tasks.DigitsViT(dropout=0.2), tasks.digits(seed)

    def loss(step: int) -> Tensor:
        x, y = draw(step)
        share, order = float(torch.rand(())), torch.randperm(len(y))
        soft = share * F.one_hot(y, 10) + (1 - share) * F.one_hot(y[order], 10)
        return F.cross_entropy(model(share * x + (1 - share) * x[order]), soft.float())

    return Setting(model, adam(model, 1e-3), loss)


def warm_restarts(seed: int) -> Setting:
    """The learning rate jumps back to its height every 100 steps."""
    made = digits_vit(seed)
    made.schedule = lambda step: 0.05 + 0.95 * (1 + math.cos(math.pi * (step % 100) / 100)) / 2
    return made


def new_task(seed: int) -> Setting:
    """After 200 steps the labels mean something else, as in fine-tuning: the loss is high again, and learned again."""
    model, draw = tasks.Digits(), tasks.digits(seed)

    def loss(step: int) -> Tensor:
        x, y = draw(step)
        return F.cross_entropy(model(x), y if step < STEPS // 2 else (y + 3) % 10)

    return Setting(model, adam(model, 1e-3), loss, changes={STEPS // 2: "the labels mean something else"})


def table_classes(seed: int, lr: float = 1e-3) -> Setting:
    """A table, two classes, soon learned."""
    model = tasks.plain(30, 2)
    return tasks.setting(model, tasks.cancer(seed), adam(model, lr))


def table_numbers(seed: int, lr: float = 1e-3) -> Setting:
    """A table, noisy numbers to predict."""
    model = tasks.Residual(10, 1)
    return tasks.setting(model, tasks.diabetes(seed), adam(model, lr), F.mse_loss)


def moe(seed: int, lr: float = 1e-3, balance: float = 0.01) -> Setting:
    """A language model of experts, balanced by its loss."""
    model, draw = tasks.gpt_of_experts(seed), tasks.text(seed)

    def loss(step: int) -> Tensor:
        x, y = draw(step)
        main = tasks.cross_entropy(model(x), y)
        return main + balance * sum(block.mlp.balance for block in model.blocks)

    return Setting(model, adam(model, lr), loss)


def vit_moe(seed: int, lr: float = 1e-3, balance: float = 0.01) -> Setting:
    """Experts on images."""
    model, draw = tasks.ViTOfExperts(), tasks.digits(seed)

    def loss(step: int) -> Tensor:
        x, y = draw(step)
        return F.cross_entropy(model(x), y) + balance * model.mixture.balance

    return Setting(model, adam(model, lr), loss)


def dit(seed: int, lr: float = 1e-3, layers: int = 24) -> Setting:
    """A narrow stack that predicts noise."""
    model = tasks.stack(layers)
    return tasks.setting(model, tasks.fields_of(seed), torch.optim.Adam(model.parameters(), lr=lr), F.mse_loss)


def dit_short(seed: int, lr: float = 1e-3) -> Setting:
    """Half its depth."""
    return dit(seed, lr, layers=12)


def post_norm(seed: int, lr: float = 1e-3, layers: int = 4, warm_up: int = 100) -> Setting:
    """Post-norm, warmed up."""
    model = tasks.PostNorm(layers)
    made = tasks.setting(model, tasks.text(seed), adam(model, lr))
    made.schedule = lambda step: min(1.0, (step + 1) / warm_up)
    return made


def bf16(seed: int) -> Setting:
    """The small GPT under bfloat16 autocast."""
    made = zoo.gpt(seed)
    inner = made.loss

    def loss(step: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return inner(step)

    made.loss = loss
    return made


def half_vit(seed: int, lr: float = 1e-3) -> Setting:
    """A vision transformer under float16 autocast."""
    model = tasks.Half(tasks.DigitsViT())
    return tasks.setting(model, tasks.digits(seed), adam(model, lr))


def longer_context(seed: int) -> Setting:
    """The context grows from 16 to 64 at a third, so that the loss falls by a step; batches grow later."""
    model, draw = GPT(SMALL), tasks.text(seed)

    def loss(step: int) -> Tensor:
        x, y = draw(step)
        length = 16 if step < STEPS // 3 else 64
        return tasks.cross_entropy(model(x[:, :length]), y[:, :length])

    return Setting(model, adam(model, 1e-3), loss)


def memory(seed: int, lr: float = 1e-3) -> Setting:
    """An LSTM that must remember; a plateau, then learning."""
    model = tasks.Elman("tanh")
    return tasks.setting(model, tasks.memory(seed, length=20), adam(model, lr), F.mse_loss)


def vae(seed: int) -> Setting:
    """A variational autoencoder on digits: a random loss of two parts."""
    encode, decode = tasks.plain(64, 16), tasks.plain(8, 64)
    model, draw = nn.ModuleDict({"encode": encode, "decode": decode}), tasks.digits(seed)

    def loss(step: int) -> Tensor:
        x = draw(step)[0].flatten(1)
        mean, log_variance = model["encode"](x).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        return F.mse_loss(model["decode"](z), x) * 10 + 0.1 * divergence

    return Setting(model, adam(model, 1e-3), loss)


def actor(seed: int) -> Setting:
    """Policy gradient on a bandit with contexts: a loss that is negative, noisy and means little."""
    g = torch.Generator().manual_seed(seed)
    model, best = tasks.plain(8, 4), torch.randn(8, 4, generator=g)

    def loss(step: int) -> Tensor:
        x = torch.randn(32, 8, generator=g)
        choice = torch.distributions.Categorical(logits=model(x))
        action = choice.sample()
        reward = (x @ best).gather(1, action[:, None]).squeeze(1)
        return -(choice.log_prob(action) * (reward - reward.mean())).mean() - 0.01 * choice.entropy().mean()

    return Setting(model, adam(model, 1e-3), loss)


_A: tuple[Callable[[int], Setting], ...] = (
    zoo.gpt, zoo.gpt_schedule, zoo.lstm, zoo.cnn, zoo.mlp, zoo.regression, zoo.gan, digits_cnn, vit_mixup,
    table_classes, moe, dit, warm_restarts, post_norm,
)  # fmt: skip
_B: tuple[Callable[[int], Setting], ...] = (
    zoo.gpt_qk_norm, zoo.gru, zoo.vit, zoo.overfit, zoo.autoencoder, digits_vit, table_numbers, vit_moe, dit_short,
    bf16, half_vit, longer_context, memory, vae, actor, new_task,
)  # fmt: skip

HEALTHY: tuple[Case, ...] = (
    *(Case(make.__name__, make, "A") for make in _A),
    *(Case(make.__name__, make, "B") for make in _B),
)
