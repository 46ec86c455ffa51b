"""One rank of a job on two machines of two ranks: python -m tests.distributed.node_job RANK STORE OUT.

Each machine has a file system of its own, and the second has another clock. The last rank gets a NaN in its batch.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import stabwatch

WORLD, STEPS, AT, AHEAD = 4, 40, 24, 7200.0
"""AHEAD: seconds by which the clock of the second machine is ahead."""


def main(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    root = Path(out) / f"machine{rank // 2}"
    root.mkdir(exist_ok=True)
    os.chdir(root)
    if rank // 2:
        true = time.time
        time.time = lambda: true() + AHEAD
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05)
    watch = stabwatch.attach(
        model, optimizer, agent=False, verbose=False, every_step=True, run_dir="run", on_alert=lambda alert: None
    )
    generator = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        x = torch.randn(8, 8, generator=generator)
        y = x[:, :4].argmax(1)
        if rank == WORLD - 1 and step == AT:
            x[2, 3] = float("nan")
        watch.log_batch([WORLD * step + rank], shard=f"shard-{rank}")
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    watch.detach()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
