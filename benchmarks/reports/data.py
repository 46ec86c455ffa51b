"""Data that scikit-learn and the standard library bring, and made-up data; models that several runs share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor, nn

from benchmarks.reports.case import Trial

VOCABULARY = 128
Facts = dict[str, Tensor | float]
"""Numbers of a step that the loop prints beside the loss."""


@lru_cache
def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits, (1797, 64) in [0, 1], and their classes."""
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


@lru_cache
def table(name: str) -> tuple[Tensor, Tensor]:
    """'cancer' (classes) or 'diabetes' (a standardised number): standardised features and targets."""
    x, y = (load_breast_cancer if name == "cancer" else load_diabetes)(return_X_y=True)
    features = torch.tensor(x, dtype=torch.float32)
    features = (features - features.mean(0)) / features.std(0)
    if name == "cancer":
        return features, torch.tensor(y)
    target = torch.tensor(y, dtype=torch.float32)
    return features, (target - target.mean()) / target.std()


@lru_cache
def text() -> Tensor:
    """ASCII of some modules of the standard library, as integers below 128."""
    folder = Path(os.__file__).parent
    names = ("argparse.py", "inspect.py", "typing.py", "tarfile.py", "subprocess.py", "pathlib.py", "ast.py", "os.py")
    raw = b"".join((folder / name).read_bytes() for name in names if (folder / name).is_file())
    return torch.tensor([byte for byte in raw if byte < VOCABULARY])


def draw_digits(trial: Trial, size: int = 32) -> tuple[Tensor, Tensor]:
    """A batch of digits: (size, 64), (size,)."""
    x, y = digits()
    at = trial.randint(len(x), size)
    return x[at], y[at]


def draw_images(trial: Trial, size: int = 32) -> tuple[Tensor, Tensor]:
    """A batch of digits as images: (size, 1, 8, 8), (size,)."""
    x, y = draw_digits(trial, size)
    return x.view(-1, 1, 8, 8), y


def draw_text(trial: Trial, size: int = 8, length: int = 32, ahead: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens and those `ahead` positions later: (size, length) each."""
    start = trial.randint(len(text()) - length - ahead, size)
    rows = text()[start[:, None] + torch.arange(length + ahead)]
    return rows[:, :length], rows[:, ahead:]


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with activations between them."""
    layers: list[nn.Module] = []
    for i, (inner, outer) in enumerate(pairwise(widths)):
        layers += ([act()] if i else []) + [nn.Linear(inner, outer)]
    return nn.Sequential(*layers)


class Assembled(nn.ModuleDict):
    """Named parts, and a function of them and of the inputs that is the forward."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__(parts)
        self._forward = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self._forward(self, *inputs)


class SelfAttention(nn.Module):
    """Causal or full attention, softmax by hand so that a mask may be anything."""

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if mask is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-2, -1) * (width / self.heads) ** -0.5
            y = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention and a feed-forward network, each normed before and added to its input."""

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal)
        self.feed = mlp(width, 4 * width, width, act=nn.GELU)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.feed(self.norm2(x))


class TextModel(nn.Module):
    """A small language model of bytes."""

    def __init__(self, width: int = 32, depth: int = 2, heads: int = 2, length: int = 64, causal: bool = True) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        for weight in (self.embed.weight, self.place.weight, self.head.weight):
            nn.init.normal_(weight, 0, 0.02)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def right(logits: Tensor, y: Tensor) -> Tensor:
    """The share of rows whose largest logit is the label's."""
    return (logits.detach().argmax(-1) == y).float().mean()


def digits_loss(trial: Trial, model: nn.Module, scale: float = 1.0, size: int = 32) -> Tensor:
    """The cross-entropy of a batch of digits, whose pixels are multiplied by `scale`."""
    x, y = draw_digits(trial, size)
    return F.cross_entropy(model(scale * x), y)


def plain_loop(
    trial: Trial,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], Tensor | tuple[Tensor, Facts]],
    *,
    schedule: Any = None,
    after: Callable[[int], Facts] | None = None,
    tell: bool = False,
) -> None:
    """The loop of every tutorial: zero_grad, backward, step.

    loss_of: the loss of a step, and further facts of it, if there are any. schedule: steps after the optimizer.
    after: is called after the step, and gives facts of what it did. tell: facts are also what the loop logs.
    """
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        optimizer.zero_grad()
        found = loss_of(step)
        loss, facts = found if isinstance(found, tuple) else (found, {})
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if tell:
            trial.tell(**facts)
        trial.log(loss, **facts, **(after(step) if after else {}))
