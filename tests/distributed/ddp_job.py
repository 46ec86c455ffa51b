"""One rank of a gloo job, once for each mode: python -m tests.distributed.ddp_job RANK WORLD STORE OUT MODE..."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F

import stabwatch
from stabwatch.demo import GPT, DemoConfig

STEPS = 12
FIRST = 100
"""Number of the first step in the mode 'numbered'."""

COLLECTIVES = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "barrier", "broadcast",
    "broadcast_object_list", "gather", "gather_object", "reduce", "send", "recv", "isend", "irecv",
)  # fmt: skip


def batch(step: int) -> torch.Tensor:
    """The global batch of a step: 8 rows."""
    return torch.randint(0, 256, (8, 17), generator=torch.Generator().manual_seed(step))


def train(rank: int, world: int, out: str, mode: str) -> int:
    """Train replicas on their shares of each batch; how many collectives were called from Python."""
    torch.manual_seed(0)
    inner = GPT(DemoConfig(width=32, layers=2, heads=2, context=16))
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05)
    settings = {"agent": False, "verbose": False, "every_step": True, "run_dir": f"{out}/{mode}"}
    watch = None
    with ExitStack() as patches:
        calls = [
            patches.enter_context(mock.patch.object(dist, name, wraps=getattr(dist, name))) for name in COLLECTIVES
        ]
        if mode == "inner":  # attached first, wrapped afterwards
            watch = stabwatch.attach(inner, optimizer, **settings)
        model = torch.nn.parallel.DistributedDataParallel(inner)
        if mode == "wrapped" or (mode == "alone" and rank == 0):
            watch = stabwatch.attach(model, optimizer, **settings)
        if mode == "numbered":
            watch = stabwatch.attach(model, optimizer, first_step=FIRST, **settings)
        for step in range(STEPS):
            if mode == "numbered":
                watch.begin_step(FIRST + 10 * step)
            rows = batch(step).chunk(world)[rank]
            loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if watch is not None:
            watch.detach()
    return sum(call.call_count for call in calls)


def main(rank: int, world: int, store: str, out: str, *modes: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    print("collectives", json.dumps({mode: train(rank, world, out, mode) for mode in modes}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
