"""What watching costs on a GPU: a GPT of 355 M parameters in bfloat16, bare and watched, interleaved in one run.

    python benchmarks/overhead_gpu.py                     eager; about two minutes on an H100
    python benchmarks/overhead_gpu.py --compiled blocks   with torch.compile, block by block
    python benchmarks/overhead_gpu.py --compiled whole    the whole model, whose compilation takes minutes

As `overhead.py`: each variant is a process of its own, and the others are stopped in its turn. Steps are timed by
events on the device, so that the host may run ahead as it does in a training that nobody measures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from overhead import BASE, OWN, RESULTS, Plan, machine, measure, summarise, table
from overhead_variants import VARIANTS
from torch import nn

from benchmarks import large

NAMES = (BASE, "bare again", "stabwatch", OWN)
DEVICE = torch.device("cuda")


@dataclass(frozen=True)
class GpuPlan(Plan):
    """What is trained, as in `large.py`."""

    width: int = large.MEDIUM.width
    layers: int = large.MEDIUM.layers
    heads: int = large.MEDIUM.heads
    context: int = large.MEDIUM.context
    batch: int = large.MEDIUM.batch
    vocabulary: int = large.VOCABULARY
    rounds: int = 16
    steps: int = 10
    warm_up: int = 6
    settle: int = 60
    compiled: str = ""


def work(name: str, plan: GpuPlan, folder: Path, pipe: Connection) -> None:
    """Train, as many steps as the other end asks for; answer with (kind, seconds) of each."""
    folder.mkdir()
    os.chdir(folder)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(plan.seed)
    with DEVICE:
        model = large.Large()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    variant = VARIANTS[name](model, optimizer, folder)
    called = _compiled(model, plan.compiled)
    data = [large.rows(DEVICE, seed) for seed in range(8)]
    count = 0

    def step() -> str:
        nonlocal count
        kind, count = variant.kind(), count + 1
        loss = large.loss(called, *data[count % len(data)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return kind

    kinds = Counter(step() for _ in range(plan.warm_up))
    torch.cuda.synchronize()
    pipe.send((sum(p.numel() for p in model.parameters()), torch.get_num_threads()))
    while (steps := pipe.recv()) > 0:
        variant.wake()
        done = _timed(step, steps)
        kinds.update(kind for kind, _ in done)
        pipe.send(done)
    facts = variant.close()
    peak = torch.cuda.max_memory_allocated() / 2**30
    pipe.send({"elements": variant.elements, "kinds": dict(kinds), "peak_gib": peak, **facts})


def _compiled(model: large.Large, form: str) -> nn.Module:
    """As a whole, which takes minutes, or block by block, which share one graph."""
    if form == "blocks":
        for block in model.blocks:
            block.compile()
    return torch.compile(model) if form == "whole" else model


def _timed(step: object, steps: int) -> list[tuple[str, float]]:
    """A first step fills the queue of the device and is not counted."""
    ends, kinds = [], []
    for _ in range(steps + 1):
        kinds.append(step())  # type: ignore[operator]
        end = torch.cuda.Event(enable_timing=True)
        end.record()
        ends.append(end)
    torch.cuda.synchronize()
    seconds = [a.elapsed_time(b) / 1e3 for a, b in pairwise(ends)]
    return list(zip(kinds[1:], seconds, strict=True))


def main() -> None:
    """The command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", choices=["blocks", "whole"], default="", help="with torch.compile")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after so many, no new round begins")
    parser.add_argument("--rounds", type=int, default=GpuPlan.rounds)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    plan = replace(GpuPlan(), compiled=options.compiled, rounds=options.rounds)
    began = time.perf_counter()
    times, facts, found = measure(list(options.only), plan, work, at_once=True, seconds=options.seconds)
    rows, where = summarise(times, facts), machine(plan, found)
    where["device"] = torch.cuda.get_device_name()
    form = f"torch.compile of the {plan.compiled}" if plan.compiled else "eager"
    head = f"{where['device']}, {form}; {time.perf_counter() - began:.0f} s in all.\n\n"
    text = head + table(rows, where, "bfloat16 autocast, fused")
    print(text)
    name = f"overhead-gpu-{plan.compiled or 'eager'}"
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{name}.md").write_text(text, encoding="utf-8")
    data = {"machine": where, "variants": rows, "facts": facts}
    (options.results / f"{name}.json").write_text(json.dumps(data) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
