"""What each signal costs on the CPU: host time of its probe over the time of a bare step.

    python benchmarks/cost.py            about two minutes; writes benchmarks/results/cost.json
    python benchmarks/cost.py --print    only prints

The model is that of overhead.py. A figure is the cost of measuring a signal on a step that measures it; where sites
take turns, of the mean turn. Signals of one reduction share it. On an accelerator host time is not the cost, and this
script says nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

import stabwatch
from benchmarks.report import machine, table
from stabwatch.demo import GPT, DemoConfig, batches, corpus
from stabwatch.schedule import TURNS
from stabwatch.signals import CATALOGUE, Signal

RESULTS = Path(__file__).parent / "results" / "cost.json"
ROUNDS = 2
PROBES = {
    ("activation", "moments"): "activation", ("gradient", "moments"): "gradient", ("weight", "moments"): "weight",
    ("update", "update"): "update", ("gradient", "clip"): "clip", ("attention", "attention_bracket"): "attention",
    ("attention", "attention_exact"): "attention_exact", ("loss", "mean"): "loss", ("logits", "logsumexp"): "loss",
    ("logits", "certainty"): "loss", ("logits", "classes"): "loss", ("writer", "units"): "mean_mode",
    ("step", "taylor"): "taylor", ("logits", "scaling"): "loss", ("update", "invariance"): "radial",
    ("group", "group"): "gradient", ("writer", "branch"): "mean_mode",
}  # fmt: skip
"""The probe that measures a reduction at a tap, where it is not called after the reduction."""


def probe_of(signal: Signal) -> str | None:
    """Name of the probe that measures a signal; None for numbers that the host has anyway."""
    if signal.tap in ("host", "logged"):
        return None
    return PROBES.get((signal.tap, signal.reduction), signal.reduction)


def steps(count: int, model: GPT, draw, optimizer) -> list[float]:
    """Seconds of each of so many training steps."""
    out = []
    for _ in range(count):
        tokens, following = draw()
        start = time.perf_counter()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        out.append(time.perf_counter() - start)
    return out


def measure(width: int = 384, layers: int = 6, context: int = 256) -> dict[str, float]:
    """Cost by probe, as a share of a bare step; and under 'worst step' the longest step over the median one."""
    torch.manual_seed(0)
    config = DemoConfig(width=width, layers=layers, heads=width // 64 or 1, context=context, batch=4)
    model, draw = GPT(config), batches(corpus(), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    bare = median(steps(8, model, draw, optimizer)[2:])
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(run_dir=Path(folder) / "run", agent=False, verbose=False, every_step=True, taylor=True)
        with stabwatch.attach(model, optimizer, **settings) as watch:
            watch.probe(draw()[0][:1])
            steps(3, model, draw, optimizer)
            watch.guard.spent.clear()
            seen = steps(ROUNDS * TURNS, model, draw, optimizer)
            spent = dict(watch.guard.spent)
    cost = {probe: seconds / (ROUNDS * TURNS) / bare for probe, seconds in spent.items()}
    return {**cost, "worst step": max(seen) / median(seen)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="write no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cost = measure()
    print(table(("probe", "share of a step"), sorted(cost.items(), key=lambda item: -item[1])))
    if not options.print:
        found = {s.name: cost[p] for s in CATALOGUE if (p := probe_of(s)) in cost}
        RESULTS.write_text(
            json.dumps({"where": f"GPT of 10.9 M parameters, {machine()}", "cost": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
