"""One bit of one replica turns over in a short run: is it found, where it is, and on the rank that it is on?

Jobs of 100 to 200 steps of two and four gloo ranks at default settings. A seed chooses the step, the rank, the bit (of
all 32), and the parameter or buffer: some are frozen, and of the buffers one never changes and each rank writes
the same into one. `benchmarks.which_rank` runs them and writes the table.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch
from stabwatch.analysis.analyze import analyze

LOOK = 16
"""Steps between two comparisons. A buffer that never changes is told at the second one."""


class Net(nn.Module):
    """Parameters that are trained and frozen, and buffers that stay and that change."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.middle = nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 32)
        self.frozen, self.leave = nn.Linear(32, 32).requires_grad_(False), nn.Linear(32, 4)
        self.register_buffer("scale", torch.rand(32) + 0.5)
        self.register_buffer("steps", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1.0
        x = self.norm(F.relu(self.enter(x))) * self.scale
        return self.leave(F.relu(self.frozen(F.relu(self.middle(x)))))


class Trial:
    """What a seed chooses."""

    def __init__(self, seed: int) -> None:
        self.seed, chance = seed, random.Random(1000 + seed)
        self.world, self.steps = (2, 4)[seed % 2], chance.randrange(100, 201)
        self.at, self.rank = chance.randrange(1, self.steps - 2 * LOOK - 1), chance.randrange(self.world)
        self.bit, self.chance = chance.randrange(32), chance
        tensors = [name for name, _ in [*Net().named_parameters(), *Net().named_buffers()]]
        self.name = chance.choice(tensors)

    @property
    def place(self) -> str:
        """What the log calls the layer or the buffer."""
        return self.name if self.name in ("scale", "steps") else self.name.rpartition(".")[0]

    def flip(self, model: nn.Module) -> None:
        """Turn the bit over, as memory does: no operation of torch counts it."""
        found = {**dict(model.named_parameters()), **dict(model.named_buffers())}[self.name]
        words = found.data.view(torch.int32).view(-1)
        place = self.chance.randrange(len(words))
        words[place] ^= 1 << self.bit if self.bit < 31 else -(1 << 31)


def job(rank: int, out: Path, trial: Trial) -> None:
    """One rank of a job. out: its run folder."""
    dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=trial.world)
    torch.manual_seed(trial.seed)
    inner = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its other name is not in older versions of torch
        model = nn.parallel.DistributedDataParallel(inner, broadcast_buffers=False)
    optimizer = torch.optim.AdamW([p for p in inner.parameters() if p.requires_grad], lr=5e-3)
    watch = stabwatch.attach(model, optimizer, agent=False, verbose=False, run_dir=out)
    generator = torch.Generator().manual_seed(trial.world * trial.seed + rank)
    for step in range(trial.steps):
        if step == trial.at and rank == trial.rank:
            trial.flip(inner)
        x = torch.randn(32, 8, generator=generator)
        loss = F.cross_entropy(model(x), (x[:, :4] + 0.3 * torch.randn(32, 4, generator=generator)).argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    watch.detach()


def told(folder: Path, trial: Trial) -> dict[str, Any]:
    """What `analyze` says of it. at_once: within two comparisons. rank: None if it is not said."""
    alerts = [a for a in analyze(folder).alerts if a.rule == "ReplicasDiffer" and a.state == "firing"]
    first = min(alerts, key=lambda a: a.step, default=None)
    facts = {"seed": trial.seed, "world": trial.world, "steps": trial.steps, "at": trial.at, "bit": trial.bit}
    if first is None:
        return {**facts, "name": trial.name, "found": None, "place": None, "rank": None, "wanted": trial.rank}
    rank = int(first.context["replica_difference_rank"])
    return {
        **facts, "name": trial.name, "found": first.step, "place": first.layer == trial.place,
        "rank": rank if rank >= 0 else None, "wanted": trial.rank,
    }  # fmt: skip


def trials(out: Path, seeds: Iterable[int], run: Callable[[int, Callable[[int], None]], None]) -> list[dict[str, Any]]:
    """Run those whose run folder is not in `out`, and judge all. run: forks the ranks of a job."""
    results = []
    for seed in seeds:
        trial, folder = Trial(seed), out / f"short-{seed}"
        if not folder.exists():
            run(trial.world, lambda rank: job(rank, folder, trial))  # noqa: B023
        results.append(told(folder, trial))
        folder.with_suffix(".json").write_text(json.dumps(results[-1]))
    return results


def table(results: list[dict[str, Any]]) -> list[str]:
    """Rows by the number of ranks."""
    rows = []
    for world in (2, 4):
        mine = [r for r in results if r["world"] == world]
        found = [r for r in mine if r["found"] is not None]
        soon = sum(r["found"] - r["at"] < 2 * LOOK for r in found)
        named = [r for r in found if r["rank"] is not None]
        right = sum(r["rank"] == r["wanted"] for r in named)
        counts = (len(mine), len(found), soon, sum(r["place"] for r in found), right, len(found) - len(named))
        rows.append(f"| {world} | {' | '.join(map(str, (*counts, len(named) - right)))} |")
    return rows
