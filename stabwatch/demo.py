"""The run that `stabwatch demo` shows: a small GPT on the Python standard library, too high a learning rate.

Nothing here is special to stabwatch but the one line in `train`. Without QK-norm and at this learning
rate the attention logits grow past any safe size within a few dozen steps, while loss and gradient norm
look calm; at 1e-3 the same model is healthy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Model, data and optimizer of the demo. `watch` holds settings for `stabwatch.attach`."""

    steps: int = 300
    lr: float = 3e-2
    seed: int = 0
    batch: int = 16
    context: int = 128
    width: int = 128
    layers: int = 5
    heads: int = 4
    run_dir: Path | None = None
    watch: dict[str, Any] = field(default_factory=dict)


class Attention(nn.Module):
    """Causal self-attention, without QK-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A byte-level language model."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        d = config.width
        self.tokens = nn.Embedding(256, d)
        self.positions = nn.Embedding(config.context, d)
        self.blocks = nn.ModuleList(Block(d, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def corpus(limit: int = 4 << 20) -> Tensor:
    """Bytes of the Python standard library's sources, which every machine has: uint8 (n,)."""
    text = bytearray()
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= limit:
            break
    return torch.frombuffer(text[:limit], dtype=torch.uint8)


def batches(data: Tensor, config: DemoConfig) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that draws (tokens, next tokens), each int64 (batch, context)."""
    generator = torch.Generator().manual_seed(config.seed)
    offsets = torch.arange(config.context + 1)

    def draw() -> tuple[Tensor, Tensor]:
        start = torch.randint(len(data) - config.context - 1, (config.batch, 1), generator=generator)
        rows = data[start + offsets].long()
        return rows[:, :-1], rows[:, 1:]

    return draw


def train(
    config: DemoConfig,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_start: Callable[[stabwatch.Watch], None] = lambda watch: None,
) -> Path:
    """Train and watch; gives the run folder. The callbacks are for whoever shows the progress."""
    torch.manual_seed(config.seed)
    draw = batches(corpus(), config)
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)

    with stabwatch.attach(model, optimizer, run_dir=config.run_dir, **config.watch) as watch:
        on_start(watch)
        for step in range(config.steps):
            tokens, following = draw()
            loss = F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            on_step(step, loss.item())
    return watch.run_dir
