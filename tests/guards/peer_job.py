"""Jobs of four gloo ranks that lose a process: python -m tests.guards.peer_job OUT CASE.

The first attempt trains until step `WHOLE` is held by peers, and goes down by the fault of the case. The second one
restores, and trains on. Each rank writes what it found to OUT/<rank>.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # here, and not in each rank
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard

import stabwatch
from stabwatch.distributed import wire
from stabwatch.distributed.wire import Wire
from stabwatch.guards import peer_lead

WORLD, EVERY, WHOLE, STEPS, LOST = 4, 5, 10, 16, 2
CASES: dict[str, dict[str, Any]] = {
    "copy": {"mode": "copy", "lost": [LOST]},
    "parity": {"mode": "parity", "lost": [LOST]},
    "two": {"mode": "parity", "lost": [1, LOST]},
    "process": {"mode": "parity", "lost": []},
    "transfer": {"mode": "copy", "lost": [], "transfer": True},
    "stopped": {"mode": "copy"},
    "rejoin": {"mode": "copy", "lost": [LOST], "rejoin": True},
}
"""lost: ranks whose keepers are gone as well. transfer: killed while the next snapshot is sent. rejoin: other ranks
stay alive, and meet the new process. stopped: one of two ranks that do not wait for each other, and its keeper."""


def build(seed: int) -> tuple[nn.Module, Any, Any]:
    """A model whose shards differ in size over the ranks, with dropout and a buffer; optimizer and schedule."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Dropout(0.2), nn.Linear(10, 3))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def state(model: nn.Module, optimizer: Any) -> list[str]:
    """All numbers of this rank, exactly."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [t for p in model.parameters() for _, t in sorted(optimizer.state[p].items())]
    local = [getattr(t, "_local_tensor", t) for t in tensors]
    return [t.detach().numpy().tobytes().hex() for t in local] + [torch.get_rng_state().numpy().tobytes().hex()[:400]]


def train(rank: int, parts: tuple[nn.Module, Any, Any], first: int, last: int, boundary: Callable[[int], None]) -> None:
    """Train the steps from first to last."""
    model, optimizer, schedule = parts
    for step in range(first, last):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(100 * rank + step))
        loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        boundary(step + 1)
        schedule.step()


def attached(parts: tuple[nn.Module, Any, Any], out: Path, case: str) -> Any:
    """The watch of an attempt."""
    return stabwatch.attach(
        *parts[:2], run_dir=out / f"run-{time.time()}", agent=False, verbose=False, run=out.name, guard="snapshot",
        snapshot_every=EVERY, snapshot_peers=CASES[case]["mode"],
    )  # fmt: skip


def first_attempt(rank: int, out: Path, case: str) -> None:
    """Train, and go down."""
    parts = build(0)
    watch = attached(parts, out, case)
    peers = watch._session._dispatcher._peers
    torch.manual_seed(rank)

    def boundary(step: int) -> None:
        if step == WHOLE:
            (out / f"state-{rank}.json").write_text(json.dumps(state(*parts[:2])))
        if step == WHOLE + 2:
            end = time.monotonic() + 30
            while peers._whole < WHOLE and time.monotonic() < end:
                time.sleep(0.05)
            dist.barrier()
            if rank in CASES[case]["lost"]:
                os.kill(peers._child.pid, signal.SIGKILL)
            if CASES[case].get("transfer"):
                die_in_transfer(rank)
            elif rank == LOST:
                os.kill(os.getpid(), signal.SIGKILL)
            elif CASES[case].get("rejoin"):
                raise RuntimeError("a rank is lost")  # gloo says so only when all that wait for each other have gone

    try:
        train(rank, parts, 0, STEPS, boundary)
        time.sleep(30 if CASES[case].get("transfer") else 0)
    except RuntimeError:
        return  # the lost rank


def beside_one_that_is_stopped(rank: int, out: Path, case: str) -> None:
    """Two ranks train by themselves; what a step takes before and after the other one is stopped."""
    model = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    watch = attached((model, optimizer, None), out, case)
    peers = watch._session._dispatcher._peers
    seconds: list[float] = []
    for step in range(400):
        begun = time.perf_counter()
        model(torch.randn(4, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begun)
        time.sleep(0.01)
        if step == 100:
            end = time.monotonic() + 30
            while peers._whole < 0 and time.monotonic() < end:
                time.sleep(0.01)
            dist.barrier()
            wire.SECONDS, peer_lead.LIMIT = 0.5, 0.5
            if rank == 1:
                os.kill(peers._child.pid, signal.SIGSTOP)
                (out / "stopped").write_text(f"{os.getpid()} {peers._child.pid}")
                os.kill(os.getpid(), signal.SIGSTOP)
    pids = (out / "stopped").read_text().split()
    watch.detach()
    for pid in map(int, pids):
        os.kill(pid, signal.SIGKILL)
    (out / "0.json").write_text(json.dumps({"before": seconds[20:100], "after": seconds[101:]}))


def die_in_transfer(rank: int) -> None:
    """The lost rank is killed when its next snapshot is half sent, and the others a little later."""
    send = Wire.send

    def sent(self: Wire, message: dict[str, Any], block: Any = b"") -> None:
        if message["kind"] == "part" and rank == LOST:
            os.kill(os.getpid(), signal.SIGKILL)
        send(self, message, block)

    setattr(Wire, "send", sent)  # noqa: B010


def second_attempt(rank: int, out: Path, case: str) -> None:
    """Restore, and train on; compare with a training that nothing has ended."""
    parts = build(1)
    begun = time.perf_counter()
    watch = attached(parts, out, case)
    step = watch.restore(timeout=20)
    took = time.perf_counter() - begun
    same = state(*parts[:2]) == json.loads((out / f"state-{rank}.json").read_text()) if step else None
    found = {"step": step, "same": same, "seconds": took}
    if step is not None:
        for _ in range(step):
            parts[2].step()
        train(rank, parts, step, STEPS, lambda _: None)
        trained = state(*parts[:2])
        whole = build(0)
        torch.manual_seed(rank)
        train(rank, whole, 0, STEPS, lambda _: None)
        found["ends_same"] = trained == state(*whole[:2])
    watch.detach()
    (out / f"{rank}.json").write_text(json.dumps(found))


def main(rank: int, out: Path, case: str, attempts: list[int]) -> None:
    """One process of a rank."""
    sys.stderr = (out / f"{rank}-{attempts[0]}.err").open("w")
    if case == "stopped":
        dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
        beside_one_that_is_stopped(rank, out, case)
        return
    for attempt in attempts:
        store = f"file://{out}/store-{attempt}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
        (first_attempt if attempt == 1 else second_attempt)(rank, out, case)
        sys.stderr.flush()
        if attempt == 2:
            dist.barrier()
        dist.destroy_process_group()


def fork(rank: int, out: Path, case: str, attempts: list[int]) -> int:
    """A rank in a process of its own."""
    pid = os.fork()
    if pid:
        return pid
    try:
        main(rank, out, case, attempts)
    except BaseException as error:
        print(f"rank {rank}, {attempts}: {error!r}", flush=True)
    finally:
        os._exit(0)


def run(out: Path, case: str) -> None:
    """Both attempts of a case."""
    if case == "stopped":
        for pid in [fork(rank, out, case, [1]) for rank in range(2)]:
            os.waitpid(pid, 0)
        return
    rejoin = bool(CASES[case].get("rejoin"))
    pids = [fork(rank, out, case, [1, 2] if rejoin and rank != LOST else [1]) for rank in range(WORLD)]
    if CASES[case].get("transfer"):
        os.waitpid(pids.pop(LOST), 0)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    if rejoin:
        os.waitpid(pids.pop(LOST), 0)
        pids.append(fork(LOST, out, case, [2]))
    for pid in pids:
        os.waitpid(pid, 0)
    if not rejoin:
        for pid in [fork(rank, out, case, [2]) for rank in range(WORLD)]:
            os.waitpid(pid, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, case = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(parents=True, exist_ok=True)
    run(folder, case)
