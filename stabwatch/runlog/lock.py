"""One writer per run folder: an exclusive lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

LOCK = ".lock"


class RunLock:
    """Held by the process that writes a run folder.

    The operating system releases it when the process is gone, also after SIGKILL. Two watches of one process exclude
    each other too. On a file system without locks nothing is excluded.
    """

    def __init__(self, file: int | None) -> None:
        self._file = file

    @classmethod
    def take(cls, folder: Path) -> RunLock | None:
        """Lock a folder, which is made if it is not there; None if another run is being written to it.

        Raises OSError if the folder cannot be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError:
            os.close(file)
            return cls(None)
        return cls(file)

    def release(self) -> None:
        """Let others write the folder. Safe to call twice."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
