"""What a model of many modules costs: attaching, putting a step together, steps that measure little, first steps.

    python -m benchmarks.many_modules --write      about two minutes; writes benchmarks/results/many-modules.md
    python -m benchmarks.many_modules --blocks 50  a smaller stack, to see that it runs

Stacks of blocks `Sequential(Linear, ReLU)` as wide as 8 or 16, so that next to nothing of a step is the model's own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

import stabwatch
from benchmarks.report import machine, table
from stabwatch.runtime.step_buffer import Extent

RESULTS = Path(__file__).parent / "results" / "many-modules.md"
LAYERS = (2, 20, 80, 200)
CALLS = 1000
"""Modules that do nothing, of one forward."""


class Watched:
    """A stack of blocks with its optimizer, watched or not."""

    def __init__(self, blocks: int, width: int = 16) -> None:
        stack = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(blocks)]
        self.model, self.batch = nn.Sequential(*stack), torch.randn(8, width)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)

    def attach(self, **settings: bool) -> stabwatch.Watch:
        """Watch it, without an agent."""
        folder = tempfile.mkdtemp()
        return stabwatch.attach(
            self.model, self.optimizer, run_dir=folder, agent=False, verbose=False, **settings
        )  # fmt: skip

    def step(self) -> None:
        """One step of the training."""
        self.model(self.batch).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def seconds(action: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def flush(blocks: int) -> float:
    """Microseconds in which all that a step has measured is put together: the median of 200."""
    stack = Watched(blocks)
    watch = stack.attach(every_step=True)
    for _ in range(4):
        stack.step()
    buffer = watch._session._taps.now.buffer
    found = median(seconds(lambda: buffer.send(Extent.ALL)) for _ in range(200))
    watch.detach()
    return 1e6 * found


def module_call() -> float:
    """Microseconds that a call of a module takes longer in steps that measure nothing there."""
    model = nn.Sequential(nn.Linear(4, 4), *(nn.Identity() for _ in range(CALLS)))
    optimizer, batch = torch.optim.SGD(model.parameters(), 0.01), torch.randn(2, 4)
    bare = median(seconds(lambda: model(batch)) for _ in range(300))
    watch = stabwatch.attach(model, optimizer, run_dir=tempfile.mkdtemp(), agent=False, verbose=False)
    watched = []
    for i in range(340):
        measured, began = watch._session.flags.sampled, time.perf_counter()
        out = model(batch)
        if i >= 40 and not measured:
            watched.append(time.perf_counter() - began)
        out.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    watch.detach()
    return 1e6 * (median(watched) - bare) / CALLS


def stack_of(blocks: int) -> tuple[object, ...]:
    """Attaching, a bare step, the first three watched ones and the median of thirty."""
    stack = Watched(blocks, width=8)
    bare = median(seconds(stack.step) for _ in range(5))
    began = time.perf_counter()
    watch = stack.attach()
    attached = time.perf_counter() - began
    steps = [seconds(stack.step) for _ in range(30)]
    watch.detach()
    first = ", ".join(f"{x:.2f}" for x in steps[:3])
    return sum(1 for _ in stack.model.modules()), attached, bare, first, median(steps)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="*", default=[100, 2500, 5000], help="lengths of the stacks")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    flushes = table(("layers", "µs"), [(blocks, flush(blocks)) for blocks in LAYERS])
    stacks = table(
        ("modules", "attach (s)", "bare step (s)", "first three steps (s)", "median of 30 (s)"),
        [stack_of(blocks) for blocks in options.blocks],
    )
    text = f"""# Many modules

`python -m benchmarks.many_modules --write` on {machine()}, one thread.

## Putting a step together

All tiers, by the number of layers:

{flushes}

## A call of a module in a step that measures nothing there

{module_call():.2f} µs longer than without a watch.

## Stacks of blocks

{stacks}
"""
    print(text)
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
