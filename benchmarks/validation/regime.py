"""Does the cosine of a fixed batch's activations with the last ones tell phases of a run apart, and a healthy run?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import stabwatch
from benchmarks.report import table
from stabwatch.demo import GPT, DemoConfig, batches, corpus
from stabwatch.hooks.base.flags import PHASES
from stabwatch.runlog import read_run

TITLE = "Regimes by the lagged cosine of activations (Leap+Verify)"
CLAIM = """Leap+Verify, arXiv:2602.19580 [abstract]: the cosine of successive activations of a fixed probe tells chaotic, transitional and stable phases of a training
apart. (Weights are then predicted some steps ahead, which is not tried here. The paper's limits come from GPT-2.)"""
STEPS, RATES = 320, (3e-4, 3e-3, 0.1, 1.0)
SETUP = f"""The demo's GPT (width 64, 2 layers, context 64) on the standard library's sources, AdamW, {STEPS} steps at four rates, of which the last two ruin
the model; `activation_lagged_cosine` of four samples every {PHASES} steps, median over layers and measurements of four parts of the run."""


def train(rate: float) -> tuple[Any, list[float]]:
    """The run log, and the losses."""
    torch.manual_seed(0)
    config = DemoConfig(width=64, layers=2, heads=4, context=64, batch=8)
    model, draw = GPT(config), batches(corpus(1 << 20), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with stabwatch.attach(model, optimizer, run_dir=path, agent=False, verbose=False, every_step=True) as watch:
            watch.probe(draw()[0][:4])
            for _ in range(STEPS):
                tokens, following = draw()
                loss = F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return read_run(path), losses


def parts(log: Any, signal: str) -> list[float]:
    """Medians over layers and measurements in four parts of the run."""
    keys = [key for key in log.keys if key.signal == signal]
    steps = np.concatenate([log.series(signal, key.layer)[0] for key in keys])
    values = np.concatenate([log.series(signal, key.layer)[1] for key in keys])
    return [float(np.nanmedian(values[steps * 4 // STEPS == part])) for part in range(4)]


def main() -> str:
    """Table and verdict."""
    rows, away, ranks, ends = [], [], [], []
    for rate in RATES:
        log, losses = train(rate)
        away.append([1 - cosine for cosine in parts(log, "activation_lagged_cosine")])
        ranks.append(parts(log, "activation_lagged_cosine_rank"))
        ends.append(float(np.mean(losses[-STEPS // 4 :])))
        rows.append((f"{rate:g}: 1 - cosine", *away[-1]))
        rows.append((f"{rate:g}: rank in the run", *ranks[-1]))
        rows.append((f"{rate:g}: loss", *(float(np.mean(part)) for part in np.split(np.array(losses), 4))))
    head = ("rate", *(f"steps {STEPS // 4 * i} to {STEPS // 4 * (i + 1)}" for i in range(4)))
    slower = all(a[-1] < a[0] for a in away[:2])
    well, ruined = max(a[-1] for a in away[:2]), [a[-1] for a in away[2:]]
    return f"""{table(head, rows)}

**Verdict.** In the runs that learn, activations {"change ever more slowly" if slower else "do not change ever more slowly"}: 1 - cosine goes from {away[0][0]:.2g} to {away[0][-1]:.2g} and from {away[1][0]:.2g} to {away[1][-1]:.2g}. In the
ruined ones (loss {ends[2]:.2f} and {ends[3]:.2f} at the end) it is {ruined[0]:.2g} and {ruined[1]:.2g} at the end, {"above" if min(ruined) > well else "not always above"} the {well:.2g} of the faster run that learns, and the rank in
the run is {ranks[2][-1]:.2f} and {ranks[3][-1]:.2f}. No limit for all rates is seen; the signals are a label within one run, and have no rule. One seed."""
