"""Discovery of a running agent: agent.json in the run folder, a Prometheus file_sd target, and one lease per run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import tempfile
from pathlib import Path
from typing import IO, Any

from stabwatch.runlog.plain_file import plain_file
from stabwatch.runlog.schema import LEASE

AGENT = "agent.json"


def write_atomically(path: Path, data: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
            file.write("\n")
        os.chmod(name, 0o644)  # Prometheus runs as another user
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def target_file(folder: Path, run: str) -> Path:
    """The target file of a run."""
    return folder / (re.sub(r"[^A-Za-z0-9._-]", "_", run).lstrip(".") + ".json")


def target(address: str, run: str, tls: bool) -> list[dict[str, Any]]:
    """One target in the format of Prometheus file_sd."""
    labels = {"run": run, **({"__scheme__": "https"} if tls else {})}
    return [{"targets": [address], "labels": labels}]


def is_led(run: Path) -> bool:
    """Whether an agent has the lease of a run now. It writes nothing."""
    try:
        with open(run / LEASE, "rb", opener=plain_file) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False


class Lease:
    """A lock: at most one agent per run writes alerts and the end of the run; others only serve.

    The lock is released when its process ends, in any way.
    """

    def __init__(self, run: Path, wanted: bool = True) -> None:
        """wanted: False never takes it."""
        self._path = run / LEASE
        self._wanted = wanted
        self._file: IO[bytes] | None = None

    def held(self) -> bool:
        """Whether this agent may write. It acquires the lease if it is free."""
        if self._file is not None:
            return True
        if not self._wanted:
            return False
        try:
            file = open(self._path, "ab", opener=plain_file)  # noqa: SIM115  (open as long as the lock is held)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                file.close()
                return False
            # a file system without locks: two writing agents are better than none
        self._file = file
        return True

    def release(self) -> None:
        """Release the lease."""
        if self._file is not None:
            self._file.close()
            self._file = None
