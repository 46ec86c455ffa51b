"""Looped models: does the spectral norm of the injection decide whether the loop explodes, and is that seen in time?"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch
from benchmarks.report import table
from stabwatch.alerts import Engine
from stabwatch.alerts.timeline import lead, timeline
from stabwatch.runlog import RunLog, read_run

TITLE = "Looped models, call by call (Parcae)"
CLAIM = """Parcae [abstract, code: sandyresearch/parcae]: what blows up looped models are large spectral norms of the injection, by which each
call of the core mixes its state with the input; a diagonal injection whose decay is between 0 and 1 keeps the loop stable. (The paper has no
number in our sources that could be compared.)"""
SETUP = """A core of width 32 that each forward calls 16 times: injection, norm, a linear layer with tanh, then a norm and a softmax over 8
classes; AdamW at 3e-2 without weight decay, batches of 32, 120 steps. Injections: a matrix W [x, e] that begins as x + e, x + e
itself, and a decay exp(-softplus(d) exp(a)) x + softplus(d) B e. All numbers are from the run log: sigma, the largest singular value of the state
half of the matrix (known without measuring for the other two), `loop_gain_ratio` and `loop_growth`, and `loop_step_ratio` of the last
call. The alert is that of `LoopGrowth` under the rules as they are; loss alerts are any whose rule is about the loss."""
WIDTH, CALLS, STEPS, RATE = 32, 16, 120, 3e-2


class LinearInjection(nn.Module):
    """W [x, e], which begins as x + e."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat((torch.eye(WIDTH), torch.eye(WIDTH)), dim=1))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """(B, width) twice -> (B, width)."""
        return torch.cat((x, e), -1) @ self.weight.T


class AdditiveInjection(nn.Module):
    """x + e."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """(B, width) twice -> (B, width)."""
        return x + e


class DiagonalInjection(nn.Module):
    """A decay of the state, feature by feature, as in Parcae's code."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.log = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.matrix = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """(B, width) twice -> (B, width)."""
        size = F.softplus(self.rate)
        return torch.exp(-size * self.log.exp()) * x + size * self.matrix(e)


class Core(nn.Module):
    """What is called several times."""

    def __init__(self, injection: nn.Module) -> None:
        super().__init__()
        self.injection, self.norm, self.inner = injection, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """(B, width) twice -> (B, width)."""
        x = self.injection(x, e)
        return x + torch.tanh(self.inner(self.norm(x)))


class Looped(nn.Module):
    """(B, width) -> (B, 8)."""

    def __init__(self, injection: nn.Module) -> None:
        super().__init__()
        self.embed, self.core = nn.Linear(WIDTH, WIDTH), Core(injection)
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        e = self.embed(x)
        state = torch.zeros_like(e)
        for _ in range(CALLS):
            state = self.core(state, e)
        return self.out(self.norm(state))


@dataclass
class Found:
    """What the run log of one run has."""

    log: Any
    losses: list[float]
    alert: int | None
    loss_alert: int | None

    def near(self, signal: str, layer: str, step: int) -> float:
        """The last value at or before a step; NaN for none."""
        steps, values = self.log.series(signal, layer)
        known = values[(steps <= step) & ~np.isnan(values)]
        return float(known[-1]) if len(known) else float("nan")


def train(injection: nn.Module) -> Found:
    """One run."""
    torch.manual_seed(0)
    model, target = Looped(injection), torch.randn(WIDTH, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with stabwatch.attach(model, optimizer, run_dir=path, agent=False, verbose=False, every_step=True):
            for _ in range(STEPS):
                x = torch.randn(32, WIDTH)
                loss = F.cross_entropy(model(x), (torch.tanh(x) @ target).argmax(1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        engine, run = Engine(), RunLog(path)
        for item in timeline(run, run.poll_events()):
            lead(engine, item)
        first: dict[bool, int] = {}
        for alert in engine.history:
            if alert.rule == "LoopGrowth" or alert.rule.startswith("Loss"):
                first.setdefault(alert.rule == "LoopGrowth", alert.step)
        return Found(read_run(path), losses, first.get(True), first.get(False))


def main() -> str:
    """Tables and verdict."""
    torch.manual_seed(1)
    runs = {
        "linear": train(LinearInjection()),
        "additive": train(AdditiveInjection()),
        "diagonal": train(DiagonalInjection()),
    }
    rows = []
    for name, run in runs.items():
        for step in (2, 15, STEPS - 1):
            sigma = run.near("singular_value_max", "core.injection.weight.state", step) if name == "linear" else None
            rows.append(
                (
                    *(
                        f"{name}, step {step}",
                        "" if sigma is None else sigma,
                        run.near("loop_gain_ratio", "core", step),
                    ),
                    *(run.near("loop_growth", "core", step), run.near("loop_step_ratio", f"core[{CALLS - 1}]", step)),
                    run.losses[step],
                )
            )
    head = ("", "sigma of the state half", "loop_gain_ratio", "loop_growth", "loop_step_ratio, last call", "loss")
    linear = runs["linear"]
    quiet = [name for name, run in runs.items() if run.alert is None]
    seen = "not at all" if linear.loss_alert is None else f"at step {linear.loss_alert}"
    alert = "never" if linear.alert is None else f"at step {linear.alert}"
    loss = linear.losses[0 if linear.alert is None else linear.alert]
    return f"""{table(head, rows)}

**Verdict.** The linear injection explodes and the others do not: its state grows {linear.near("loop_gain_ratio", "core", STEPS - 1):.2g}-fold within a forward at the end, that of the sum
{runs["additive"].near("loop_gain_ratio", "core", STEPS - 1):.3g}-fold and that of the decay {runs["diagonal"].near("loop_gain_ratio", "core", STEPS - 1):.3g}-fold. `LoopGrowth` fires {alert}, where the loss is {loss:.3g} (at first {linear.losses[0]:.3g}); a rule on the loss
fires {seen}. Silent: {", ".join(quiet) or "none"}."""
