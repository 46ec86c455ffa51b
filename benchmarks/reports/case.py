"""What a case is, what a healthy workload is, and the trial that their training functions receive."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stabwatch

LAST = 10
"""Values at the end of a series whose median is its final value."""


@dataclass(frozen=True)
class Outcome:
    """What the training loop itself saw of a run.

    losses: the loss of each step. facts: further numbers of each step, by name. folders: the run folders, one for each
    watched model.
    """

    losses: list[float]
    facts: dict[str, list[float]]
    folders: tuple[Path, ...] = ()

    def final(self, name: str = "loss") -> float:
        """Median of the last values of the loss or of a fact; NaN if one of them is not finite."""
        values = (self.losses if name == "loss" else self.facts[name])[-LAST:]
        return median(values) if all(map(math.isfinite, values)) else math.nan

    def save(self, file: Path) -> None:
        """Write what can be read again; the run folders lie beside the file."""
        names = [folder.name for folder in self.folders]
        file.write_text(json.dumps({"losses": self.losses, "facts": self.facts, "folders": names}), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Outcome:
        """What `save` wrote."""
        data = json.loads(file.read_text(encoding="utf-8"))
        return cls(data["losses"], data["facts"], tuple(file.parent / name for name in data["folders"]))

    def first(self, name: str = "loss") -> float:
        """Median of the first values of the loss or of a fact."""
        return median((self.losses if name == "loss" else self.facts[name])[:LAST])


class Trial:
    """One training: says whether it is the broken one, attaches stabwatch, and keeps what the loop prints.

    folder: where run folders are made; None trains without stabwatch. settings: of `stabwatch.attach`.
    """

    def __init__(self, broken: bool, steps: int, folder: Path | None = None, seed: int = 0, **settings: Any) -> None:
        self.broken = broken
        self.steps = steps
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self._seed, self._folder, self._settings = seed, folder, settings
        self._watches: list[stabwatch.Watch] = []
        self._losses: list[float] = []
        self._facts: dict[str, list[float]] = {}

    def attach(self, model: Any, optimizer: Any = None) -> None:
        """Attach stabwatch in the way of one line, to a model or to a trainer."""
        if self._folder is None:
            return
        folder = self._folder / str(len(self._watches))
        self._watches.append(
            stabwatch.attach(model, optimizer, run_dir=folder, agent=False, verbose=False, **self._settings)
        )

    def log(self, loss: Tensor | float, **facts: Tensor | float) -> None:
        """Keep what the loop would print of this step."""
        self._losses.append(_number(loss))
        for name, value in facts.items():
            self._facts.setdefault(name, []).append(_number(value))

    def tell(self, **numbers: Tensor | float) -> None:
        """Log numbers of this step with the first watch, as a loop does that logs to a tracker."""
        for watch in self._watches[:1]:
            watch.log(**numbers)

    def randint(self, high: int, *shape: int) -> Tensor:
        """Integers below `high`, from the generator of the data."""
        return torch.randint(high, shape, generator=self.generator)

    def randn(self, *shape: int) -> Tensor:
        """Standard normal numbers from the generator of the data."""
        return torch.randn(*shape, generator=self.generator)

    def run(self, train: Callable[[Trial], None]) -> Outcome:
        """Train from the same seed each time."""
        random.seed(self._seed)
        np.random.seed(self._seed)
        torch.manual_seed(self._seed)
        try:
            train(self)
        finally:
            for watch in self._watches:
                watch.detach()
        return Outcome(self._losses, self._facts, tuple(watch.run_dir for watch in self._watches))


def _number(value: Tensor | float) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


Train = Callable[[Trial], None]
Check = Callable[[Outcome, Outcome], bool]
"""Of the broken run and its twin: does the fault show?"""


@dataclass(frozen=True)
class Case:
    """A public report, reproduced.

    mechanism: what a user must be told. causes: names of conditions that say so; a name that is not in the catalogue is
    one of `MISSING`. where: prefixes of layer names that the diagnosis should name, or None. fault: first step at which
    the fault is there. check: whether the fault shows in what the loop printed.
    shown_by: what already shows the fault today, or why nothing can.
    """

    name: str
    train: Train
    source: str
    mechanism: str
    causes: tuple[str, ...]
    check: Check
    where: tuple[str, ...] | None = None
    fault: int = 0
    steps: int = 250
    shown_by: str = ""


@dataclass(frozen=True)
class Workload:
    """A healthy training. learns: does it learn, by what the loop printed?"""

    name: str
    train: Train
    learns: Callable[[Outcome], bool]
    steps: int = 600
    about: str = ""


MISSING = {
    "BuffersNotAveraged": "running statistics of the averaged model are still those of its start",
    "WeightsNotLoaded": "the names in a checkpoint fit no parameter, and nothing was loaded",
    "FullyMaskedRow": "a row of attention has no key that it may attend to",
    "PolicyLeavesReference": "the divergence from the reference policy grows without end",
    "PosteriorCollapse": "the divergence of the posterior from the prior is zero: the latent code says nothing",
    "RateComesBack": "the learning rate falls to nothing and comes back to its height again and again",
    "SamplesDuplicated": "a batch holds the same samples several times",
    "TargetsUnpaired": "targets do not belong to their inputs",
    "TooGood": "the loss falls below what the data allow: the answer is in the input",
}  # fmt: skip
"""Causes that cases accept and that no condition of the catalogue names today, each with what it says."""


@dataclass
class Registry:
    """Cases or workloads in the order in which they are declared."""

    cases: list[Case] = field(default_factory=list)
    workloads: list[Workload] = field(default_factory=list)

    def report(self, **fields: Any) -> Callable[[Train], Train]:
        """Declare the case that a function trains; its name is the function's."""

        def add(train: Train) -> Train:
            self.cases.append(Case(name=train.__name__, train=train, **fields))
            return train

        return add

    def healthy(self, **fields: Any) -> Callable[[Train], Train]:
        """Declare the healthy workload that a function trains; its first line of documentation says what it is."""

        def add(train: Train) -> Train:
            about = (train.__doc__ or "").split("\n")[0]
            self.workloads.append(Workload(name=train.__name__, train=train, about=about, **fields))
            return train

        return add


REGISTRY = Registry()
report, healthy = REGISTRY.report, REGISTRY.healthy
