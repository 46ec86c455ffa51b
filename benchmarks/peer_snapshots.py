"""What snapshots with other ranks cost: python benchmarks/peer_snapshots.py [MIB] [MODE].

Four gloo ranks on this machine train a model whose parameters and optimizer state take MIB each. Printed are the
milliseconds of processor time that a snapshot takes in the training thread (without `snapshot_peers`, and with it),
those of the steps while it is sent, seconds until all ranks hold it, and the bytes that each keeper holds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn

import stabwatch
from stabwatch.distributed.wire import Wire

WORLD, EVERY, STEPS = 4, 25, 110


def train(rank: int, mib: int, out: Path, mode: str | None) -> dict[str, Any]:
    """One run; numbers of this rank."""
    torch.manual_seed(0)
    width = int((mib * (1 << 20) / 12 / 4) ** 0.5)  # four layers; Adam has two more numbers of each weight
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    watch = stabwatch.attach(
        model, optimizer, run_dir=out / f"run-{mode}-{rank}", run=f"{out.name}-{mode}", agent=False, verbose=False,
        guard="snapshot", snapshot_every=EVERY, snapshot_peers=mode,
    )  # fmt: skip
    dispatcher = watch._session._dispatcher
    [snapshots] = dispatcher._reactions
    spent: list[float] = []
    take = snapshots._take  # type: ignore[attr-defined]

    def timed(*args: Any) -> None:
        begun = time.thread_time()
        take(*args)
        spent.append(1000 * (time.thread_time() - begun))

    snapshots._take = timed  # type: ignore[attr-defined]
    steps: list[float] = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        model(torch.randn(1, width)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(1000 * (time.perf_counter() - begun))
        dist.barrier()  # as ranks of a job wait for each other
    found: dict[str, Any] = {"snapshot_ms": median(spent[2:]), "step_ms": median(steps)}
    if mode is not None:
        peers = dispatcher._peers
        assert peers is not None
        end = time.monotonic() + 60
        while peers._whole < STEPS // EVERY * EVERY and time.monotonic() < end:
            time.sleep(0.05)
        with Wire.connect(peers._own) as wire:
            held = wire.ask({"kind": "list"})["held"]
        found["held_mib"] = sum(one["bytes"] for one in held) / (1 << 20)
        found["state_mib"] = next(one["bytes"] for one in held if one["what"] == "copy") / (1 << 20)
        dist.barrier()
    watch.detach()
    return found


def main() -> None:
    """Fork the ranks."""
    mib, modes = int((*sys.argv, "64")[1]), [None, *(sys.argv[2:3] or ["copy", "parity"])]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        pids = []
        for rank in range(WORLD):
            if not (pid := os.fork()):
                torch.set_num_threads(1)
                dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=WORLD)
                found = {str(mode): train(rank, mib, out, mode) for mode in modes}
                (out / f"{rank}.json").write_text(json.dumps(found))
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(WORLD)]
        for name in map(str, modes):
            print(name, {key: round(median(r[name][key] for r in ranks), 2) for key in ranks[0][name]})
        for mode in modes[1:]:
            events = (out / f"run-{mode}-0" / "events.jsonl").read_text().splitlines()
            print(mode, [e for e in map(json.loads, events) if e["kind"] == "snapshot"])


if __name__ == "__main__":
    main()
