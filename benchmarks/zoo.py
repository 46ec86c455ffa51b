"""Small trainings of many shapes, healthy and unstable, on data that every machine has. Each takes some seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch
from stabwatch.demo import GPT, Attention, Block, DemoConfig, batches, corpus

STEPS = 300
SMALL = DemoConfig(width=64, layers=3, heads=4, context=64, batch=8)


@dataclass
class Setting:
    """A model, its optimizer, the loss of a step; `schedule` scales the learning rate, `clip` bounds the gradient.

    changes: what is announced before a step.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[int], Tensor]
    clip: float | None = 1.0
    schedule: Callable[[int], float] = field(default=lambda step: 1.0)
    changes: dict[int, str] = field(default_factory=dict)


def _text(model: nn.Module, config: DemoConfig) -> Callable[[int], Tensor]:
    draw = batches(corpus(1 << 20), config)

    def loss(step: int) -> Tensor:
        tokens, following = draw()
        return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())

    return loss


def gpt(seed: int, lr: float = 1e-3) -> Setting:
    """The demo's model, smaller."""
    model = GPT(SMALL)
    return Setting(model, torch.optim.AdamW(model.parameters(), lr=lr), _text(model, SMALL))


class NormedAttention(Attention):
    """The demo's attention with QK-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(b, t, d))


def gpt_qk_norm(seed: int) -> Setting:
    """With QK-norm, at a learning rate three times higher."""
    model = GPT(SMALL)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.attn = NormedAttention(SMALL.width, SMALL.heads)
    return Setting(model, torch.optim.AdamW(model.parameters(), lr=3e-3), _text(model, SMALL))


def gpt_schedule(seed: int) -> Setting:
    """Warm-up and cosine decay, zero-initialised branches, weight decay."""
    model = GPT(SMALL)
    for block in model.blocks:
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.mlp[2].weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))

    def schedule(step: int) -> float:
        return min((step + 1) / 30, 0.55 + 0.45 * math.cos(math.pi * step / STEPS))

    return Setting(model, optimizer, _text(model, SMALL), schedule=schedule)


class Recurrent(nn.Module):
    """A recurrent language model."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 48)
        self.cell = cell(48, 96, batch_first=True)
        self.head = nn.Linear(96, 256)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.embed(x))[0])


def lstm(seed: int) -> Setting:
    """LSTM on text."""
    model = Recurrent(nn.LSTM)
    return Setting(model, torch.optim.AdamW(model.parameters(), lr=3e-3), _text(model, SMALL))


def gru(seed: int) -> Setting:
    """GRU on text, no clipping."""
    model = Recurrent(nn.GRU)
    return Setting(model, torch.optim.Adam(model.parameters(), lr=2e-3), _text(model, SMALL), clip=None)


def _images(model: nn.Module, seed: int, batch: int = 32) -> Callable[[int], Tensor]:
    """Ten classes of 12 x 12 patterns with noise."""
    g = torch.Generator().manual_seed(seed)
    patterns = torch.randn(10, 3, 12, 12, generator=g)

    def loss(step: int) -> Tensor:
        label = torch.randint(0, 10, (batch,), generator=g)
        return F.cross_entropy(model(patterns[label] + 2 * torch.randn(batch, 3, 12, 12, generator=g)), label)

    return loss


def cnn(seed: int) -> Setting:
    """A small residual-free CNN with batch norm and momentum."""
    widths = (3, 16, 32, 32)
    layers = [
        layer
        for i in range(3)
        for layer in (nn.Conv2d(widths[i], widths[i + 1], 3, padding=1), nn.BatchNorm2d(widths[i + 1]), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    return Setting(model, optimizer, _images(model, seed), clip=None)


class ViT(nn.Module):
    """Patches, an encoder, a mean and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 48, 3, stride=3)
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patch(x).flatten(2).mT).mean(dim=1))


def vit(seed: int) -> Setting:
    """A vision transformer."""
    model = ViT()
    return Setting(model, torch.optim.AdamW(model.parameters(), lr=1e-3), _images(model, seed))


def mlp(seed: int, lr: float = 0.1, clip: float | None = None) -> Setting:
    """Plain SGD on a random teacher's labels, small batches: a noisy loss that comes near zero."""
    g = torch.Generator().manual_seed(seed)
    teacher = torch.randn(20, 5, generator=g)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))

    def loss(step: int) -> Tensor:
        x = torch.randn(16, 20, generator=g)
        return F.cross_entropy(model(x), (x @ teacher).argmax(dim=1))

    return Setting(model, torch.optim.SGD(model.parameters(), lr=lr), loss, clip=clip)


def regression(seed: int) -> Setting:
    """Mean squared error, Adam, no clipping; the loss falls by orders of magnitude."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))

    def loss(step: int) -> Tensor:
        x = torch.randn(32, 4, generator=g)
        return F.mse_loss(model(x), (x[:, :1] * x[:, 1:2]).sin())

    return Setting(model, torch.optim.Adam(model.parameters(), lr=3e-3), loss, clip=None)


def autoencoder(seed: int) -> Setting:
    """An image autoencoder with RMSprop."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.randn(8, 144, generator=g)
    model = nn.Sequential(
        nn.Linear(144, 64), nn.GELU(), nn.Linear(64, 8), nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 144)
    )

    def loss(step: int) -> Tensor:
        x = torch.randn(32, 8, generator=g) @ basis
        return F.mse_loss(model(x), x)

    return Setting(model, torch.optim.RMSprop(model.parameters(), lr=1e-3), loss, clip=None)


