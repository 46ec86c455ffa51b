"""Is the rank that has a fault named? Seeded jobs of four gloo ranks, one of which has a fault.

    python -m benchmarks.which_rank OUT --write docs/which-rank.md     40 trials in two settings, about ten minutes
    python -m benchmarks.which_rank OUT --seeds 0 1 2 --setting default
    python -m benchmarks.which_rank OUT --healthy 2000                 no rank has a fault: 2 and 4 ranks
    python -m benchmarks.which_rank OUT --seeds --healthy 0            48 bits that turn over in short runs, alone

A seed chooses the fault, the rank and the step. Delays are multiples of the steps that the job has made so far. Named
are the ranks of which the alerts and causes of `stabwatch analyze` speak: right is the one that has the fault, and no
other; where none is named, it is not known.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch._dynamo  # (DistributedDataParallel imports it: once, for all ranks)
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch
import stabwatch.runtime.session  # (once, for all ranks)
from benchmarks import short_flips
from stabwatch.analysis.analyze import analyze

WORLD, TRIALS, SHORT, AFTER, AFTER_FLIP = 4, 40, 48, 60, 280
"""Steps after the fault."""
DELAY, LEAST = 2.0, 0.01
"""A delay, in median steps of the job before it, and the least one in seconds."""
KINDS = {
    "nan": "a NaN in the batch or in the logits, once",
    "flip": "a bit of the exponent of one weight turns over",
    "forward": "each forward takes longer by two steps",
    "backward": "each backward takes longer by two steps",
    "loader": "each batch comes later by two steps",
    "data": "the inputs have lost their relation to the labels",
    "labels": "the labels are random",
}
SETTINGS: dict[str, dict[str, Any]] = {"default": {}, "everything": {"every_step": True}}
NAMED = re.compile(r"\b[Rr]ank (\d+)")


class Trial:
    """What a seed chooses. kind: None for a healthy job."""

    def __init__(self, seed: int, kind: str | None = None) -> None:
        self.seed, self.chance = seed, random.Random(seed)
        self.kind = list(KINDS)[seed % len(KINDS)] if kind is None else kind
        self.rank, self.at = self.chance.randrange(WORLD), self.chance.randrange(60, 90)

    @property
    def steps(self) -> int:
        """Of the whole job."""
        return self.at + (AFTER_FLIP if self.kind == "flip" else AFTER)


class Net(nn.Module):
    """Three layers. slow: seconds by which the middle of the forward or the backward pass is longer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.slow: tuple[str, float] = ("", 0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        where, seconds = self.slow
        if where == "forward":
            time.sleep(seconds)
        if where == "backward":
            x.register_hook(lambda gradient: time.sleep(seconds))
        return self.leave(F.relu(self.middle(x)))


def _batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 8, generator=generator)
    return x, (x[:, :4] + 0.3 * torch.randn(32, 4, generator=generator)).argmax(1)


def _flip(model: nn.Module, chance: random.Random) -> None:
    weight = chance.choice([p for p in model.parameters() if p.ndim > 1])
    row, column = (chance.randrange(n) for n in weight.shape)
    with torch.no_grad():
        weight.view(torch.int32)[row, column] ^= 1 << chance.randrange(23, 30)


