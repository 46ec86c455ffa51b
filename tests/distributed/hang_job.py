"""Jobs of gloo ranks of which one does not come: python -m tests.distributed.hang_job WORLD OUT FAULT [FAULT ...].

A fault is NAME or NAME:RANK, the rank that does not come. The jobs run side by side. Prints "done" when the run folder
says who holds up each of them, or after a while; nobody is left running.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import stabwatch
from stabwatch.alerts import held_up
from stabwatch.runlog.stacks import read_stands
from stabwatch.runtime import overdue

STEPS, AT = 40, 12
LEAST, LOOK = 1.5, 0.2
PAUSE = 4.0
"""Seconds: longer than the patience."""


class Rows(Dataset):
    """Rows of which one takes for ever."""

    def __init__(self, rank: int, stuck: bool) -> None:
        self.rank, self.stuck = rank, stuck

    def __len__(self) -> int:
        return 4 * STEPS

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.stuck and index == 4 * AT:
            time.sleep(1000)  # this row
        return torch.randn(8, generator=torch.Generator().manual_seed(self.rank * 1000 + index))


def write_checkpoint() -> None:
    """What takes long in a healthy run."""
    time.sleep(PAUSE)


def break_off(fault: str) -> None:
    """The fault of the odd rank."""
    if fault in ("sleeps", "elsewhere"):
        time.sleep(1000)  # here it sleeps
    if fault == "raises":
        raise ValueError("a broken batch")
    if fault == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "saves":
        write_checkpoint()


def main(rank: int, world: int, out: Path, fault: str, odd: bool) -> None:
    """One rank."""
    if fault == "elsewhere" and rank:
        overdue._mark = lambda path: "another file system"
    overdue.LEAST, overdue.LOOK, overdue.STEPS, held_up.SETTLE = LEAST, LOOK, 2.0, 1.0
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/store-{fault}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05)
    with stabwatch.attach(model, optimizer, agent=False, verbose=False, run_dir=out / fault):
        for step, x in enumerate(DataLoader(Rows(rank, odd and fault == "loader"), batch_size=4)):
            if odd and step == AT:
                break_off(fault)
            if fault == "pauses" and step == AT:
                time.sleep(PAUSE)
            loss = F.cross_entropy(model(x), x[:, :4].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def fork(rank: int, world: int, out: Path, fault: str, odd: bool) -> int:
    """A rank in a process of its own."""
    pid = os.fork()
    if pid:
        return pid
    try:
        main(rank, world, out, fault, odd)
    finally:
        os._exit(0)


def said(run: Path) -> bool:
    """Does the log say who holds the job up, or could anybody know by now?"""
    events = run / "events.jsonl"
    text = events.read_text() if events.exists() else ""
    if '"held_up"' in text or '"finished"' in text:
        return True
    return held_up.held_up(read_stands(run, 1), time.time() - 2.0) is not None


if __name__ == "__main__":
    torch.set_num_threads(1)
    world, out = int(sys.argv[1]), Path(sys.argv[2])
    names = [each.partition(":") for each in sys.argv[3:]]
    pids = [
        fork(rank, world, out, fault, rank == int(odd or world - 2)) for fault, _, odd in names for rank in range(world)
    ]
    end = time.monotonic() + 60
    while not all(said(out / fault) for fault, _, _ in names) and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(2.0)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print("done")
