"""Jobs of gloo ranks in which one rank differs: python -m tests.distributed.fault_job WORLD OUT FAULT [FAULT ...].

Each fault is run watched and unwatched. Prints a JSON object a fault: of each rank that ends, the digest of its weights
and its slowest step, watched and unwatched; None for a rank that does not end. Ranks are forked, so that torch is
imported once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.join import Join

import stabwatch
from stabwatch.distributed.layout import MergeLayout
from stabwatch.hooks.probes import activation

STEPS, AT = 24, 8
ALONE = ("killed", "stopped")
"""Faults after which a rank's collectives would fail with or without a watch: each rank trains on its own."""


def fail(*_: object) -> None:
    """What breaks inside stabwatch."""
    raise RuntimeError("planted")


def main(rank: int, world: int, out: Path, fault: str, watched: bool) -> dict[str, object]:
    """One rank of a job. The last rank is the odd one, but for the fault 'late0'."""
    store = out / f"store-{fault}-{watched}"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model = inner if fault in ALONE else nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05)
    odd = rank == (0 if fault == "late0" else world - 1)
    settings = {"agent": False, "verbose": False, "every_step": True, "run_dir": out / fault}
    attach = functools.partial(stabwatch.attach, model, optimizer, **settings)
    watch = None
    if watched and not (odd and fault in ("late", "late0", "never")):
        watch = attach(include="2" if odd and fault == "include" else None)
    dist.barrier()
    generator = torch.Generator().manual_seed(rank)
    slowest = 0.0
    uneven = fault == "join"
    with Join([model]) if uneven else nullcontext():
        for step in range(STEPS - 6 * (uneven and odd)):
            began = time.perf_counter()
            if fault in ALONE and step == AT:
                if odd and watched:
                    _hand_over(watch)
                dist.barrier()
            if fault == "probe" and step == AT + 5:
                time.sleep(1.0)  # what one rank says of its errors is on rank 0 by now
            if odd and step == AT:
                watch = _break(fault, watch, attach, watched)
            x = torch.randn(4, 8, generator=generator)
            loss = F.cross_entropy(model(x), x[:, :4].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 0 and fault in ALONE:
                dist.barrier()
            slowest = max(slowest, time.perf_counter() - began)
    covered = None if watch is None else watch.coverage()
    if watch is not None:
        watch.detach()
    digest = hashlib.sha256(nn.utils.parameters_to_vector(inner.parameters()).detach().numpy().tobytes())
    return {"digest": digest.hexdigest(), "slowest": slowest, "coverage": covered}


def _hand_over(watch):
    """Wait until everything that this rank measured is on its way: a rank that dies earlier takes it along."""
    exchange = watch._session._shared.exchange
    end = time.monotonic() + 60
    while exchange._submitted or exchange._merger.waits or not (exchange._channel.connected and exchange._channel.idle):
        assert time.monotonic() < end
        time.sleep(0.01)


def _break(fault, watch, attach, watched):
    if fault in ("killed", "stopped"):
        os.kill(os.getpid(), signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    if not watched:
        return None
    if fault in ("late", "late0"):
        return attach()
    if fault == "detach":
        watch.detach()
        return None
    if fault == "probe":
        activation.update_moments = fail
    if fault == "error":  # in the exchange's thread, which has passed on the steps before this one
        _hand_over(watch)
        MergeLayout.partial = fail
    if fault == "step_error":  # in the step loop
        watch._session._pace.governor.observe = fail
    return watch


def job(world: int, out: Path, fault: str, watched: bool) -> list[dict[str, object] | None]:
    """Fork the ranks, and collect what they give; whoever has not ended when the others have is killed."""
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                result = main(rank, world, out, fault, watched)
                (out / f"{fault}-{watched}-{rank}.json").write_text(json.dumps(result))
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    open_, end = dict(enumerate(pids)), time.monotonic() + 60
    odd = world - 1
    while open_ and time.monotonic() < end and not (fault == "stopped" and set(open_) == {odd}):
        for rank, pid in list(open_.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del open_[rank]
        time.sleep(0.02)
    for pid in open_.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    files = [out / f"{fault}-{watched}-{rank}.json" for rank in range(world)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


if __name__ == "__main__":
    torch.set_num_threads(1)
    world, out = int(sys.argv[1]), Path(sys.argv[2])
    for fault in sys.argv[3:]:
        print(
            json.dumps(
                {"fault": fault, "watched": job(world, out, fault, True), "unwatched": job(world, out, fault, False)}
            ),
            flush=True,
        )
