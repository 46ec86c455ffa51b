"""What watching costs a compiled training: time to compile, graphs, and steps afterwards.

    python benchmarks/compile_time.py            about two minutes
    python benchmarks/compile_time.py --quick    with the back end `aot_eager`, which needs no compiler of C++

A GPT of 4 layers under `torch.compile`, bare and with default settings, each in a process of its own with an empty
cache. Time is processor time, that of the compilers that are started included, of the first 32 steps less as many later
ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

STEPS, LATER = 32, 32
"""Steps in which everything is compiled, and later ones."""


def train(watched: bool, backend: str) -> dict[str, Any]:
    """Train in this process; gives what was compiled, when, and how long steps take."""
    import torch
    import torch.nn.functional as F
    from torch._dynamo.utils import counters

    from stabwatch import attach
    from stabwatch.demo import GPT, DemoConfig, batches, corpus

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = DemoConfig(width=64, layers=4, context=64, batch=4)
    model, draw = GPT(config), batches(corpus(), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.compile(lambda x: 2 * x, backend=backend)(torch.ones(2))  # what is imported and set up once
    counters.clear()
    watch = attach(model, optimizer, run_dir=tempfile.mkdtemp(), agent=False, verbose=False) if watched else None
    call = torch.compile(model, backend=backend)
    costs: list[float] = []
    compiled: dict[int, int] = {}
    for step in range(STEPS + LATER):
        tokens, following = draw()
        before, graphs = _cost(), counters["stats"]["unique_graphs"]
        optimizer.zero_grad()
        F.cross_entropy(call(tokens).flatten(0, 1), following.flatten()).backward()
        optimizer.step()
        costs.append(_cost() - before)
        if counters["stats"]["unique_graphs"] > graphs:
            compiled[step] = counters["stats"]["unique_graphs"] - graphs
    if watch is not None:
        watch.detach()
    usual = median(costs[STEPS:])
    return {
        "seconds": sum(costs[:STEPS]) - STEPS * usual,
        "graphs": sum(compiled.values()),
        "breaks": sum(counters["graph_break"].values()),
        "last": max(compiled),
        "step_ms": 1e3 * usual,
        "parameters": sum(p.detach().double().abs().sum().item() for p in model.parameters()),
    }


def _cost() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the back end `aot_eager`")
    parser.add_argument("--one", choices=["bare", "stabwatch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(train(options.one == "stabwatch", "aot_eager" if options.quick else "inductor")))
        return
    rows = {name: _in_process(name, options.quick) for name in ("bare", "stabwatch")}
    print("| training | compile, s | graphs | breaks | last compilation at step | later step, ms |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        facts = f"{row['graphs']} | {row['breaks']} | {row['last']} | {row['step_ms']:.1f}"
        print(f"| {name} | {row['seconds']:.1f} | {facts} |")
    bare, watched = rows.values()
    same = "the same" if bare["parameters"] == watched["parameters"] else "NOT the same"
    print(f"\nRatio of the times to compile {watched['seconds'] / bare['seconds']:.2f}; weights at the end: {same}.")


def _in_process(name: str, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        own = {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONHASHSEED": "0"}
        command = [sys.executable, __file__, "--one", name, *(["--quick"] if quick else [])]
        began = time.monotonic()
        done = subprocess.run(command, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True, check=True)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
