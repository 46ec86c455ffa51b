"""Does the log-alignment ratio of the last layer fall when a network begins to overfit?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch
from benchmarks.report import table
from stabwatch.runlog import read_run

TITLE = "Log-alignment ratio (overfitting)"
CLAIM = """arXiv:2605.28975, as its public implementation bo-ke/llm-internal-medicine describes it [docs/lar.md]: the log-alignment ratio of a linear layer is about 1/2 at a
random start, rises to values between 1/2 and 3/4 in healthy training, and falls, ever faster, when overfitting begins."""
STEPS = 1200
SETUP = f"""An MLP 32-128-128-10 learns labels that another network draws, a fifth of them replaced by random ones, from 256 samples (it overfits) and from 16,384, batches of 64,
Adam 1e-3, {STEPS} steps. `log_alignment_ratio` of the last layer and of the first, and the loss on 2,048 other samples with the same share of random labels, mean over four
parts of the run."""


def drawn(count: int, teacher: nn.Module, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples and labels."""
    x = torch.randn(count, 32, generator=draw)
    with torch.no_grad():
        y = teacher(x).argmax(dim=1)
    wrong = torch.rand(count, generator=draw) < 0.2
    return x, torch.where(wrong, torch.randint(10, (count,), generator=draw), y)


def network() -> nn.Sequential:
    """Three linear layers."""
    return nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def train(samples: int) -> tuple[Any, list[float], list[float]]:
    """The run log, losses of training and those on other samples."""
    torch.manual_seed(0)
    draw, teacher = torch.Generator().manual_seed(1), network()
    data, other = drawn(samples, teacher, draw), drawn(2048, teacher, draw)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses, outside = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        settings = dict(run_dir=path, agent=False, verbose=False, every_step=True, include="^[04]$")
        with stabwatch.attach(model, optimizer, **settings):
            for _ in range(STEPS):
                chosen = torch.randint(samples, (64,), generator=draw)
                loss = F.cross_entropy(model(data[0][chosen]), data[1][chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                with torch.no_grad():
                    outside.append(F.cross_entropy(model(other[0]), other[1]).item())
        return read_run(path), losses, outside


def main() -> str:
    """Table and verdict."""
    rows, last, rises = [], {}, {}
    for samples in (256, 16384):
        log, losses, outside = train(samples)
        for layer, name in (("4", "last layer"), ("0", "first layer")):
            steps, values = log.series("log_alignment_ratio", layer)
            parts = [float(values[steps * 4 // STEPS == part].mean()) for part in range(4)]
            rows.append((f"{samples} samples: {name}", *parts))
            last.setdefault(samples, parts)
        for name, course in (("loss", losses), ("loss of others", outside)):
            rows.append((f"{samples} samples: {name}", *(float(part.mean()) for part in np.split(np.array(course), 4))))
        rises[samples] = rows[-1][-1] > 1.2 * min(rows[-1][1:])
    head = ("", *(f"steps {STEPS // 4 * i} to {STEPS // 4 * (i + 1)}" for i in range(4)))
    few, many = last[256], last[16384]
    falls = {samples: parts[-1] < max(parts) - 0.01 for samples, parts in last.items()}
    told = falls[256] and not falls[16384]
    return f"""{table(head, rows)}

**Verdict.** With 256 samples the loss of others {"rises" if rises[256] else "does not rise"} while that of training falls; the ratio of the last layer goes from {few[0]:.3f} to {few[-1]:.3f}, with 16,384 from
{many[0]:.3f} to {many[-1]:.3f}. So a fall {"tells" if told else "does not tell"} overfitting here{"" if told or not falls[16384] else ": the ratio falls in the run without it, too"}. One seed, a network of three layers: no rule, the
signal is evidence."""
