"""One rank of a gloo job in which one rank fails, once for each fault.

python -m tests.distributed.rank_job RANK WORLD STORE OUT FAULT...
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F

import stabwatch
from stabwatch.demo import GPT, DemoConfig
from stabwatch.runtime import record, session, training_events, work_clock

STEPS = 64
"""Steps of a job without a fault."""
AT, AFTER = 12, 12
"""The step at which one rank goes wrong once, and how many there are from it on."""
LASTING_AT, LASTING_AFTER = 30, 34
"""The same of a fault that lasts, whose rules wait."""


def _use_clock(now: Callable[[], float]) -> None:
    """Steps are measured on a clock. On a machine that others keep busy, a healthy rank is slow on that of the wall."""
    for module in (record, session, training_events, work_clock):
        module.time = types.SimpleNamespace(**{**vars(time), "perf_counter": now})


def train(rank: int, world: int, out: str, fault: str) -> dict[str, object]:
    """Train replicas, the last rank with the fault; the sum of the weights, and until when all was measured."""
    torch.manual_seed(0)
    inner = GPT(DemoConfig(width=32, layers=2, heads=2, context=16))
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05)
    model = torch.nn.parallel.DistributedDataParallel(inner)
    watch = None
    _use_clock(time.thread_time if fault == "healthy" else time.perf_counter)
    if fault != "unwatched":
        judged = {"on_alert": lambda alert: None} if fault == "nan" else {}
        settings = {"agent": False, "verbose": False, "every_step": True, "run_dir": f"{out}/{fault}"}
        watch = stabwatch.attach(model, optimizer, **settings, **judged)
    if fault == "apart":
        dist.barrier()  # as nothing else makes ranks wait for each other before the first step ends
    odd, lasts = rank == world - 1, fault in ("slow", "apart")
    steps = STEPS if fault in ("unwatched", "healthy") else LASTING_AT + LASTING_AFTER if lasts else AT + AFTER
    generator = torch.Generator().manual_seed(rank)
    for step in range(steps):
        rows = torch.randint(0, 256, (4, 17), generator=generator)
        if odd and fault == "flip" and step == AT:
            with torch.no_grad():
                inner.blocks[1].mlp[0].weight.view(torch.int32)[3, 5] ^= 1 << 25  # 16 times as large
        if odd and fault == "slow" and step >= LASTING_AT:
            time.sleep(0.1)
        if watch is not None:
            watch.log_batch([step * world + rank], shard=f"shard-{rank}")
        logits = (inner if fault == "apart" else model)(rows[:, :-1]).flatten(0, 1)  # without the reduction
        if odd and fault == "nan" and step == AT:
            logits = logits * float("nan")
        loss = F.cross_entropy(logits, rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if watch is not None:
        watch.detach()
    mine = torch.nn.utils.parameters_to_vector(inner.parameters()).detach()
    return {
        "sum": mine.double().sum().item().hex(),
        "closer_until": watch._session._pace.governor._until if watch is not None else None,
    }


def main(rank: int, world: int, store: str, out: str, *faults: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    print("found", json.dumps({fault: train(rank, world, out, fault) for fault in faults}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