def overfit(seed: int) -> Setting:
    """256 random labels learned by heart in batches of 16: the loss falls to nothing, with heavy tails."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 10))
    inputs, labels = torch.randn(256, 20, generator=g), torch.randint(0, 10, (256,), generator=g)

    def loss(step: int) -> Tensor:
        chosen = torch.randint(0, 256, (16,), generator=g)
        return F.cross_entropy(model(inputs[chosen]), labels[chosen])

    return Setting(model, torch.optim.Adam(model.parameters(), lr=3e-3), loss, clip=None)


class Adversaries(nn.Module):
    """A generator of points and a discriminator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def forward(self, noise: Tensor) -> Tensor:
        return self.discriminator(self.generator(noise))


def gan(seed: int) -> Setting:
    """Points on a circle; two optimizers, two backwards a step, losses that only oscillate."""
    g = torch.Generator().manual_seed(seed)
    model = Adversaries()
    critic = torch.optim.Adam(model.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)

    def loss(step: int) -> Tensor:
        angle = 2 * math.pi * torch.rand(64, generator=g)
        true = 2 * torch.stack((angle.cos(), angle.sin()), dim=1)
        false = model.generator(torch.randn(64, 8, generator=g)).detach()
        judged = F.binary_cross_entropy_with_logits(
            model.discriminator(torch.cat((true, false))), torch.cat((ones, zeros))
        )
        critic.zero_grad()
        judged.backward()
        critic.step()
        return F.binary_cross_entropy_with_logits(model(torch.randn(64, 8, generator=g)), ones)

    optimizer = torch.optim.Adam(model.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    return Setting(model, optimizer, loss, clip=None)


def gpt_hot(seed: int) -> Setting:
    """The demo: attention logits run away while the loss looks calm."""
    return gpt(seed, lr=3e-2)


def mlp_diverges(seed: int) -> Setting:
    """A learning rate that is raised a hundredfold at step 150."""
    setting = mlp(seed)
    setting.schedule = lambda step: 1.0 if step < 150 else 100.0
    return setting


def cnn_nan(seed: int) -> Setting:
    """One NaN pixel at step 150."""
    setting = cnn(seed)
    inner = setting.model

    def poison(module: nn.Module, args: Any) -> Any:
        if poison.step == 150:  # type: ignore[attr-defined]
            args[0][0, 0, 0, 0] = math.nan
        poison.step += 1  # type: ignore[attr-defined]

    poison.step = 0  # type: ignore[attr-defined]
    inner.register_forward_pre_hook(poison)
    return setting


def gpt_bad_batches(seed: int) -> Setting:
    """Twelve batches of random bytes at step 150: a loss spike."""
    setting = gpt(seed)
    model, clean = setting.model, setting.loss

    def loss(step: int) -> Tensor:
        if not 150 <= step < 162:
            return clean(step)
        noise = torch.randint(0, 256, (SMALL.batch, SMALL.context + 1))
        return F.cross_entropy(model(noise[:, :-1]).flatten(0, 1), noise[:, 1:].flatten())

    setting.loss = loss
    return setting


def rnn_explodes(seed: int) -> Setting:
    """A recurrent matrix pushed to a spectral radius above one, no clipping, 64 steps through time."""
    model = Recurrent(nn.RNN)
    model.cell.nonlinearity = "relu"
    model.cell.mode = "RNN_RELU"
    setting = Setting(model, torch.optim.Adam(model.parameters(), lr=1e-3), _text(model, SMALL), clip=None)

    def grow(step: int) -> float:
        if step == 150:
            with torch.no_grad():
                model.cell.weight_hh_l0.mul_(2.0)  # type: ignore[union-attr, operator]
        return 1.0

    setting.schedule = grow
    return setting


HEALTHY = (gpt, gpt_qk_norm, gpt_schedule, lstm, gru, cnn, vit, mlp, overfit, regression, autoencoder, gan)
QUICK = (gpt, gpt_qk_norm, gru, cnn, vit, mlp)
"""The demo's healthy twin and five other architectures."""
UNSTABLE = {
    gpt_hot: ("AttentionLogitGrowth",),
    mlp_diverges: ("LearningRateSpike", "LossDivergence", "GradientNormExplosion", "NonFinite"),
    cnn_nan: ("NonFiniteData", "NonFinite"),
    gpt_bad_batches: ("BadBatch", "LossSpike"),
    rnn_explodes: ("WeightsReplaced", "GradientNormExplosion", "NonFinite", "ExplodingRecurrentGradients"),
}
"""Each with the causes of which one must be named first."""
SPARSE = {
    rnn_explodes: ("OutputLogitDrift", "LossSpike", "LossDivergence"),
}
"""What may come first besides when gradients and activations are measured every 64 steps or more: steps of a few
milliseconds leave a budget of 1% no more. Only the loss is then known at the step that something happened."""


def loop(setting: Setting, steps: int, watch: stabwatch.Watch | None = None) -> list[float]:
    """Train; gives the losses."""
    base, losses = [group["lr"] for group in setting.optimizer.param_groups], []
    for step in range(steps):
        if watch is not None and step in setting.changes:
            watch.announce(setting.changes[step])
        for group, lr in zip(setting.optimizer.param_groups, base, strict=True):
            group["lr"] = lr * setting.schedule(step)
        loss = setting.loss(step)
        setting.optimizer.zero_grad()
        loss.backward()
        if setting.clip is not None:
            nn.utils.clip_grad_norm_(setting.model.parameters(), setting.clip)
        setting.optimizer.step()
        losses.append(loss.item())
    return losses


def train(make: Callable[[int], Setting], seed: int, run_dir: Path, steps: int = STEPS, **settings: Any) -> list[float]:
    """Train with a watch; gives the losses."""
    torch.manual_seed(seed)
    setting = make(seed)
    options = {"agent": False, "verbose": False, **settings}
    with stabwatch.attach(setting.model, setting.optimizer, run_dir=run_dir, **options) as watch:
        return loop(setting, steps, watch)
