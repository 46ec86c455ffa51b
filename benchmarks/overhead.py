"""What watching costs: one training step, bare and watched in several ways, interleaved in one run.

    python benchmarks/overhead.py            about 25 minutes on two cores
    python benchmarks/overhead.py --quick    under a minute; shows that it runs, its numbers mean nothing

Every variant trains the same model from the same weights on the same batches, in a process of its own. One
process runs at a time: in each round the variants take turns in random order, a few steps each, and all the
processes of the others (agents and services among them) are stopped meanwhile. So nothing that a variant
leaves in a process or does in the background is charged to another.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
BASE, OWN = "bare", "stabwatch, every step"


@dataclass(frozen=True)
class Plan:
    """What is trained, and how often."""

    width: int = 384
    layers: int = 6
    heads: int = 6
    context: int = 256
    batch: int = 4
    rounds: int = 60
    steps: int = 3
    """Steps of a variant in one round."""
    warm_up: int = 3
    settle: int = 40
    """Steps before the first round for variants that choose their own intervals."""
    seed: int = 0
    threads: int = 0
    """Threads of torch; 0 leaves the choice to torch."""
    clock: str = "perf_counter"
    """Of the module `time`; `process_time` where other jobs make steps wait."""


QUICK = Plan(width=64, layers=2, heads=2, context=32, rounds=4, settle=8)


# -- in the process of one variant --------------------------------------------------------------------


def work(name: str, plan: Plan, folder: Path, pipe: Connection) -> None:
    """Train, as many steps as the other end asks for; answer with (kind, seconds) of each."""
    import torch
    from overhead_variants import VARIANTS

    from stabwatch.demo import GPT, DemoConfig, batches, corpus

    folder.mkdir()
    os.chdir(folder)
    if plan.threads:
        torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    config = DemoConfig(
        width=plan.width, layers=plan.layers, heads=plan.heads, context=plan.context, batch=plan.batch, seed=plan.seed
    )
    model = GPT(config)
    draw = batches(corpus(), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    variant = VARIANTS[name](model, optimizer, folder)
    clock = getattr(time, plan.clock)

    def step() -> tuple[str, float]:
        batch = draw()
        kind = variant.kind()
        start = clock()
        loss = variant.forward(*batch)
        optimizer.zero_grad()
        loss.backward()
        variant.before_step()
        optimizer.step()
        variant.after_step()
        return kind, clock() - start

    kinds = Counter(step()[0] for _ in range(plan.warm_up))
    pipe.send((sum(p.numel() for p in model.parameters()), torch.get_num_threads()))
    while (steps := pipe.recv()) > 0:
        variant.wake()
        done = [step() for _ in range(steps)]
        kinds.update(kind for kind, _ in done)
        pipe.send(done)
    facts = variant.close()
    checksum = sum(p.detach().double().sum().item() for p in model.parameters())
    pipe.send({"elements": variant.elements, "kinds": dict(kinds), "parameters": checksum, **facts})


Job = Callable[[str, Any, Path, Connection], None]
"""What runs in the process of a variant."""


class Worker:
    """A variant's process, with all of its children; stopped except in its turn."""

    def __init__(self, name: str, plan: Plan, folder: Path, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=job, args=(name, plan, folder, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until its first steps are done."""
        self.parameters, self.threads = self._pipe.recv()
        self._stop()

    def turn(self, steps: int) -> list[tuple[str, float]]:
        """Let it run that many steps."""
        self._continue()
        self._pipe.send(steps)
        done = self._pipe.recv()
        self._stop()
        return done

    def close(self) -> dict[str, Any]:
        """End it; gives its facts."""
        self._continue()
        self._pipe.send(0)
        facts = self._pipe.recv()
        self._process.join()
        return facts

    def kill(self) -> None:
        """End it at once, stopped as it may be."""
        if self._process.is_alive():
            for process in self._tree():
                process.kill()

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def _stop(self) -> None:
        for process in self._tree():
            process.suspend()

    def _continue(self) -> None:
        for process in reversed(self._tree()):
            process.resume()


def settles(name: str) -> bool:
    """Does it choose its own intervals?"""
    return name.startswith("stabwatch") and name != OWN


# -- the comparison -----------------------------------------------------------------------------------

Times = dict[str, list[list[tuple[str, float]]]]
"""By variant: for each round, (kind, seconds) of each step."""


def measure(
    names: list[str], plan: Plan, job: Job = work, at_once: bool = False, seconds: float = math.inf
) -> tuple[Times, dict[str, dict[str, Any]], dict[str, int]]:
    """All rounds. Gives the times, the facts of each variant, and the number of parameters and threads.

    at_once: the processes make their first steps, and compile, side by side. seconds: after so many no round begins
    (but for the first two).
    """
    order = random.Random(plan.seed)
    times: Times = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="stabwatch-overhead-") as folder:
        workers: dict[str, Worker] = {}
        try:
            for i, name in enumerate(names):
                _say(f"starting {name}")
                workers[name] = Worker(name, plan, Path(folder) / str(i), job)
                if not at_once:
                    workers[name].ready()
            for name, worker in workers.items():
                if at_once:
                    worker.ready()
                if settles(name):
                    worker.turn(plan.settle)
            began = time.monotonic()
            for number in range(plan.rounds):
                if number >= 2 and time.monotonic() - began > seconds:
                    break
                _say(f"round {number + 1} of {plan.rounds}")
                for name in order.sample(names, len(names)):
                    times[name].append(workers[name].turn(plan.steps))
            facts = {name: worker.close() for name, worker in workers.items()}
        finally:
            for worker in workers.values():
                worker.kill()
    _say("")
    return times, facts, {"parameters": workers[BASE].parameters, "threads": workers[BASE].threads}


def summarise(times: Times, facts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By variant: step time, ratio to the bare step of the same round, excess over it (milliseconds).

    A variant's excess is the median over steps of the same kind, weighted by how often each kind came: a median
    over all steps would hide the few dear steps of a variant that samples.
    """
    bare = [median(seconds for _, seconds in turn) for turn in times[BASE]]
    rows = {}
    for name, turns in times.items():
        ratios = [median(s for _, s in turn) / base for turn, base in zip(turns, bare, strict=True)]
        kinds: dict[str, list[float]] = {}
        for turn, base in zip(turns, bare, strict=True):
            for kind, seconds in turn:
                kinds.setdefault(kind, []).append(1e3 * (seconds - base))
        steps = sum(len(found) for found in kinds.values())
        excess = sum(median(found) * len(found) for found in kinds.values()) / steps
        low, _, high = quantiles(ratios, n=4)
        rows[name] = {
            "step_ms": 1e3 * median(s for turn in turns for _, s in turn),
            "ratio": median(ratios),
            "ratio_quartiles": [low, high],
            "ratio_amortised": 1 + excess / (1e3 * median(bare)),
            "excess_ms": excess,
            "kinds": {kind: {"steps": len(found), "excess_ms": median(found)} for kind, found in kinds.items()},
            "elements_per_step": facts[name]["elements"] / max(1, sum(facts[name]["kinds"].values())),
            "interval": facts[name].get("interval"),
        }
    for name in ("naive hooks", "wandb.watch", "composer-style activations", "composer-style, with norms"):
        if name in rows:
            row, own = rows[name], rows[OWN]
            row["times_stabwatch"] = row["excess_ms"] / own["excess_ms"]
            share = row["elements_per_step"] / own["elements_per_step"]
            row["times_stabwatch_per_element"] = row["times_stabwatch"] / share
    return rows


def machine(plan: Plan, found: dict[str, int]) -> dict[str, Any]:
    """Where and when this was measured."""
    import torch

    return {
        "command": "python " + " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **asdict(plan),
        **found,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# -- what people read ---------------------------------------------------------------------------------


def table(rows: dict[str, dict[str, Any]], where: dict[str, Any], precision: str = "float32") -> str:
    """Markdown."""
    lines = [
        f"{where['date']}, {where['cpu']}, {where['cores']} cores, {where['threads']} threads, load "
        f"{where['load_average']}, torch {where['torch']}, Python {where['python']}. GPT with "
        f"{where['parameters'] / 1e6:.1f} M parameters, batch {where['batch']} x {where['context']}, "
        f"{precision}, AdamW; "
        f"{where['rounds']} rounds of {where['steps']} steps. `{where['command']}`",
        "",
        "| variant | step, ms | ratio to bare: median (quartiles) | amortised ratio | excess, ms | M numbers read "
        "per step | excess / stabwatch's | the same per number read |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        low, high = row["ratio_quartiles"]
        more = [f"{row[k]:.1f}" if k in row else "" for k in ("times_stabwatch", "times_stabwatch_per_element")]
        lines.append(
            f"| {name} | {row['step_ms']:.1f} | {row['ratio']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {row['ratio_amortised']:.3f} | {row['excess_ms']:.1f} | {row['elements_per_step'] / 1e6:.1f} "
            f"| {' | '.join(more)} |"
        )
    lines.append("")
    for name, row in rows.items():
        if row["interval"]:
            kinds = ", ".join(f"{k}: {v['steps']} steps, {v['excess_ms']:.1f} ms" for k, v in row["kinds"].items())
            lines.append(f"- {name}: intervals {row['interval']}; excess by kind of step: {kinds}")
    return "\n".join(lines) + "\n"


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """The command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no stopped process is left behind
    from overhead_variants import VARIANTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rounds: does it run?")
    parser.add_argument("--rounds", type=int, help="how often every variant takes its turn")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help=f"these, beside '{BASE}' and '{OWN}'")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for overhead.json and overhead.md")
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    given = {name: getattr(options, name) for name in ("rounds", "threads") if getattr(options, name)}
    plan = replace(plan, **given)
    names = [n for n in VARIANTS if options.only is None or n in (BASE, OWN, *options.only)]
    if "wandb.watch" in names and not _has_wandb():
        names.remove("wandb.watch")
        print("wandb is not installed: `wandb.watch` is left out (pip install 'stabwatch[bench]').", file=sys.stderr)
    times, facts, found = measure(names, plan)
    rows, where = summarise(times, facts), machine(plan, found)
    text = table(rows, where)
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "overhead.md").write_text(text, encoding="utf-8")
    data = {"machine": where, "variants": rows, "facts": facts, "seconds": times}
    (options.results / "overhead.json").write_text(json.dumps(data) + "\n", encoding="utf-8")


def _has_wandb() -> bool:
    from importlib.util import find_spec

    return find_spec("wandb") is not None


if __name__ == "__main__":
    main()
