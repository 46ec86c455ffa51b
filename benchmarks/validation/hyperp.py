"""Indicators under a Frobenius-sphere constraint."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import stabwatch
from benchmarks.report import table
from stabwatch.demo import GPT, DemoConfig, batches, corpus
from stabwatch.runlog import read_run

TITLE = "Indicators on a Frobenius sphere (HyperP)"
CLAIM = """microsoft/ArchScale [abstract, code]: with every matrix kept on a sphere of constant Frobenius norm, the indicators (attention z, output RMS,
outlier share) stay bounded and do not increase with training; weight decay is then a first-order no-op."""
SETUP = """The demo's GPT (width 64, 3 layers) at AdamW 1e-2, 200 steps, free and with every matrix scaled back to its first Frobenius norm after
each step; weight decay 0 and 0.1. Last: mean of the last 20 steps; growth: over the mean of steps 20 to 40."""
STEPS = 200


def train(sphere: bool, decay: float) -> dict[str, np.ndarray]:
    """Indicator by step, largest over layers."""
    torch.manual_seed(0)
    config = DemoConfig(width=64, layers=3, heads=4, context=64, batch=8, seed=0)
    model, draw = GPT(config), batches(corpus(1 << 20), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=decay)
    matrices = {p: p.detach().norm().item() for p in model.parameters() if p.dim() > 1}
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(run_dir=Path(folder) / "run", agent=False, verbose=False, every_step=True)
        with stabwatch.attach(model, optimizer, **settings):
            for _ in range(STEPS):
                tokens, following = draw()
                loss = F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if sphere:
                    with torch.no_grad():
                        for p, norm in matrices.items():
                            p.mul_(norm / p.norm())
        run = read_run(Path(folder) / "run")
    attention = np.max([run.series("attention_z", f"blocks.{i}.attn")[1] for i in range(3)], axis=0)
    rms = np.max([run.series("output_rms", f"blocks.{i}")[1] for i in range(3)], axis=0)
    return {"attention z": attention, "output RMS": rms, "loss": run.series("loss")[1]}


def main() -> str:
    """Tables and verdict."""
    runs = {(sphere, decay): train(sphere, decay) for sphere in (False, True) for decay in (0.0, 0.1)}
    rows, growth = [], {}
    for (sphere, decay), found in runs.items():
        last = {name: float(v[-20:].mean()) for name, v in found.items()}
        growth[sphere, decay] = {name: last[name] / float(v[20:40].mean()) for name, v in found.items()}
        g = growth[sphere, decay]
        label = f"{'sphere' if sphere else 'free'}, weight decay {decay:g}"
        rows.append((label, last["attention z"], g["attention z"], last["output RMS"], g["output RMS"], last["loss"]))
    head = ("", "attention z, last", "growth", "output RMS, last", "growth", "loss, last")
    gap = abs(rows[2][5] - rows[3][5])  # type: ignore[operator]
    less = all(growth[True, 0.0][k] < growth[False, 0.0][k] for k in ("attention z", "output RMS"))
    bounded = all(growth[True, 0.0][k] < 1.1 for k in ("attention z", "output RMS"))
    return f"""{table(head, rows)}

**Verdict.** On the sphere both indicators grow less than without: {"yes" if less else "no"}; they do not increase at all: {"yes" if bounded else "no"}. Weight decay changes the
loss on the sphere by {gap:.3f}. Two hundred steps say nothing about scaling laws."""
