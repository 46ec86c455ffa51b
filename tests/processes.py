"""Processes of a test: the ranks of a job, and work that is done once for all tests that need it."""

from __future__ import annotations

import atexit
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


@functools.cache
def _server(parent: int) -> subprocess.Popen[str]:
    """The server of this process."""
    words = [sys.executable, "-c", "import tests.python_server; tests.python_server.main()"]
    server = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.kill)
    return server


def run_python(
    *words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, input: str = "", timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS...` in a process of its own that does not import torch again; see `tests.python_server`.

    Not for tests of what a program imports, nor of how Python starts. Raises subprocess.TimeoutExpired.
    """
    server = _server(os.getpid())
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder, name)) for name in ("in", "out", "err")}
        for name, path in files.items():
            Path(path).write_text(input if name == "in" else "")
        asked = {"words": [*map(str, words)], "cwd": str(cwd or Path.cwd()), "env": dict(env or os.environ), **files}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        process, late = int(server.stdout.readline()), threading.Event()

        def kill() -> None:
            late.set()
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)

        timer = threading.Timer(timeout, kill)
        timer.start()
        code = int(server.stdout.readline())
        timer.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)  # what it has left behind
        out, err = (Path(files[name]).read_text() for name in ("out", "err"))
    if late.is_set():
        raise subprocess.TimeoutExpired(asked["words"], timeout, out, err)
    return subprocess.CompletedProcess(asked["words"], code, out, err)


def run_ranks(module: str, world: int, *args: object, timeout: float = 100) -> list[tuple[str, str]]:
    """Run `python -m MODULE RANK ARGS...` for all ranks together; all must succeed. (stdout, stderr) of each."""
    with tempfile.TemporaryDirectory() as folder:
        job = run_python("-m", "tests.forked_ranks", module, world, folder, *args, cwd=ROOT, timeout=timeout)
        where = Path(folder)
        outs = [(_text(where / f"{rank}.out"), _text(where / f"{rank}.err")) for rank in range(world)]
    assert job.returncode == 0, (job.stdout, job.stderr, outs)
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
