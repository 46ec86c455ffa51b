"""Small models of different architectures, each with a function that draws a batch and one that gives the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabwatch.demo import GPT, DemoConfig


@dataclass
class Task:
    """A model and its training loss on a fresh batch."""

    model: nn.Module
    loss: Callable[[], Tensor]


def _tokens(rows: int, length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 64, (rows, length), generator=generator)


def gpt(g: torch.Generator) -> Task:
    model = GPT(DemoConfig(width=32, layers=2, heads=2, context=16))

    def loss() -> Tensor:
        x = _tokens(4, 17, g)
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return Task(model, loss)


def mlp(g: torch.Generator) -> Task:
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 5))
    return Task(
        model, lambda: F.cross_entropy(model(torch.randn(8, 20, generator=g)), torch.randint(0, 5, (8,), generator=g))
    )


def cnn(g: torch.Generator) -> Task:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip

    def loss() -> Tensor:
        return F.cross_entropy(model(torch.randn(4, 3, 12, 12, generator=g)), torch.randint(0, 5, (4,), generator=g))

    return Task(model, loss)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.gru = nn.GRU(16, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.embed(x))[0])


def rnn(g: torch.Generator) -> Task:
    model = Recurrent()

    def loss() -> Tensor:
        x = _tokens(4, 13, g)
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return Task(model, loss)


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, stride=4)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patch(x).flatten(2).mT).mean(dim=1))


def vit(g: torch.Generator) -> Task:
    model = ViT()

    def loss() -> Tensor:
        return F.cross_entropy(model(torch.randn(4, 3, 16, 16, generator=g)), torch.randint(0, 5, (4,), generator=g))

    return Task(model, loss)


class Regression(nn.Module):
    """A residual network with a loss that is no cross-entropy, and attention with weights (no fused kernel)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.outer = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.outer(h + self.attention(h, h, h, need_weights=True)[0])


def regression(g: torch.Generator) -> Task:
    model = Regression()

    def loss() -> Tensor:
        x = torch.randn(4, 6, 8, generator=g)
        return F.mse_loss(model(x), x.sum(dim=-1, keepdim=True))

    return Task(model, loss)


class Gate(nn.Module):
    """As in DeepSpeed: the projection lies inside of the gate, which states its capacity factor."""

    def __init__(self) -> None:
        super().__init__()
        self.wg, self.k, self.capacity_factor = nn.Linear(8, 4, bias=False), 1, 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.wg(x)


class Mixture(nn.Module):
    """Experts as a list of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1)
        return sum((chosen == i)[..., None] * expert(x) for i, expert in enumerate(self.experts))


ARCHITECTURES = {f.__name__: f for f in (gpt, mlp, cnn, rnn, vit, regression)}


def run(
    name: str,
    *,
    steps: int = 12,
    autocast: bool = False,
    lr: float = 1e-2,
    before: Callable[[nn.Module, torch.optim.Optimizer], object] = lambda model, optimizer: None,
    after_step: Callable[[int], object] = lambda step: None,
) -> tuple[list[Tensor], Tensor, list[float]]:
    """Train and give (parameters and buffers, RNG state, losses); `before` may attach a watch."""
    torch.manual_seed(0)
    task = ARCHITECTURES[name](torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=lr)
    before(task.model, optimizer)
    losses = []
    for step in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = task.loss()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        after_step(step)
    state = [t.detach().clone() for t in (*task.model.parameters(), *task.model.buffers())]
    return state, torch.get_rng_state(), losses
