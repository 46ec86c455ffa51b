"""Processes of a test: the ranks of a job, and work that is done once for all tests that need it."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_ranks(module: str, world: int, *args: object, timeout: float = 100) -> list[tuple[str, str]]:
    """Run `python -m MODULE RANK ARGS...` for all ranks together; all must succeed. (stdout, stderr) of each."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), *map(str, args)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        outs = [rank.communicate(timeout=timeout) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, outs
    return outs


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, filled by `make` in whichever test process asks first; others wait for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_name(f"{folder.name}.done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
