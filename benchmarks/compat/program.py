"""What is tried: a small training program, made anew for each run of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class NotTried(Exception):
    """This program cannot be run here; the message says why."""


@dataclass
class Program:
    """A model, its optimizer and its loss.

    step: trains one step and returns its loss; by default that of most loops. watched: what is given to `attach`, if it
    is not the model. around: what the training runs in.
    """

    model: nn.Module
    loss: Callable[[], Tensor]
    optimizer: Any = None
    step: Callable[[], Any] | None = None
    watched: nn.Module | None = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __post_init__(self) -> None:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def train_step(self) -> float:
        """One step of the training; its loss."""
        if self.step is not None:
            return float(self.step())
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


@dataclass(frozen=True)
class Case:
    """One row of the table. about: which class it is, or what is special. make: called after seeding."""

    group: str
    name: str
    make: Callable[[], Program]
    about: str = ""


@dataclass
class Row:
    """What came out of a case.

    skipped: why it was not tried. identical: parameters, buffers, losses and random numbers are those of the unwatched
    run. steps: recorded. loss: largest relative distance of the recorded loss from the trained one; None without a
    record. layers: those that called a softmax of attention. silent: modules called attention that did not. seen:
    layers with logits in the log. gaps: layers not seen and silent modules, each with the reason in the report.
    missing: what else the report says is missing, by reason. faults: errors of ours.
    """

    group: str
    name: str
    about: str = ""
    skipped: str = ""
    identical: bool = False
    steps: int = 0
    loss: float | None = None
    layers: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    gaps: dict[str, str] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def unexplained(self) -> list[str]:
        """Attention layers that were not seen, and of which nothing is said."""
        return [layer for layer, reason in self.gaps.items() if not reason]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested outputs of a model."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)
