"""Low-rank adapters: which scaling keeps the adapter's gain independent of its rank?"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch
from benchmarks.report import table
from stabwatch.runlog import read_run

TITLE = "Gain of low-rank adapters over their rank (rsLoRA)"
CLAIM = """Kalajdzievski 2023, arXiv:2312.03732 [abstract]: the usual scaling alpha / r slows learning down at higher ranks, because what the
adapter adds shrinks with the rank; alpha / sqrt(r) is the scaling with which it neither collapses nor grows. So the exponent of
`adapter_gain_ratio` in r should be 0 for alpha / sqrt(r) and below 0 for alpha / r."""
SETUP = """A residual MLP of width 128 is trained on one task for 200 steps and adapted to another by PEFT, with ranks 2 to 128, alpha 16, 60 steps
of SGD at 0.02 or of Adam at 1e-3; `adapter_gain_ratio` of the last measurement (mean in the logarithm over two layers), as stabwatch
measures it, and its exponent in r by least squares."""
RANKS, STEPS, WIDTH, ALPHA = (2, 8, 32, 128), 60, 128, 16


class Net(nn.Module):
    """(B, width) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(x + self.down(torch.relu(self.up(x))))


def task(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(512, WIDTH, generator=draw)
    return x, (torch.relu(x @ torch.randn(WIDTH, 40, generator=draw)) @ torch.randn(40, 10, generator=draw)).argmax(1)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], count: int) -> float:
    """Train on whole batches; returns the last loss."""
    loss = torch.zeros(())
    for _ in range(count):
        loss = F.cross_entropy(model(data[0]), data[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def adapt(base: nn.Module, rank: int, scaled: bool, adam: bool) -> tuple[float, float, float]:
    """Gain, change of the gain by one step, and loss at the end. scaled: by alpha / sqrt(r)."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=["up", "down"], use_rslora=scaled)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    mine = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(mine, lr=1e-3) if adam else torch.optim.SGD(mine, lr=0.02)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with stabwatch.attach(model, optimizer, run_dir=path, agent=False, verbose=False, every_step=True):
            loss = steps(model, optimizer, task(1), STEPS)
        log = read_run(path)
    found = []
    for signal in ("adapter_gain_ratio", "adapter_change_ratio"):
        last = [v[~np.isnan(v)][-1] for v in (log.series(signal, layer)[1] for layer in ("up", "down"))]
        found.append(float(np.exp(np.mean(np.log(last)))))
    return found[0], found[1], loss


def main() -> str:
    """Table and verdict."""
    torch.manual_seed(0)
    base = Net()
    steps(base, torch.optim.Adam(base.parameters(), lr=1e-3), task(0), 200)
    rows, powers = [], {}
    for adam in (False, True):
        for scaled in (False, True):
            found = [adapt(base, rank, scaled, adam) for rank in RANKS]
            gains = [gain for gain, _, _ in found]
            power = float(np.polyfit(np.log(RANKS), np.log(gains), 1)[0])
            change = float(np.polyfit(np.log(RANKS), np.log([c for _, c, _ in found]), 1)[0])
            name = f"{'Adam' if adam else 'SGD'}, alpha / {'sqrt(r)' if scaled else 'r'}"
            powers[adam, scaled] = power
            rows.append((name, *gains, power, change, found[0][2], found[-1][2]))
    head = (
        "gain",
        *(f"r = {r}" for r in RANKS),
        "exponent",
        "exponent of the change",
        "loss, r = 2",
        f"loss, r = {RANKS[-1]}",
    )
    sgd = abs(powers[False, True]) < 0.15 and powers[False, False] < -0.4
    part = (
        "reproduces in part" if abs(powers[False, True]) < abs(powers[False, False]) / 3 else "does not reproduce here"
    )
    adam = abs(powers[True, True]) < 0.15 and powers[True, False] < -0.4
    stable = "alpha / r" if abs(powers[True, False]) < abs(powers[True, True]) else "alpha / sqrt(r)"
    return f"""{table(head, rows)}

**Verdict.** With SGD the claim {"reproduces" if sgd else part}: exponents {powers[False, False]:.2f} with alpha / r and {powers[False, True]:.2f} with alpha / sqrt(r). With Adam it
{"does too" if adam else "does not"}: {powers[True, False]:.2f} and {powers[True, True]:.2f}, so that {stable} is the one closer to 0 here (a step of Adam has one size per parameter, whatever the
scaling does to the gradient). So stabwatch shows rank, scaling and gain, and calls none of the scalings right."""
