"""What the benchmarks train on a GPU: a GPT-2 medium of 355 M parameters in bfloat16, 8,192 tokens a step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabwatch.demo import GPT, DemoConfig

MEDIUM = DemoConfig(width=1024, layers=24, heads=16, context=1024, batch=8)
VOCABULARY = 50304


class Large(GPT):
    """The demo's model with a vocabulary of that size, and the head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__(MEDIUM)
        self.tokens = nn.Embedding(VOCABULARY, MEDIUM.width)
        self.head = nn.Linear(MEDIUM.width, VOCABULARY, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.head.weight = self.tokens.weight


def rows(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens of a language that can be learned a little: each follows from the one before it, or from nothing."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(VOCABULARY, (MEDIUM.batch, MEDIUM.context + 1), generator=generator)
    known = torch.rand(found.shape, generator=generator) < 0.5
    found = torch.where(known, (found.roll(1, 1) * 31 + 7) % VOCABULARY, found).to(device)
    return found[:, :-1].contiguous(), found[:, 1:].contiguous()


def loss(model: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
    """Cross-entropy in bfloat16."""
    with torch.autocast(tokens.device.type, torch.bfloat16):
        return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
