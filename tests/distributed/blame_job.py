"""Jobs of four gloo ranks, one of which has a fault: python -m tests.distributed.blame_job OUT SEED [SEED ...].

Seed n chooses the fault (`KINDS`, in turn), the rank and the step. Settings are the defaults. A job is in OUT/<seed>.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import stabwatch

WORLD, AFTER, AFTER_FLIP = 4, 60, 280
"""Steps after the fault. Weights are compared every 256 steps at the least."""
KINDS = {
    "nan": "NonFinite", "flip": "ReplicasDiffer", "slow": "SlowRank", "loader": "SlowRank", "labels": "RankLossHigher",
}  # fmt: skip
"""Fault -> the rule that finds it."""
PAUSE = 0.04


def trial(seed: int) -> tuple[str, int, int]:
    """Fault, its rank, and its first step."""
    chance = random.Random(seed)
    return list(KINDS)[seed % len(KINDS)], chance.randrange(WORLD), chance.randrange(60, 90)


def main(rank: int, out: Path, seed: int) -> None:
    """One rank."""
    kind, odd, at = trial(seed)
    dist.init_process_group("gloo", init_method=f"file://{out}/store-{seed}", rank=rank, world_size=WORLD)
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.AdamW(inner.parameters(), lr=5e-3)
    watch = stabwatch.attach(model, optimizer, agent=False, verbose=False, run_dir=out / str(seed))
    generator = torch.Generator().manual_seed(WORLD * seed + rank)
    for step in range(at + (AFTER_FLIP if kind == "flip" else AFTER)):
        faulty = rank == odd and step >= at
        if faulty and kind == "loader":
            time.sleep(PAUSE)
        x = torch.randn(32, 8, generator=generator)
        y = x[:, :4].argmax(1)
        if faulty and kind == "labels":
            y = torch.randint(0, 4, y.shape, generator=generator)
        logits = model(x)
        if faulty and kind == "slow":
            time.sleep(PAUSE)
        if faulty and kind == "nan" and step == at:
            logits = logits * float("nan")
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if faulty and kind == "flip" and step == at:
            with torch.no_grad():
                inner[2].weight.view(torch.int32)[3, 5] ^= 1 << 25
    watch.detach()


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for seed in map(int, sys.argv[2:]):
        pids = []
        for rank in range(WORLD):
            pid = os.fork()
            if pid == 0:
                try:
                    main(rank, out, seed)
                finally:
                    os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
