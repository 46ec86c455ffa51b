"""Processes of a test: the ranks of a job, and work that is done once for all tests that need it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_ranks(module: str, world: int, *args: object, timeout: float = 100) -> list[tuple[str, str]]:
    """Run `python -m MODULE RANK ARGS...` for all ranks together; all must succeed. (stdout, stderr) of each."""
    with tempfile.TemporaryDirectory() as folder:
        job = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_ranks", module, str(world), folder, *map(str, args)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = job.communicate(timeout=timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
        where = Path(folder)
        outs = [(_text(where / f"{rank}.out"), _text(where / f"{rank}.err")) for rank in range(world)]
    assert job.returncode == 0, (said, outs)
    return outs


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


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
