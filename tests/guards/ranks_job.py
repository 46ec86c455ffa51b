"""One rank of a two-process gloo job with every guard: python -m tests.guards.ranks_job RANK STORE OUT.

Every collective that stabwatch calls is counted.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.guards import TaylorGuard

STEPS = 24
GUARDS = ("none", "taylor", "skip_step", "snapshot", "lr_backoff", "raise", "skip_step,taylor,snapshot,lr_backoff")
PACKAGE = Path(stabwatch.__file__).parent
called: list[str] = []


def _count(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        if any(frame.filename.startswith(f"{PACKAGE}/") for frame in traceback.extract_stack()):
            called.append(name)
        return function(*args, **kwargs)

    return counted


def count_collectives() -> None:
    """Count the calls from stabwatch of all collectives, by the functions and by the groups."""
    c10d = dist.distributed_c10d
    for name in c10d.__all__:
        function = getattr(c10d, name)
        if callable(function) and not isinstance(function, type) and hasattr(function, "__wrapped__"):
            for module in (c10d, dist):
                setattr(module, name, _count(name, function))
    for kind in (dist.ProcessGroup, dist.ProcessGroupGloo):
        for name in ("allreduce", "allgather", "_allgather_base", "broadcast", "barrier", "reduce", "send", "recv"):
            setattr(kind, name, _count(name, getattr(kind, name)))


def train(rank: int, guard: str, out: str) -> dict[str, Any]:
    """Train on batches that differ by rank; the collectives of stabwatch, and how far the replicas are apart."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    settings = {"agent": False, "verbose": False, "every_step": True, "run_dir": f"{out}/{guard}"}
    watch = stabwatch.attach(model, optimizer, **settings, **({} if guard == "none" else {"guard": guard}))
    generator = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1.0 if step == STEPS // 2 else 0.1
        x = torch.randn(16, 20, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), x[:, :5].argmax(1)).backward()
        optimizer.step()
    watch.detach()
    found = list(called)
    called.clear()
    mine = nn.utils.parameters_to_vector(inner.parameters()).detach()
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    return {"apart": float((both[0] - both[1]).abs().max()), "collectives": found}


def refusal() -> str:
    """What the Taylor guard says in this job."""
    model = nn.Linear(2, 2)
    try:
        TaylorGuard(torch.optim.SGD(model.parameters(), lr=0.1), model)
    except ValueError as error:
        return str(error)
    return ""


def counts() -> bool:
    """Whether a collective that is called from a file of stabwatch is counted."""
    exec(compile("dist.all_reduce(torch.ones(1))", f"{PACKAGE}/planted.py", "exec"))
    found = "all_reduce" in called
    called.clear()
    return found


def main(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    count_collectives()
    found = {guard: train(rank, guard, out) for guard in GUARDS}
    print("found", json.dumps({"guards": found, "refusal": refusal(), "counts": counts()}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
