"""The demo's GPT, trained on the standard library's sources with everything measured at every step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import stabwatch
from stabwatch.demo import GPT, DemoConfig, batches, corpus
from stabwatch.runlog import Run, read_run


def nothing(model: GPT) -> None:
    """Do nothing to the model."""


def train_gpt(
    rate: float, layers: int, steps: int, change: Callable[[GPT], None] = nothing, after: Callable[[], object] = int
) -> Run:
    """The run log of one training: width 64, four heads of 16, context 64, batches of 8, AdamW at that rate.

    change: what is done to the model before. after: what is done after each step.
    """
    with tempfile.TemporaryDirectory() as folder:
        return read_run(train_gpt_into(Path(folder) / "run", rate, layers, steps, change, after))


def train_gpt_into(
    path: Path, rate: float, layers: int, steps: int, change: Callable[[GPT], None], after: Callable[[], object]
) -> Path:
    """The same training, its run log in this folder, which is returned."""
    torch.manual_seed(0)
    config = DemoConfig(width=64, layers=layers, heads=4, context=64, batch=8, seed=0)
    model, draw = GPT(config), batches(corpus(1 << 20), config)
    change(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    with stabwatch.attach(model, optimizer, run_dir=path, agent=False, verbose=False, every_step=True):
        for _ in range(steps):
            tokens, following = draw()
            loss = F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after()
    return path