def job(rank: int, world: int, out: Path, trial: Trial, steps: int, settings: dict[str, Any]) -> None:
    """One rank of a job. out: its run folder."""
    dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=world)
    torch.manual_seed(trial.seed)
    inner = Net()
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.AdamW(inner.parameters(), lr=5e-3)
    watch = stabwatch.attach(model, optimizer, agent=False, verbose=False, run_dir=out, **settings)
    generator = torch.Generator().manual_seed(world * trial.seed + rank)
    odd, times, kind = rank == trial.rank, [], trial.kind
    for step in range(steps):
        began = time.perf_counter()
        faulty, once = odd and step >= trial.at, odd and step == trial.at
        delay = max(DELAY * median(times), LEAST) if faulty else 0.0
        if faulty and kind == "loader":
            time.sleep(delay)
        x, y = _batch(generator)
        if faulty and kind in ("forward", "backward"):
            inner.slow = (kind, delay)
        if faulty and kind == "data":
            x = x[torch.randperm(len(x), generator=generator)]
        if faulty and kind == "labels":
            y = torch.randint(0, 4, y.shape, generator=generator)
        if once and kind == "flip":
            _flip(inner, trial.chance)
        nan = once and kind == "nan"
        if nan and trial.seed % 2:
            x[3, 5] = float("nan")
        logits = model(x)
        loss = F.cross_entropy(logits * float("nan") if nan else logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step < trial.at:
            times.append(time.perf_counter() - began)
    watch.detach()


def run(world: int, main: Callable[[int], None]) -> None:
    """Fork the ranks of a job and wait for them. Raises RuntimeError where one fails."""
    ranks = []
    for rank in range(world):
        process = os.fork()
        if not process:
            code = 1
            try:
                main(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        ranks.append(process)
    codes = [os.waitpid(process, 0)[1] for process in ranks]
    if any(codes):
        raise RuntimeError(f"a rank failed: {codes}")


def told(folder: Path) -> tuple[set[int], list[str]]:
    """The ranks that are named, and the rules that fired."""
    found = analyze(folder)
    alerts = [a for a in found.alerts if a.state == "firing" and a.severity != "info"]
    texts = [a.description for a in alerts]
    texts += [text for cause in found.diagnosis.causes for text in cause.evidence]
    return {int(rank) for text in texts for rank in NAMED.findall(text)}, sorted({a.rule for a in alerts})


def trials(out: Path, seeds: Iterable[int], setting: str) -> list[dict[str, Any]]:
    """Run those whose run folder is not in `out`, and judge all."""
    results = []
    for seed in seeds:
        trial, folder = Trial(seed), out / f"{setting}-{seed}"
        if not folder.exists():
            run(WORLD, lambda rank: job(rank, WORLD, folder, trial, trial.steps, SETTINGS[setting]))  # noqa: B023
        named, rules = told(folder)
        result = {"seed": seed, "kind": trial.kind, "rank": trial.rank, "at": trial.at, "setting": setting}
        results.append({**result, "named": sorted(named), "rules": rules})
        folder.with_suffix(".json").write_text(json.dumps(results[-1]))
    return results


def verdict(result: dict[str, Any]) -> str:
    """'right', 'wrong' or 'not known'."""
    return "not known" if not result["named"] else "right" if result["named"] == [result["rank"]] else "wrong"


def healthy(out: Path, steps: int, setting: str) -> list[str]:
    """Rows of the table of jobs without a fault."""
    rows = []
    for world in (2, 4):
        folder, trial = out / f"healthy-{setting}-{world}", Trial(0, "none")
        if not folder.exists():
            run(world, lambda rank: job(rank, world, folder, trial, steps, SETTINGS[setting]))  # noqa: B023
        _, rules = told(folder)
        rows.append(f"| {world} | {setting} | {steps:,} | {len(rules)} | {', '.join(rules) or '–'} |")
    return rows


def table(results: list[dict[str, Any]]) -> list[str]:
    """Rows by fault and setting, and their sum."""
    rows = []
    for setting in SETTINGS:
        for kind in (*KINDS, ""):
            chosen = [r for r in results if r["setting"] == setting and kind in ("", r["kind"])]
            if chosen:
                counts = [sum(verdict(r) == what for r in chosen) for what in ("right", "not known", "wrong")]
                what = KINDS[kind] if kind else "**all**"
                rows.append(f"| {what} | {setting} | {len(chosen)} | {' | '.join(map(str, counts))} |")
    return rows


PAGE = """# Which rank has the fault

Jobs of four gloo processes under DistributedDataParallel, one of which has a fault. A seed chooses the rank, the step
and the fault. Named are the ranks of which the alerts and causes of `stabwatch analyze` speak: right is the rank that
has the fault, and no other. Made by `python -m benchmarks.which_rank OUT --write docs/which-rank.md`; `everything` is
`every_step=True`. A delay is two median steps of the job before it, and 10 ms at least.

| fault on one rank | settings | trials | right | not known | wrong |
|---|---|---|---|---|---|
{trials}

One bit of one replica turns over in a run of 100 to 200 steps, at any step but the last 32, of any parameter or buffer
(`benchmarks/short_flips.py`), at default settings. Replicas are compared at every 16th step. `soon` is within 32 steps;
`not known` says that one or more ranks differ. The first 24 seeds were read before one change: 20 were found, as low
bits of frozen weights were taken for rounding.

| ranks | trials | found | soon | right layer or buffer | right rank | not known | wrong rank |
|---|---|---|---|---|---|---|---|
{short}

No fault, and nothing else on the machine (`--seeds --short`). Beside other jobs, of which one rank may get more than
the others, `SlowRank` rang once in 2,000 steps of two ranks with everything measured:

| ranks | settings | steps | rules that fired | which |
|---|---|---|---|---|
{healthy}
"""


def main() -> None:
    """Run, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(TRIALS)))
    parser.add_argument("--setting", choices=list(SETTINGS), nargs="*", default=list(SETTINGS))
    parser.add_argument("--healthy", type=int, default=2000, metavar="STEPS", help="of a job without a fault; 0: none")
    parser.add_argument("--short", type=int, nargs="*", default=list(range(SHORT)), help="seeds of bits in short runs")
    parser.add_argument("--write", type=Path, help="the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    results, calm = [], []
    for setting in options.setting:
        results += trials(options.out, options.seeds, setting)
        if options.healthy:
            calm += healthy(options.out, options.healthy, setting)
    short = short_flips.trials(options.out, options.short, run)
    for each in short:
        print("short", each)
    for result in results:
        if verdict(result) != "right":
            print(verdict(result), result)
    rows = {"trials": table(results), "short": short_flips.table(short), "healthy": calm}
    page = PAGE.format(**{name: "\n".join(found) for name, found in rows.items()})
    print(page)
    if options.write:
        options.write.write_text(page)


if __name__ == "__main__":
    sys.exit(main())
